"""The learner's face of a family: many tasks and episodes stepped together, tensors in and out, no autoreset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, final

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from envs.family import Backend, Capturable, State, TaskFamily, VariesDynamics, VariesFields


@dataclass(frozen=True)
class Step:
    """What one control step returns, every tensor on the environment's device.

    Attributes:
        observation: `[task, episode, obs_dim]`, in the simulator's precision.
        reward: `[task, episode]`, same precision; 0 for an episode that was already over.
        terminated: Boolean `[task, episode]`: ended by the task itself. Stays set until the episode is reset.
        truncated: Boolean `[task, episode]`: cut off at the horizon. Likewise.
    """

    observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


@final
class BatchedEnv:
    """`num_tasks x episodes_per_task` episodes of one family. Lane = task * episodes_per_task + episode.

    An episode that has ended keeps its last observation, earns nothing and, on the CPU, costs no physics until
    it is reset. A world whose physics diverges ends its episode there: the observation and reward of that step
    are NaN and it counts as terminated, so that whoever consumes the data sees it; other worlds are unaffected.

    Args: see `TaskFamily.batch`.
    """

    def __init__(
        self,
        family: TaskFamily,
        tasks: Tensor,
        episodes_per_task: int,
        device: torch.device,
        backend: Backend = "auto",
        num_threads: int | None = None,
    ) -> None:
        if episodes_per_task < 1:
            raise ValueError(f"episodes_per_task is {episodes_per_task}; it must be at least 1.")
        self.family = family
        self.episodes_per_task = episodes_per_task
        _check_tasks(family, tasks, None)
        self.device = device
        self.horizon = family.horizon
        if num_threads is None:
            num_threads = available_cores()
        num_lanes = tasks.shape[0] * episodes_per_task
        self.simulator = family.problem.make_simulator(num_lanes, device, backend, num_threads)
        self._options = {"device": device, "dtype": self.simulator.dtype}
        spec = family.spec
        low = torch.tensor(spec.action_low, **self._options)
        high = torch.tensor(spec.action_high, **self._options)
        self._action_low, self._action_high = low, high
        # Centre and half-range rather than low + (a + 1) * range / 2: for a symmetric range the map is then exact
        # in floating point, which is what lets a lane equal Gymnasium's own environment bit for bit.
        self._action_centre = (low + high) / 2
        self._action_half_range = (high - low) / (2 * spec.action_scale)
        self.num_tasks = tasks.shape[0]
        self._lane_task = torch.empty(num_lanes, family.task_dim, **self._options)
        self.set_tasks(tasks)
        self._elapsed = torch.zeros(num_lanes, dtype=torch.int64, device=device)
        self._terminated = torch.zeros(num_lanes, dtype=torch.bool, device=device)
        self._truncated = torch.zeros(num_lanes, dtype=torch.bool, device=device)
        self._state: State | None = None
        self._observation: Tensor | None = None

    def set_tasks(self, tasks: Tensor) -> None:
        """Gives the worlds new tasks `[task, task_dim]`, as many as before. Reset all of them before the next step."""
        _check_tasks(self.family, tasks, self.num_tasks)
        self.tasks = tasks.to(**self._options)
        # In place: a captured graph goes on reading that memory.
        self._lane_task.copy_(self.tasks.repeat_interleave(self.episodes_per_task, dim=0))
        problem, simulator = self.family.problem, self.simulator
        if hasattr(problem, "model_fields"):
            physics, dynamics = cast("VariesFields", simulator), cast("VariesDynamics", problem)
            physics.set_fields(dynamics.model_fields(self._lane_task, physics.nominal_fields))
        self._state = None

    @property
    def state(self) -> State:
        """Snapshot of every world's state, `[lane, ...]`."""
        if self._state is None:
            raise RuntimeError("The environment has no state yet: call reset() first.")
        return self._state

    def reset(self, seed: int | Sequence[int], lanes: Tensor | None = None) -> Tensor:
        """Starts new episodes and returns the observations `[task, episode, obs_dim]` of all of them.

        Args:
            seed: One seed per task, or one integer from which task i's seed is derived. On the CPU all of a task's
                initial states come from its own stream, so that they do not depend on the other tasks present; on
                CUDA one stream on the device, from the first seed, serves the whole batch.
            lanes: Boolean `[task, episode]`: reset only these. None resets all.

        Raises:
            ValueError: If only some are to be reset where the others have no state under the current tasks: before
                the first reset of all, and after `set_tasks`.
        """
        task_seeds = derive_task_seeds(seed, self.num_tasks)
        if self.device.type == "cpu":
            counts = [self.episodes_per_task] * self.num_tasks
        else:
            counts, task_seeds = [len(self._lane_task)], task_seeds[:1]
        draws = []
        for count, task_seed in zip(counts, task_seeds, strict=True):
            generator = torch.Generator(self.device).manual_seed(task_seed)
            draws.append(self.family.problem.initial_state(count, generator))
        initial = {key: torch.cat([draw[key] for draw in draws]).to(**self._options) for key in draws[0]}
        return self.reset_to(initial, lanes)

    def reset_to(self, initial: State, lanes: Tensor | None = None) -> Tensor:
        """Starts episodes in given states (every entry `[lane, ...]`); otherwise as `reset`."""
        if lanes is not None and self._state is None and not bool(lanes.all()):
            raise ValueError("reset(lanes=...) of some episodes needs one of all first, here and after set_tasks().")
        flat = None if lanes is None else lanes.reshape(-1)
        started = torch.ones_like(self._terminated) if flat is None else flat
        self._elapsed.masked_fill_(started, 0)
        # New tensors: an earlier Step still shows the old ones.
        self._terminated = self._terminated & ~started
        self._truncated = self._truncated & ~started
        self.simulator.reset(initial, flat)
        self._state = self.simulator.state()
        observation = self._observe(self._state)
        if flat is not None and self._observation is not None:
            observation = torch.where(flat[:, None], observation, self._observation)
        self._observation = observation
        return self._unflatten(observation)

    def step(self, actions: Tensor) -> Step:
        """Applies `actions [task, episode, act_dim]` in policy units ([-1, 1] is the range when action_scale is 1)."""
        before = self.state
        assert self._observation is not None
        expected = (self.num_tasks, self.episodes_per_task, self.family.action_dim)
        if actions.shape != expected:
            raise ValueError(
                f"actions has shape {list(actions.shape)}; it must be [task, episode, action] = {list(expected)}."
            )
        live = ~(self._terminated | self._truncated)
        all_live = bool(live.all()) if self.device.type == "cpu" else False
        control = self.applied_action(actions.reshape(-1, self.family.action_dim))
        self.simulator.step(control, None if all_live else live)
        after = self.simulator.state()
        problem = self.family.problem
        observation = self._observe(after)
        reward = problem.reward(before, after, control, self._lane_task)
        self._elapsed += live
        failed = live & (self.simulator.failed() | ~torch.isfinite(observation).all(-1) | ~torch.isfinite(reward))
        terminated = live & (problem.terminated(after, self._lane_task) | failed)
        truncated = live & ~terminated & (self._elapsed >= self.horizon)
        # On a GPU, asking whether there is anything to mask would wait for it; on the CPU it saves the masking.
        if self.device.type != "cpu" or bool(failed.any()):
            observation = observation.masked_fill(failed[:, None], torch.nan)
            reward = reward.masked_fill(failed, torch.nan)
        if not all_live:
            observation = torch.where(live[:, None], observation, self._observation)
            reward = torch.where(live, reward, torch.zeros_like(reward))
        self._terminated = self._terminated | terminated
        self._truncated = self._truncated | truncated
        self._state, self._observation = after, observation
        return Step(
            self._unflatten(observation),
            self._unflatten(reward),
            self._unflatten(self._terminated),
            self._unflatten(self._truncated),
        )

    @property
    def memory_generation(self) -> int:
        """Changes when the physics has moved to other memory: a graph captured before is void."""
        return cast("Capturable", self.simulator).memory_generation

    def capturing(self) -> AbstractContextManager[None]:
        """Put around the body of a `torch.cuda.graph` that steps these worlds."""
        return cast("Capturable", self.simulator).capturing()

    def step_memory(self) -> list[Tensor]:
        """What the next step reads beside the simulator's own state and the tasks; none of it may be changed."""
        assert self._observation is not None
        return [*self.state.values(), self._observation, self._elapsed, self._terminated, self._truncated]

    def move_to(self, memory: list[Tensor]) -> None:
        """Copies `step_memory()` into the given tensors and goes on from there.

        A step makes new tensors; moved back into those it started from, it is one that a CUDA graph can repeat.
        """
        for target, value in zip(memory, self.step_memory(), strict=True):
            target.copy_(value)
        *state, self._observation, self._elapsed, self._terminated, self._truncated = memory
        self._state = dict(zip(self.state, state, strict=True))

    def applied_action(self, actions: Tensor) -> Tensor:
        """Maps policy actions `[..., act_dim]` linearly onto the environment's range and clips them to it."""
        actions = actions.to(**self._options)
        mapped = self._action_centre + self._action_half_range * actions
        return torch.maximum(torch.minimum(mapped, self._action_high), self._action_low)

    def _observe(self, state: State) -> Tensor:
        observation = self.family.problem.observe(state)
        return torch.cat([observation, self._lane_task], dim=-1) if self.family.observe_task else observation

    def _unflatten(self, lanes: Tensor) -> Tensor:
        return lanes.reshape(self.num_tasks, self.episodes_per_task, *lanes.shape[1:])


