"""The training run around a learner: logging, validation, checkpoints, resuming, stopping."""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import threading
from typing import Any, final

import torch
from torch import Tensor

from metarl.algorithms.meta_learner import MetaLearner
from metarl.evaluation import AdaptationCurve, evaluate_adaptation
from metarl.experiment.config import PolicyConfig, TrainConfig, check_device
from metarl.experiment.errors import UserError
from metarl.experiment.files import save_checkpoint
from metarl.experiment.progress import Progress
from metarl.experiment.run_directory import CHECKPOINT_FORMAT, RunDirectory, read_checkpoint
from metarl.noise import VALIDATION
from metarl.policies import GaussianMLPPolicy
from metarl.types import BatchedEnv, TaskFamily

_VALIDATION_TASK_SEED = 2**31 - 1
"""Task seed of the validation draw: far from the seeds people choose for training."""


def make_policy(family: TaskFamily, config: PolicyConfig, seed: int) -> GaussianMLPPolicy:
    """The policy a config describes, its weights drawn from `seed`."""
    return GaussianMLPPolicy(
        family.observation_dim,
        family.action_dim,
        config.hidden_sizes,
        config.activation,
        config.init_std,
        config.min_std,
        config.context_dim,
        torch.Generator().manual_seed(seed),
    )


def make_learner(family: TaskFamily, config: TrainConfig) -> MetaLearner:
    """The learner a config describes, before its first iteration.

    Raises:
        UserError: If its device is not there.
    """
    check_device(config.device)
    policy = make_policy(family, config.policy, config.seed)
    return MetaLearner(family, policy, config.learner, config.seed, config.device, config.num_threads or None)


