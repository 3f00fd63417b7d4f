"""A reinforcement-learning run: its policy, its learner and what its best checkpoint is chosen by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from metarl.algorithms.meta_learner import MetaLearner
from metarl.evaluation import AdaptationCurve, evaluate_adaptation
from metarl.experiment.config import PolicyConfig, TrainConfig, check_device
from metarl.experiment.errors import UserError
from metarl.experiment.run_directory import RunDirectory
from metarl.experiment.trainer import Trainer
from metarl.noise import VALIDATION
from metarl.policies import GaussianMLPPolicy
from metarl.types import BatchedEnv, TaskFamily

VALIDATION_TASK_SEED = 2**31 - 1
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
    """The learner a config describes, with its worlds, before its first iteration.

    Raises:
        UserError: If its device is not there.
    """
    check_device(config.device)
    policy = make_policy(family, config.policy, config.seed)
    learner = MetaLearner(family, policy, config.learner, config.seed, config.device, config.num_threads or None)
    learner.prepare()
    return learner


def make_trainer(learner: MetaLearner, config: TrainConfig, run: RunDirectory, resume: bool) -> Trainer:
    """The training of a learner from `make_learner`; see `Trainer`."""
    return Trainer(learner, PolicyValidation(learner, config), config, run, resume, config.identity, describe_rollouts)


def describe_rollouts(metrics: Mapping[str, float]) -> str:
    """Returns before and after adaptation, KL and speed: short enough for 80 columns with three returns."""
    steps = sorted((k for k in metrics if k.startswith("return/step_")), key=lambda k: int(k.rsplit("_", 1)[1]))
    returns = " -> ".join(f"{metrics[k]:.1f}" for k in steps)
    kl = f"KL {metrics['kl']:.4f}  " if "kl" in metrics else ""
    return f"return {returns}  {kl}{metrics['time/env_steps_per_second'] / 1000:.1f}k steps/s"


def saved_inner_lr(state: dict[str, Any], config: TrainConfig, source: str) -> float:
    """The inner step size that validation had chosen in a checkpoint; runs older than that choice have the learner's.

    Raises:
        UserError: If it is not a step size.
    """
    inner_lr = state.get("inner_lr", config.learner.inner_lr)
    if type(inner_lr) is not float or not 0 < inner_lr < math.inf:
        raise UserError(f"{source} is not a usable checkpoint: inner_lr is missing or not a number.")
    return inner_lr


@final
class PolicyValidation:
    """Adaptation on a fixed draw of training tasks; chooses the inner step size where there is a choice.

    Args:
        learner: What is judged.
        config: The run's settings.

    Attributes:
        inner_lr: The step size chosen last.
    """

    def __init__(self, learner: MetaLearner, config: TrainConfig) -> None:
        self.inner_lr = config.learner.inner_lr
        self._learner, self._config = learner, config
        self._env: BatchedEnv | None = None

    def __call__(self) -> tuple[float, dict[str, float]]:
        """See `Validation`."""
        validation, settings, family = self._config.validation, self._config.learner, self._learner.family
        if self._env is None:
            # Kept: on a GPU its step is captured once, and memory is not given back at once.
            worlds, threads = settings.worlds_per_task(family.horizon), self._learner.chunks.num_threads
            self._env = family.batch(self._tasks(), worlds, self._config.device, num_threads=threads)
        tried = [(self._curve(lr), lr) for lr in validation.inner_lrs or (settings.inner_lr,)]
        scores = [float(curve.mean[1:].mean() if validation.steps else curve.mean[0]) for curve, _ in tried]
        # Written so that a score that is not a number is never chosen before one that is.
        chosen = max(range(len(tried)), key=lambda i: scores[i] if math.isfinite(scores[i]) else -math.inf)
        curve, self.inner_lr = tried[chosen]
        metrics = {f"validation/return_step_{k}": float(value) for k, value in enumerate(curve.mean)}
        if validation.inner_lrs:
            metrics["validation/inner_lr"] = self.inner_lr
        return scores[chosen], metrics

    def state_dict(self) -> dict[str, Any]:
        """See `Validation`."""
        return {"inner_lr": self.inner_lr}

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """See `Validation`."""
        self.inner_lr = saved_inner_lr(state, self._config, source)

    def _tasks(self) -> Tensor:
        return self._learner.family.sample_tasks(self._config.validation.num_tasks, "train", VALIDATION_TASK_SEED)

    def _curve(self, inner_lr: float) -> AdaptationCurve:
        settings = self._config.learner
        curve, _ = evaluate_adaptation(
            self._learner.family,
            dataclasses.replace(settings, inner_lr=inner_lr).inner_loop(self._learner.policy),
            self._learner.params,
            self._tasks(),
            num_steps=self._config.validation.steps,
            noise_key=(VALIDATION, self._config.seed),
            settings=settings.advantage_settings(),
            episodes_per_task=settings.episodes_per_task,
            steps_per_task=settings.steps_per_task or None,
            device=self._config.device,
            chunks=self._learner.chunks,
            env=self._env,
        )
        return curve
