"""Adaptation curves: the return before each inner step and after the last, on given tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.collect import worlds_for_budget
from metarl.parallel import TaskChunks
from metarl.policy_gradient import PolicyInnerLoop
from metarl.rollout_adaptation import AdvantageSettings, RolloutAdaptation, adapt_on_rollouts
from metarl.types import BatchedEnv, Params, TaskFamily


@dataclass(frozen=True)
class AdaptationCurve:
    """Returns of every task at every adaptation step; of few-shot tasks, the scores of their queries.

    Attributes:
        returns: Undiscounted return `[task, K + 1]`, mean over a task's episodes; column k was collected after k
            inner steps, before step k + 1. Of a few-shot task the share of right answers, or the mean squared error.
        env_steps: Environment steps it took.
        nonfinite_steps: How many of them were not finite: returns that hold one mean little.
        episodes: Episodes of a task before the first inner step, mean over tasks.
    """

    returns: Tensor
    env_steps: int
    nonfinite_steps: int = 0
    episodes: float = 0.0

    @property
    def mean(self) -> Tensor:
        """Mean over tasks `[K + 1]`."""
        return self.returns.mean(0)

    @property
    def ci95(self) -> Tensor:
        """Half-width `[K + 1]` of the 95 % interval over tasks: 1.96 standard deviations / sqrt(tasks)."""
        if len(self.returns) < 2:
            return torch.full_like(self.mean, torch.nan)
        return 1.96 * self.returns.std(0) / len(self.returns) ** 0.5


def evaluate_adaptation(
    family: TaskFamily,
    inner: PolicyInnerLoop,
    meta: Params,
    tasks: Tensor,
    *,
    num_steps: int,
    noise_key: Sequence[int],
    settings: AdvantageSettings,
    episodes_per_task: int = 20,
    steps_per_task: int | None = None,
    device: str | torch.device = "cpu",
    chunks: TaskChunks | None = None,
    env: BatchedEnv | None = None,
    keep_rollouts: bool = False,
) -> tuple[AdaptationCurve, RolloutAdaptation]:
    """Adapts to `tasks` and measures every step.

    Args:
        family: Task family.
        inner: The inner loop.
        meta: Its meta-parameters.
        tasks: `[task, task_dim]`.
        num_steps: Inner steps K at test time; need not be the number used in training.
        noise_key: Key of the random streams.
        settings: Advantage estimation.
        episodes_per_task: Episodes per task and step.
        steps_per_task: Budget of time steps per task and step instead.
        device: Where it runs.
        chunks: How inner gradients are split over threads; environments take as many. None takes the available cores.
        env: Worlds of an earlier evaluation with as many tasks and episodes on the same device, to be used again.
        keep_rollouts: Keep every rollout, K + 1 times all steps; without it memory does not grow with K.

    Returns:
        The curve, and what was kept on the way.

    Raises:
        ValueError: If a number is out of range, or `env` has other numbers of worlds or another device.
    """
    if episodes_per_task < 1 or (steps_per_task is not None and steps_per_task < 1):
        raise ValueError(
            f"episodes_per_task is {episodes_per_task} and steps_per_task {steps_per_task}; each must be positive."
        )
    device = torch.device(device)
    if steps_per_task is not None:
        episodes_per_task = worlds_for_budget(steps_per_task, family.horizon)
    if env is None:
        env = family.batch(tasks, episodes_per_task, device, num_threads=chunks.num_threads if chunks else None)
    else:
        has, wanted = (env.episodes_per_task, env.device.type), (episodes_per_task, device.type)
        if has != wanted:
            raise ValueError(
                f"env has {has[0]} worlds per task on {has[1]}; this evaluation takes {wanted[0]} on {wanted[1]}."
            )
        env.set_tasks(tasks)
    data = adapt_on_rollouts(
        env,
        inner,
        {name: value.to(device) for name, value in meta.items()},
        num_steps=num_steps,
        noise_key=noise_key,
        settings=settings,
        steps_per_task=steps_per_task,
        chunks=chunks or TaskChunks(),
        keep=keep_rollouts,
    )
    returns = torch.stack(data.returns, dim=1).double().cpu()
    return AdaptationCurve(returns, data.env_steps, data.nonfinite_steps, data.episodes), data
