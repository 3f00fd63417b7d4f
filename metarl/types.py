"""The one data container, and the shapes that `envs` and `metarl` agree on without importing one another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Params = dict[str, Tensor]
"""Parameters by name. Shared parameters have the module's own shapes; per-task ones a leading task axis."""

DistParams = Any
"""Parameters of an action distribution: `ops.gaussian.Gaussian` or `ops.categorical.Categorical`."""


@dataclass(frozen=True)
class Rollout:
    """Recorded episodes, layout `[task, episode, time, ...]`, float32 unless said otherwise.

    Padding (steps after an episode's end, and whole episodes where tasks have different numbers of them) has
    `valid` False; whatever stands there, NaN included, changes no result.

    Attributes:
        observations: `[task, episode, time, obs_dim]`, what the policy saw before acting.
        actions: `[task, episode, time, act_dim]` in policy units (int64 `[task, episode, time]` if categorical).
        rewards: `[task, episode, time]`.
        terminated: Boolean `[task, episode, time]`: the task itself ended the episode with this step.
        truncated: Boolean `[task, episode, time]`: the horizon cut the episode off after this step.
        valid: Boolean `[task, episode, time]`: the step was taken.
        final_observation: `[task, episode, obs_dim]`, seen after the last valid step.
        log_prob: `[task, episode, time]` of the action under the behaviour policy.
        dist_params: The behaviour policy's distribution parameters, `[task, episode, time, ...]` each.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    final_observation: Tensor
    log_prob: Tensor
    dist_params: DistParams

    def episode_returns(self) -> Tensor:
        """Undiscounted return `[task, episode]` of each episode (0 for padding)."""
        return torch.where(self.valid, self.rewards, 0.0).sum(-1)

    def mean_return(self) -> Tensor:
        """Mean undiscounted return `[task]` over a task's episodes."""
        return self.episode_returns().sum(-1) / self.valid.any(-1).sum(-1)

    def num_steps(self) -> int:
        """Environment steps taken, padding not counted."""
        return int(self.valid.sum())

    def num_nonfinite(self) -> int:
        """Recorded steps whose observation or reward is not finite: diverged physics or a diverged policy."""
        finite = torch.isfinite(self.rewards) & torch.isfinite(self.observations).all(-1)
        return int((self.valid & ~finite).sum())


torch.export.register_dataclass(Rollout)


class Samples(NamedTuple):
    """What a policy-gradient loss reads: a rollout's steps as rows, `[task, row, ...]`.

    Attributes:
        observations: `[task, row, obs_dim]`.
        actions: `[task, row, act_dim]` (int64 `[task, row]` if categorical).
        advantages: `[task, row]`, normalised per task.
        valid: Boolean `[task, row]`; tasks with fewer steps are padded at the end, with zeros (a network's gradient
            through a masked row is 0 times its input, so that must be finite).
        starts: Boolean `[task, row]`: first steps of episodes; an episode's rows stand together, in order of time.
        log_prob: `[task, row]` under the behaviour policy.
        dist_params: Behaviour distribution parameters, `[task, row, ...]`.
    """

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    valid: Tensor
    starts: Tensor
    log_prob: Tensor
    dist_params: DistParams


class Distribution(Protocol):
    """Action distributions as functions of their parameters: the modules `ops.gaussian` and `ops.categorical`."""

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor: ...
    def sample(self, params: DistParams, noise: Tensor) -> Tensor: ...
    def mode(self, params: DistParams) -> Tensor: ...
    def entropy(self, params: DistParams) -> Tensor: ...
    def kl(self, old: DistParams, new: DistParams) -> Tensor: ...
    def fisher_product(self, params: DistParams, tangent: DistParams) -> DistParams: ...
    def draw_noise(self, shape: Sequence[int], action_dim: int, generator: torch.Generator) -> Tensor: ...


class Policy(Protocol):
    """A policy module: `forward(observations [..., obs_dim]) -> DistParams`, and which distribution those belong to.

    A module whose `forward` also works where every parameter and the observations lead with a task axis may say so with
    `takes_task_axis = True`; it then runs without `vmap`.
    """

    distribution: Distribution
    action_dim: int

    def __call__(self, observations: Tensor) -> DistParams: ...
    def named_parameters(self) -> Any: ...


class EnvStep(Protocol):
    """What `BatchedEnv.step` returns; every tensor `[task, episode, ...]`."""

    @property
    def observation(self) -> Tensor: ...
    @property
    def reward(self) -> Tensor: ...
    @property
    def terminated(self) -> Tensor: ...
    @property
    def truncated(self) -> Tensor: ...


class BatchedEnv(Protocol):
    """Tasks x episodes stepped together; `envs.batched_env.BatchedEnv` documents the behaviour."""

    num_tasks: int
    episodes_per_task: int
    horizon: int
    device: torch.device

    def set_tasks(self, tasks: Tensor) -> None: ...
    def reset(self, seed: int | Sequence[int], lanes: Tensor | None = None) -> Tensor: ...
    def step(self, actions: Tensor) -> EnvStep: ...


class CapturableEnv(BatchedEnv, Protocol):
    """What an environment on CUDA offers beside, so that its steps can be captured (`metarl.step_graph`)."""

    @property
    def memory_generation(self) -> int: ...
    def capturing(self) -> AbstractContextManager[None]: ...
    def step_memory(self) -> list[Tensor]: ...
    def move_to(self, memory: list[Tensor]) -> None: ...


class PublishedCurve(Protocol):
    """A published adaptation curve; None where a step was not reported."""

    @property
    def label(self) -> str: ...
    @property
    def returns(self) -> Sequence[float | None]: ...
    @property
    def source(self) -> str: ...


class FamilySpec(Protocol):
    """What is known of a family before any task is drawn; `envs.family.FamilySpec` documents the fields."""

    @property
    def id(self) -> str: ...
    @property
    def dt(self) -> float: ...
    @property
    def action_scale(self) -> float: ...
    @property
    def observation_labels(self) -> tuple[str, ...]: ...
    @property
    def task_labels(self) -> tuple[str, ...]: ...
    @property
    def task_units(self) -> tuple[str, ...]: ...
    @property
    def published(self) -> Sequence[PublishedCurve]: ...


class TaskFamily(Protocol):
    """A parameterized family of tasks; `envs.family.TaskFamily` documents the behaviour."""

    @property
    def spec(self) -> FamilySpec: ...

    horizon: int
    task_dim: int
    observation_dim: int
    action_dim: int

    def sample_tasks(
        self, num_tasks: int, split: Literal["train", "test"] = "train", seed: int = 0, start: int = 0
    ) -> Tensor: ...

    def published_tasks(self) -> Tensor | None: ...

    def batch(
        self,
        tasks: Tensor,
        episodes_per_task: int,
        device: str | torch.device = "cpu",
        *,
        num_threads: int | None = None,
    ) -> BatchedEnv: ...
