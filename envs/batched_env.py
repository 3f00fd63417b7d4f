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

from envs.checks import (
    check_count,
    check_fields,
    check_finite_start,
    check_lanes,
    check_state,
    check_tasks,
    check_values,
)

if TYPE_CHECKING:
    from envs.family import Backend, Capturable, Simulator, State, TaskFamily, VariesDynamics, VariesFields


@dataclass(frozen=True)
class Step:
    """What one control step returns, every tensor on the environment's device: the caller's own, to keep and to change.

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

    What it hands out is the caller's own, and nothing that it is handed is kept: writing into either moves no world.

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
        check_count("episodes_per_task", episodes_per_task)
        self.family = family
        self.episodes_per_task = episodes_per_task
        check_tasks(family.spec, tasks, None)
        self.device = device
        self.horizon = family.horizon
        if num_threads is None:
            num_threads = available_cores()
        check_count("num_threads", num_threads)
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
        self._num_lanes = num_lanes
        self._observed = (num_lanes, len(spec.observation_labels))
        self._lane_task = torch.empty(num_lanes, family.task_dim, **self._options)
        self.set_tasks(tasks)
        self._elapsed = torch.zeros(num_lanes, dtype=torch.int64, device=device)
        self._terminated = torch.zeros(num_lanes, dtype=torch.bool, device=device)
        self._truncated = torch.zeros(num_lanes, dtype=torch.bool, device=device)
        self._state: State | None = None
        self._observation: Tensor | None = None
        self._has_started = False

    def set_tasks(self, tasks: Tensor, which: Tensor | None = None) -> None:
        """Gives the worlds new tasks `[task, task_dim]`, as many as before. Reset all of them before the next step.

        Args:
            tasks: `[task, task_dim]`.
            which: Boolean `[task]`: only these change, and only their worlds are to be reset. None changes all.
        """
        check_tasks(self.family.spec, tasks, self.num_tasks)
        tasks = tasks.detach().to(**self._options, copy=True)
        self._tasks = tasks if which is None else torch.where(which[:, None], tasks, self._tasks)
        # In place: a captured graph goes on reading that memory.
        self._lane_task.copy_(self._tasks.repeat_interleave(self.episodes_per_task, dim=0))
        change_dynamics(self.family, self.simulator, self._lane_task)
        if which is None:
            self._state = None

    @property
    def tasks(self) -> Tensor:
        """The current tasks `[task, task_dim]`, in the simulator's precision; `set_tasks` changes them."""
        return self._tasks.clone()

    @property
    def state(self) -> State:
        """Snapshot of every world's state, `[lane, ...]`."""
        return _copy(self._require_state())

    def _require_state(self) -> State:
        if self._state is None:
            raise RuntimeError("The environment has no state yet: call reset() first.")
        return self._state

    @torch.no_grad()
    def reset(self, seed: int | Sequence[int], lanes: Tensor | None = None) -> Tensor:
        """Starts new episodes and returns the observations `[task, episode, obs_dim]` of all of them.

        Args:
            seed: One seed per task, or one integer from which task i's seed is derived. On the CPU all of a task's
                initial states come from its own stream, so that they do not depend on the other tasks present; on
                CUDA one stream on the device, from the first seed, serves the whole batch.
            lanes: Boolean `[task, episode]`: reset only these. None resets all.

        Raises:
            ValueError: If only some are to be reset where the others have no state under the current tasks: before
                the first reset of all, and after `set_tasks`. If the family's initial state is not what `Problem` says.
        """
        task_seeds = derive_task_seeds(seed, self.num_tasks)
        if self.device.type == "cpu":
            counts = [self.episodes_per_task] * self.num_tasks
        else:
            counts, task_seeds = [len(self._lane_task)], task_seeds[:1]
        spec, known, draws = self.family.spec, self._state or self.simulator.state(), []
        for count, task_seed in zip(counts, task_seeds, strict=True):
            generator = torch.Generator(self.device).manual_seed(task_seed)
            draw = self.family.problem.initial_state(count, generator)
            check_state(spec, "initial_state()", draw, count, known)
            draws.append(draw)
        initial = {key: torch.cat([draw[key] for draw in draws]) for key in draws[0]}
        if not self._has_started:
            check_finite_start(spec, initial)
        return self.reset_to(initial, lanes)

    @torch.no_grad()
    def reset_to(self, initial: State, lanes: Tensor | None = None) -> Tensor:
        """Starts episodes in given states (every entry `[lane, ...]`); otherwise as `reset`."""
        known = self._state or self.simulator.state()
        check_state(self.family.spec, "the state to start from", initial, self._num_lanes, known)
        if lanes is not None:
            check_lanes(lanes, (self.num_tasks, self.episodes_per_task))
        if lanes is not None and self._state is None and not bool(lanes.all()):
            raise ValueError("reset(lanes=...) of some episodes needs one of all first, here and after set_tasks().")
        flat = None if lanes is None else lanes.reshape(-1)
        started = torch.ones_like(self._terminated) if flat is None else flat
        self._elapsed.masked_fill_(started, 0)
        # New tensors: an earlier Step still shows the old ones.
        self._terminated = self._terminated & ~started
        self._truncated = self._truncated & ~started
        self.simulator.reset({key: value.detach().to(**self._options) for key, value in initial.items()}, flat)
        self._state = self.simulator.state()
        observation = self._observe(self._state)
        if flat is not None and self._observation is not None:
            observation = torch.where(flat[:, None], observation, self._observation)
        self._observation = observation
        self._has_started = True
        return self._unflatten(observation.clone())

    @torch.no_grad()
    def step(self, actions: Tensor) -> Step:
        """Applies `actions [task, episode, act_dim]` in policy units ([-1, 1] is the range when action_scale is 1)."""
        before = self._require_state()
        assert self._observation is not None
        expected = (self.num_tasks, self.episodes_per_task, self.family.action_dim)
        if not isinstance(actions, Tensor) or actions.shape != expected:
            given = f"shape {list(actions.shape)}" if isinstance(actions, Tensor) else f"type {type(actions).__name__}"
            raise ValueError(f"actions has {given}; it must be a tensor [task, episode, action] = {list(expected)}.")
        live = ~(self._terminated | self._truncated)
        all_live = bool(live.all()) if self.device.type == "cpu" else False
        control = self.applied_action(actions.detach().reshape(-1, self.family.action_dim))
        self.simulator.step(control, None if all_live else live)
        after = self.simulator.state()
        observation = self._observe(after)
        reward, ended = self._judge(before, after, control)
        self._elapsed += live
        failed = live & (self.simulator.failed() | ~torch.isfinite(observation).all(-1) | ~torch.isfinite(reward))
        terminated = live & (ended | failed)
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
        # Copies: the next step still reads these, and a reward may be a view of the state.
        handed_out = (observation, reward, self._terminated, self._truncated)
        return Step(*(self._unflatten(value.clone()) for value in handed_out))

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
        return [*self._require_state().values(), self._observation, self._elapsed, self._terminated, self._truncated]

    def move_to(self, memory: list[Tensor]) -> None:
        """Copies `step_memory()` into the given tensors and goes on from there.

        A step makes new tensors; moved back into those it started from, it is one that a CUDA graph can repeat.
        """
        for target, value in zip(memory, self.step_memory(), strict=True):
            target.copy_(value)
        *state, self._observation, self._elapsed, self._terminated, self._truncated = memory
        self._state = dict(zip(self._require_state(), state, strict=True))

    def applied_action(self, actions: Tensor) -> Tensor:
        """Maps policy actions `[..., act_dim]` linearly onto the environment's range and clips them to it."""
        actions = actions.to(**self._options)
        mapped = self._action_centre + self._action_half_range * actions
        return torch.maximum(torch.minimum(mapped, self._action_high), self._action_low)

    def _observe(self, state: State) -> Tensor:
        observation = self.family.problem.observe(state)
        check_values(self.family.spec, "observe", observation, self._observed, self.device)
        observation = observation.to(self.simulator.dtype)
        return torch.cat([observation, self._lane_task], dim=-1) if self.family.observe_task else observation

    def _judge(self, before: State, after: State, control: Tensor) -> tuple[Tensor, Tensor]:
        """Reward and end of the episode, `[lane]` each, as the family says."""
        problem, spec, shape = self.family.problem, self.family.spec, self._observed[:1]
        reward = problem.reward(before, after, control, self._lane_task)
        check_values(spec, "reward", reward, shape, self.device)
        ended = problem.terminated(after, self._lane_task)
        check_values(spec, "terminated", ended, shape, self.device, boolean=True)
        return reward.to(self.simulator.dtype), ended

    def _unflatten(self, lanes: Tensor) -> Tensor:
        return lanes.reshape(self.num_tasks, self.episodes_per_task, *lanes.shape[1:])


def _copy(state: State) -> State:
    return {name: value.clone() for name, value in state.items()}


def change_dynamics(family: TaskFamily, simulator: Simulator, lane_task: Tensor) -> None:
    """Gives every world the model fields that its task `[lane, task_dim]` asks for, where tasks change the physics."""
    problem = family.problem
    if hasattr(problem, "model_fields"):
        physics, dynamics = cast("VariesFields", simulator), cast("VariesDynamics", problem)
        nominal = _copy(getattr(physics, "nominal_fields", {}))
        fields = dynamics.model_fields(lane_task.clone(), nominal)
        check_fields(family.spec, fields, physics.nominal_fields, len(lane_task))
        physics.set_fields(fields)


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