@final
class Trainer:
    """Runs a learner to its last iteration inside a run directory.

    Args:
        learner: From `make_learner`; built before the run directory is made, so that what cannot be built leaves none.
        config: The run's settings.
        run: Where it is kept.
        resume: Continue from the run's last checkpoint, if it has one yet.

    Raises:
        UserError: If the checkpoint is unusable or is past the configured iterations. The run is as it was then.
    """

    def __init__(self, learner: MetaLearner, config: TrainConfig, run: RunDirectory, resume: bool) -> None:
        self.learner, self.config, self.run = learner, config, run
        self.family = learner.family
        self.best_score = -math.inf
        self.inner_lr = config.learner.inner_lr
        self._validation_env: BatchedEnv | None = None
        self._resumed = resume
        if resume:
            self._restore()

    def _restore(self) -> None:
        last = self.run.checkpoint("last")
        # A run killed before its first checkpoint starts again from nothing, which is where it was. One that has
        # got further and lost its last checkpoint would be thrown away by that.
        if not last.exists() and self.run.num_metrics() > 1:
            raise UserError(
                f"{self.run.path} has {self.run.num_metrics()} iterations of metrics but no checkpoints/last.pt to "
                "continue from; put a copy of another checkpoint there, or train anew with another --run-dir."
            )
        if last.exists():
            state = read_checkpoint(last, self.config, self.learner.params)
            done = state["learner"]["iteration"]
            if done > self.config.iterations:
                raise UserError(f"--iterations is {self.config.iterations}; {self.run.path} has done {done} already.")
            try:
                self.learner.load_state_dict(state["learner"])
            except ValueError as error:
                raise UserError(f"{last} does not fit this run: {error}.") from None
            self.best_score, self.inner_lr = state["best_score"], state["inner_lr"]
        self.run.save_config(self.config)
        changes = self.run.add_session()
        if changes:
            print(
                f"warning: {', '.join(changes)} since this run's last session; it need no longer equal an unbroken "
                "run bit for bit.",
                file=sys.stderr,
            )
        missing = self.run.cut_metrics(self.learner.iteration)
        if missing:
            print(
                f"warning: {self.run.path / 'metrics.jsonl'} lacks {missing} of the {self.learner.iteration} "
                "iterations done; training goes on without them.",
                file=sys.stderr,
            )

    def train(self) -> bool:
        """Trains to the configured iteration. Returns whether it got there: False after Ctrl-C."""
        from torch.utils.tensorboard.writer import SummaryWriter

        start, total = self.learner.iteration, self.config.iterations
        with (
            _StopSignal() as stop,
            Progress(total, start) as progress,
            SummaryWriter(self.run.path, purge_step=start + 1 if self._resumed else None) as events,
        ):
            while self.learner.iteration < total and not stop.requested:
                metrics = self.learner.iterate()
                if self._validation_due():
                    metrics |= self._validate()
                iteration = self.learner.iteration
                self.run.append_metrics({"iteration": iteration, **_without_nonfinite(metrics)})
                for name, value in metrics.items():
                    events.add_scalar(name, value, iteration)
                self._save_checkpoints()
                progress.update(iteration, metrics)
        return self.learner.iteration >= total

    def _validation_due(self) -> bool:
        every = self.config.validation.every
        return every > 0 and (self.learner.iteration % every == 0 or self.learner.iteration == self.config.iterations)

    def _validate(self) -> dict[str, float]:
        """Adaptation on a fixed draw of training tasks; chooses a step size, and saves the best checkpoint so far."""
        validation, settings = self.config.validation, self.config.learner
        if self._validation_env is None:
            # Kept: on a GPU its step is captured once, and memory is not given back at once.
            worlds, threads = settings.worlds_per_task(self.family.horizon), self.learner.chunks.num_threads
            self._validation_env = self.family.batch(
                self._validation_tasks(), worlds, self.config.device, num_threads=threads
            )
        tried = [(self._validation_curve(lr), lr) for lr in validation.inner_lrs or (settings.inner_lr,)]
        scores = [float(curve.mean[1:].mean() if validation.steps else curve.mean[0]) for curve, _ in tried]
        # Written so that a score that is not a number never becomes the best.
        chosen = max(range(len(tried)), key=lambda i: scores[i] if math.isfinite(scores[i]) else -math.inf)
        (curve, self.inner_lr), score = tried[chosen], scores[chosen]
        if score > self.best_score:
            self.best_score = score
            save_checkpoint(self.run.checkpoint("best"), self._state())
        returns = {f"validation/return_step_{k}": float(value) for k, value in enumerate(curve.mean)}
        if validation.inner_lrs:
            returns["validation/inner_lr"] = self.inner_lr
        return returns | {"validation/score": score, "validation/best_score": self.best_score}

    def _validation_tasks(self) -> Tensor:
        return self.family.sample_tasks(self.config.validation.num_tasks, "train", _VALIDATION_TASK_SEED)

    def _validation_curve(self, inner_lr: float) -> AdaptationCurve:
        validation, settings = self.config.validation, self.config.learner
        curve, _ = evaluate_adaptation(
            self.family,
            dataclasses.replace(settings, inner_lr=inner_lr).inner_loop(self.learner.policy),
            self.learner.params,
            self._validation_tasks(),
            num_steps=validation.steps,
            noise_key=(VALIDATION, self.config.seed),
            settings=settings.advantage_settings(),
            episodes_per_task=settings.episodes_per_task,
            steps_per_task=settings.steps_per_task or None,
            device=self.config.device,
            chunks=self.learner.chunks,
            env=self._validation_env,
        )
        return curve

    def _save_checkpoints(self) -> None:
        iteration = self.learner.iteration
        if iteration % self.config.keep_every == 0:
            save_checkpoint(self.run.checkpoint(f"iteration_{iteration}"), self._state())
        if self.best_score == -math.inf and iteration == self.config.iterations:
            save_checkpoint(self.run.checkpoint("best"), self._state())
        save_checkpoint(self.run.checkpoint("last"), self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT,
            "algorithm": self.config.algorithm,
            "family": self.config.family,
            "learner": self.learner.state_dict(),
            "best_score": self.best_score,
            "inner_lr": self.inner_lr,
        }


def _without_nonfinite(metrics: dict[str, float]) -> dict[str, float | None]:
    """NaN and infinity as null: JSON has no word for them."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


class _StopSignal:
    """Ctrl-C or SIGTERM asks for a clean stop after the current iteration; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> _StopSignal:
        # Python delivers signals to the main thread only; training in another one is stopped by whoever runs it.
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nStopping after this iteration (once more to stop at once) ...", file=sys.stderr)
