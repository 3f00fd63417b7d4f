"""The training loop that every composition of `LearnerConfig` shares: collect, adapt, move the meta-parameters.

One iteration (Finn, Abbeel and Levine 2017, algorithm 3): draw tasks; collect rollouts of every task with the current
policy and take an inner step on them, K times; collect once more with the adapted policies; let the outer optimiser
move the meta-parameters. The objective is in `metarl.algorithms.objective`, the inner loop in `metarl.inner_loop`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import time
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from metarl.agent import Agent
from metarl.algorithms.composition import OUTER_OPTIMIZERS, contradiction, is_of_type
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
from metarl.algorithms.outer import Update
from metarl.functional import constants, load_constants
from metarl.learner_state import checked_state
from metarl.memory import KEPT_LAYERS, graph_budget
from metarl.metrics import rollout_metrics, step_size_metrics
from metarl.noise import EVALUATION, TRAINING
from metarl.ops.tree import all_finite
from metarl.parallel import TaskChunks, cached_chunk_size, fitting_chunk_size, one_intra_op_thread
from metarl.policies import GaussianMLPPolicy, check_policy
from metarl.precision import no_tf32
from metarl.rollout_adaptation import adapt_on_rollouts
from metarl.types import BatchedEnv, Params, Policy, TaskFamily


def make_chunks(
    config: LearnerConfig, policy: Policy, horizon: int, device: str | torch.device, num_threads: int | None
) -> TaskChunks:
    """How the update splits tasks: `config.chunk_size`, or one chosen for the size of the policy and the data."""
    device = torch.device(device)
    if config.chunk_size:
        return TaskChunks(config.chunk_size, num_threads if device.type == "cpu" else 1)
    rows = config.steps_per_task or config.episodes_per_task * horizon
    weights = [value for _, value in policy.named_parameters() if value.ndim > 1]
    layer_bytes = rows * max((value.shape[0] * value.element_size() for value in weights), default=1)
    if device.type == "cpu":
        return TaskChunks(cached_chunk_size(config.meta_batch_size, layer_bytes), num_threads)
    graph_bytes = KEPT_LAYERS * (len(weights) + 1) * (config.num_inner_steps + 1) * layer_bytes
    size = fitting_chunk_size(config.meta_batch_size, graph_bytes, graph_budget(device))
    return TaskChunks(size, num_threads=1)


@final
class MetaLearner:
    """A meta-learner on a task family: one `iterate` collects, adapts and updates.

    Everything random is a function of (seed, iteration, phase, task), so an iteration can be repeated from the
    parameters and the outer optimiser's state alone.

    Args:
        family: Task family.
        policy: Policy module; its parameters are where training starts.
        config: Settings.
        seed: Seed of tasks and noise.
        device: Where environments and parameters live.
        num_threads: Threads of environments and update; None takes the available cores.

    Attributes:
        params: Meta-parameters: the policy's, and learned inner step sizes.
        inner: The inner loop.

    Raises:
        ValueError: If the settings contradict one another or do not fit the policy, or the module is no policy for the
            family (`check_policy`).
    """

    counters: tuple[str, ...] = ("iteration", "env_steps", "skipped_updates")

    def __init__(
        self,
        family: TaskFamily,
        policy: Policy,
        config: LearnerConfig,
        seed: int = 0,
        device: str | torch.device = "cpu",
        num_threads: int | None = None,
    ) -> None:
        problem = contradiction(config)
        if problem is not None:
            raise ValueError(" ".join(problem))
        check_policy(policy, family.observation_dim, family.action_dim)
        self.family, self.policy, self.config, self.seed = family, policy, config, seed
        self.inner = config.inner_loop(policy)
        self.params: Params = {name: value.to(device) for name, value in self.inner.initial_meta().items()}
        self.iteration = 0
        self.env_steps = 0
        self.skipped_updates = 0
        self._device, self._num_threads = torch.device(device), num_threads
        self.chunks = make_chunks(config, policy, family.horizon, self._device, num_threads)
        self._outer = OUTER_OPTIMIZERS[config.outer_optimizer](self.inner, self.params, config, self.chunks)

    @staticmethod
    def for_family(family: TaskFamily, algorithm: str = "maml-trpo", seed: int = 0, **settings: Any) -> MetaLearner:
        """A named learner with a 100-100 tanh Gaussian policy of the family's sizes.

        The scripts' presets and what validation does (choosing a step size) are not part of it.

        Args:
            family: Task family.
            algorithm: One of `metarl.algorithms.learners.LEARNERS`.
            seed: Seed of the initial policy, of tasks and of noise.
            **settings: Fields of `LearnerConfig` that differ from the learner's own.

        Raises:
            ValueError: If the name is unknown, the settings make no sense, or the learner is an oracle and the family
                does not show its task.
        """
        if isinstance(family, str):
            raise ValueError(f"family is {family!r}; it must be a family itself, such as envs.make({family!r}).")
        if algorithm not in LEARNERS:
            raise ValueError(f"Unknown algorithm {algorithm!r}. Known: {', '.join(LEARNERS)}.")
        learner = LEARNERS[algorithm]
        if learner.observe_task and not getattr(family, "observe_task", False):
            raise ValueError(f"{algorithm} sees its task; make the family with observe_task=True.")
        fields = [field.name for field in dataclasses.fields(LearnerConfig)]
        for name in set(settings) - set(fields):
            near = difflib.get_close_matches(name, fields, 1, cutoff=0.75)
            hint = f"is {near[0]!r} meant?" if near else "a policy of your own goes to MetaLearner() itself."
            raise ValueError(f"{name!r} is no field of LearnerConfig; {hint}")
        config = LearnerConfig(**{**learner.settings, **settings})
        generator = torch.Generator().manual_seed(seed)
        policy = GaussianMLPPolicy(
            family.observation_dim, family.action_dim, context_dim=config.context_dim, generator=generator
        )
        return MetaLearner(family, policy, config, seed)

    @functools.cached_property
    def _env(self) -> BatchedEnv:
        """The worlds of training, made when they are first needed: to adapt to one task nobody needs them."""
        worlds = self.config.worlds_per_task(self.family.horizon)
        return self.family.batch(self._tasks(), worlds, self._device, num_threads=self._num_threads)

    def prepare(self) -> None:
        """Makes the worlds of training now: what does not fit this machine is then told before anything is written."""
        _ = self._env

    def adapt(self, task: Tensor | Sequence[float], num_steps: int = 1, episodes: int = 20, seed: int = 0) -> Agent:
        """Adapts to one task on episodes collected for it.

        Args:
            task: `[task_dim]`.
            num_steps: Inner steps.
            episodes: Episodes per inner step.
            seed: Noise seed.

        Raises:
            ValueError: If a number is out of range, the task does not fit the family, or what was collected or came
                out is not finite: diverged physics or a diverged policy.
        """
        for name, value, least in (("num_steps", num_steps, 0), ("episodes", episodes, 1), ("seed", seed, 0)):
            if not is_of_type(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number and at least {least}.")
        wanted = f"task is {task!r}; one task of this family is {self.family.task_dim} number(s)"
        try:
            one = torch.as_tensor(task, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{wanted}.") from None
        if one.numel() != self.family.task_dim:
            raise ValueError(f"{wanted}, not an array of shape {list(one.shape)}.")
        data = adapt_on_rollouts(
            self.family.batch(
                one.reshape(1, -1),
                episodes,
                self._device,
                num_threads=self.chunks.num_threads,
            ),
            self.inner,
            self.params,
            num_steps=num_steps,
            noise_key=(EVALUATION, seed),
            settings=self.config.advantage_settings(),
            measure_last=False,
            keep=False,
        )
        if data.nonfinite_steps:
            raise ValueError(
                f"adapt() has no agent for task {task}: {data.nonfinite_steps} of the {data.env_steps} steps collected "
                "for it are not finite (diverged physics or a diverged policy)."
            )
        params = {name: value[0] for name, value in data.trajectory[-1].items()}
        if not all_finite(params):
            raise ValueError(
                f"adapt() has no agent for task {task}: its inner steps lead to parameters that are not finite."
            )
        spec = getattr(self.family, "spec", None)  # a family of a few lines may have none
        return Agent(self.policy, params, spec.action_scale if spec else None)

    def _tasks(self) -> Tensor:
        size = self.config.meta_batch_size
        return self.family.sample_tasks(size, "train", self.seed, start=self.iteration * size)

    @one_intra_op_thread()
    @no_tf32()
    def iterate(self) -> dict[str, float]:
        """Runs one iteration and returns its metrics (docs/learners.md lists them)."""
        config = self.config
        start, start_cpu = time.perf_counter(), time.process_time()
        self._env.set_tasks(self._tasks())
        data = adapt_on_rollouts(
            self._env,
            self.inner,
            self.params,
            num_steps=config.num_inner_steps,
            noise_key=(TRAINING, self.seed, self.iteration),
            settings=config.advantage_settings(),
            steps_per_task=config.steps_per_task or None,
            chunks=self.chunks,
            measure_last=self._outer.needs_query,
        )
        metrics = rollout_metrics(self.policy, data)
        update = Update(None, {})
        if metrics["nonfinite_steps"] == 0:
            update = self._outer.update(self.params, data)
        self.skipped_updates += update.meta is None
        self.params = self.params if update.meta is None else update.meta
        self.env_steps += data.env_steps
        self.iteration += 1
        seconds = time.perf_counter() - start
        metrics |= dict.fromkeys(self._outer.metric_names, 0.0) | update.metrics | step_size_metrics(self.params)
        metrics |= {
            "skipped_updates": float(self.skipped_updates),
            "env_steps": float(self.env_steps),
            "time/sampling_seconds": data.sampling_seconds,
            "time/sampling_cpu_seconds": data.sampling_cpu_seconds,
            "time/updating_seconds": seconds - data.sampling_seconds,
            "time/updating_cpu_seconds": time.process_time() - start_cpu - data.sampling_cpu_seconds,
            "time/env_steps_per_second": data.env_steps / seconds,
        }
        return metrics

    def tensors(self) -> dict[str, Params]:
        """The parts of its state that are sets of tensors of known names and shapes."""
        return {"params": self.params, "constants": constants(self.policy)}

    def state_dict(self) -> dict[str, Any]:
        """Everything training continues from: parameters, the policy's constants, the optimiser's state, counters."""
        return {
            "params": dict(self.params),
            "constants": {name: value.clone() for name, value in constants(self.policy).items()},
            "outer": self._outer.state_dict(),
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "skipped_updates": self.skipped_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned.

        Raises:
            ValueError: If it does not fit, saying what does not. The learner is then as before.
        """
        tensors, counters = checked_state(state, self.tensors(), self.counters)
        self._outer.load_state_dict(state.get("outer", {}), self.params)
        self.params = tensors["params"]
        load_constants(self.policy, tensors["constants"])
        self.iteration, self.env_steps, self.skipped_updates = (counters[name] for name in self.counters)