def _check_tasks(family: TaskFamily, tasks: Tensor, num_tasks: int | None) -> None:
    """Raises ValueError unless `tasks` is `[num_tasks, task_dim]` (None: any number but zero) and finite."""
    fits = tasks.ndim == 2 and tasks.shape[1] == family.task_dim
    if not fits or tasks.shape[0] != (num_tasks or max(1, tasks.shape[0])):
        raise ValueError(
            f"tasks has shape {list(tasks.shape)}; {family.spec.id} takes "
            f"[{num_tasks or 'task'}, {family.task_dim}] ({', '.join(family.spec.task_labels)})."
        )
    if not bool(torch.isfinite(tasks).all()):
        raise ValueError(f"tasks for {family.spec.id} hold a number that is not finite.")


def available_cores() -> int:
    """Cores this process may use. `metarl.parallel` has its own copy: the packages do not import one another."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def derive_task_seeds(seed: int | Sequence[int], num_tasks: int) -> list[int]:
    """One 63-bit noise seed per task: `seed` itself where it is a sequence, else derived from (seed, task index).

    torch's CPU generator keeps the low 32 bits of a seed. Different seeds may therefore, rarely, give equal streams.
    """
    if not isinstance(seed, int | np.integer):
        seeds = [int(s) for s in seed]
        if len(seeds) != num_tasks:
            raise ValueError(f"{len(seeds)} seeds were given for {num_tasks} tasks; give one per task, or one integer.")
        return seeds
    return [int(np.random.SeedSequence((seed, i)).generate_state(1, np.uint64)[0] >> 1) for i in range(num_tasks)]
