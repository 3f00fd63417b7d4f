"""The training loop of every few-shot learner: draw tasks, ask the method for a direction, take an outer step."""

from __future__ import annotations

import time
from typing import Any, final

import torch

from metarl.adam import Adam
from metarl.fewshot.config import MethodConfig
from metarl.fewshot.method import Direction, Method
from metarl.fewshot.tasks import Tasks, TaskSource
from metarl.learner_state import check_no_moments, checked_state
from metarl.ops.tree import add_all, all_finite, concatenate_tasks
from metarl.parallel import TaskChunks, one_intra_op_thread
from metarl.precision import no_tf32
from metarl.types import Params

_CHECKED_EXAMPLES = 5
"""Made-up examples that a network is asked about before it is trained."""


@final
class FewShotLearner:
    """A method that learns on a distribution of tasks: one `iterate` is one outer step.

    Everything random is a function of (seed, index of the task), so that an iteration can be repeated from the
    parameters, the running statistics and the outer optimiser's state alone.

    Args:
        method: The method.
        source: Where tasks come from; training takes its train split.
        config: Settings of the outer loop.
        iterations: Iterations in all, over which the outer step size falls.
        seed: Seed of the tasks.
        chunks: How tasks are split over threads.

    Attributes:
        params: Meta-parameters.
        buffers: Running statistics of batch normalisation.

    Raises:
        ValueError: If there is nothing to learn, or the network is no function of its parameters (`Network.check`).
    """

    counters: tuple[str, ...] = ("iteration", "skipped_updates")

    def __init__(
        self,
        method: Method,
        source: TaskSource,
        config: MethodConfig,
        *,
        iterations: int,
        seed: int = 0,
        chunks: TaskChunks | None = None,
    ) -> None:
        self.method, self.source, self.config, self.seed = method, source, config, seed
        self.params: Params = method.initial_params()
        self.buffers: Params = method.initial_buffers()
        if not self.params:
            raise ValueError("The network has no parameter that requires a gradient: there is nothing to learn.")
        generator = torch.Generator().manual_seed(0)
        method.network.check(torch.randn(_CHECKED_EXAMPLES, *source.input_shape, generator=generator))
        self.iteration = 0
        self.skipped_updates = 0
        self.chunks = chunks or TaskChunks()
        self._iterations = iterations
        self._adam = Adam(self.params, config.outer_lr) if config.outer_optimizer == "adam" else None

    @one_intra_op_thread()
    @no_tf32()
    def iterate(self) -> dict[str, float]:
        """Takes one outer step and returns its metrics (docs/fewshot.md lists them).

        A direction that is not finite is skipped and counted.
        """
        start, start_cpu = time.perf_counter(), time.process_time()
        size = self.config.meta_batch_size
        tasks = self.source.sample(size, "train", self.seed, start=self.iteration * size)
        sampled, sampled_cpu = time.perf_counter(), time.process_time()
        direction = self.mean_direction(tasks)
        # Looked at before the step, which moves the optimiser's state.
        moved = self._outer_step(direction.gradient) if all_finite(direction.buffers) else None
        if moved is None or not all_finite(moved):
            self.skipped_updates += 1
        else:
            self.params = moved
            self.buffers = {name: _mean(value, self.buffers[name]) for name, value in direction.buffers.items()}
        self.iteration += 1
        squares = [value.double().square().sum() for value in direction.gradient.values()]
        seconds = time.perf_counter() - start
        return {
            **{name: float(value.double().mean()) for name, value in direction.measured.items()},
            "gradient_norm": float(torch.stack(squares).sum().sqrt()),
            "skipped_updates": float(self.skipped_updates),
            "tasks": float(self.iteration * size),
            "time/sampling_seconds": sampled - start,
            "time/updating_seconds": seconds - (sampled - start),
            "time/cpu_seconds": time.process_time() - start_cpu,
            "time/sampling_cpu_seconds": sampled_cpu - start_cpu,
            "time/tasks_per_second": size / seconds,
        }

    def mean_direction(self, tasks: Tasks) -> Direction:
        """The method's direction, mean over the tasks: chunks are added in order, however many threads there are.

        Running statistics and metrics are still each task's own.
        """
        size = len(tasks.support.x)
        parts = self.chunks.map(lambda chunk: self.method.direction(self.params, self.buffers, chunk), size, tasks)
        return Direction(
            add_all([part.gradient for part in parts], 1 / size),
            concatenate_tasks([part.buffers for part in parts]),
            concatenate_tasks([part.measured for part in parts]),
        )

    def _outer_step(self, gradient: Params) -> Params | None:
        lr = self.config.outer_lr * (1 - self.config.outer_lr_decay * self.iteration / self._iterations)
        if self._adam is not None:
            return self._adam.step(self.params, gradient, lr)
        return {name: value - lr * gradient[name] for name, value in self.params.items()}

    def tensors(self) -> dict[str, Params]:
        """The parts of its state that are sets of tensors of known names and shapes."""
        return {"params": self.params, "buffers": self.buffers, "frozen": self.method.network.frozen}

    def state_dict(self) -> dict[str, Any]:
        """Everything training continues from."""
        return {
            "params": dict(self.params),
            "buffers": dict(self.buffers),
            "frozen": {name: value.clone() for name, value in self.method.network.frozen.items()},
            "outer": {} if self._adam is None else self._adam.state_dict(),
            "iteration": self.iteration,
            "skipped_updates": self.skipped_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned.

        Raises:
            ValueError: If it does not fit, saying what does not. The learner is then as before.
        """
        tensors, counters = checked_state(state, self.tensors(), self.counters)
        if self._adam is None:
            check_no_moments(state.get("outer", {}))
        else:
            self._adam.load_state_dict(state.get("outer", {}))
        self.params, self.buffers = tensors["params"], tensors["buffers"]
        self.method.network.load_constants(self.buffers, tensors["frozen"])
        self.iteration, self.skipped_updates = (counters[name] for name in self.counters)


def _mean(value: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Mean over tasks of a running statistic; the counter of batches is the same for all, and a constant stays one."""
    if not value.is_floating_point() or torch.equal(value, before.expand_as(value)):
        return value[0]
    return value.mean(0)
