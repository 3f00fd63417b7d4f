"""One world of a family with NumPy in and out: a lane of `BatchedEnv`, bit for bit, at a fraction of its cost.

A tensor operation costs microseconds however few numbers it works on, and bookkeeping for many worlds takes dozens of
them. Here only the family's own functions and the physics work on tensors; the rest is plain Python.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

import numpy as np
import torch
from torch import Tensor

from envs.batched_env import change_dynamics
from envs.checks import check_finite_start, check_state, check_tasks, check_values

if TYPE_CHECKING:
    from envs.family import DescribesSteps, State, TaskFamily

_CPU = torch.device("cpu")


class Outcome(NamedTuple):
    """What one control step returns.

    Attributes:
        observation: `[obs_dim]`, the caller's own.
        reward: 0 for an episode that was already over.
        terminated: The task itself has ended the episode, by now.
        truncated: The horizon has cut it off, by now.
        measures: Label -> quantity of the step, as `Problem.describe_step` gives it; empty where it does not.
    """

    observation: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    measures: dict[str, float]


@final
class World:
    """One world on the CPU; `BatchedEnv` documents what happens to it.

    Args:
        family: Its family.
    """

    def __init__(self, family: TaskFamily) -> None:
        self.family = family
        self.simulator = family.problem.make_simulator(1, _CPU, "auto", 1)
        dtype = torch.empty(0, dtype=self.simulator.dtype).numpy().dtype
        low, high = (np.array(ends, dtype) for ends in (family.spec.action_low, family.spec.action_high))
        # As in `BatchedEnv`, which says why.
        self._low, self._high, self._centre = low, high, (low + high) / 2
        self._half_range = (high - low) / (2 * family.spec.action_scale)
        self._task: Tensor | None = None
        self._state: State | None = None
        self._observation = np.empty(0)
        self._elapsed = 0
        self._terminated = self._truncated = False
        self._describe = hasattr(family.problem, "describe_step")
        self._is_checked = False  # whether the family's author returned what `Problem` says, in a first step

    @property
    def task(self) -> Tensor | None:
        """The task `[1, task_dim]`; None before there is one."""
        return None if self._task is None else self._task.clone()

    def set_task(self, task: Tensor) -> None:
        """Gives the world a task `[1, task_dim]`: reset it before the next step."""
        check_tasks(self.family.spec, task, 1)
        self._task = task.detach().to(self.simulator.dtype, copy=True)
        self._state = None
        change_dynamics(self.family, self.simulator, self._task)

    @property
    def state(self) -> State:
        """Snapshot of the state, every entry `[1, ...]`."""
        if self._state is None:
            raise RuntimeError("The environment has no state yet: call reset() first.")
        return {name: value.clone() for name, value in self._state.items()}

    def reset(self, generator: torch.Generator) -> np.ndarray:
        """Starts an episode in a state of the family's draw; returns the observation `[obs_dim]`."""
        initial = self.family.problem.initial_state(1, generator)
        if not self._is_checked:
            check_state(self.family.spec, "initial_state()", initial, 1, self.simulator.state())
            check_finite_start(self.family.spec, initial)
        self.simulator.reset({name: value.to(self.simulator.dtype) for name, value in initial.items()}, None)
        self._elapsed, self._terminated, self._truncated = 0, False, False
        self._state = self.simulator.state()
        self._observation = self._observe(self._state)
        return self._observation.copy()

    def step(self, action: np.ndarray) -> Outcome:
        """Applies `action [act_dim]`, float64 in policy units."""
        before, task, problem = self._state, self._task, self.family.problem
        if before is None or task is None:
            raise RuntimeError("The environment has no state yet: call reset() first.")
        if self._terminated or self._truncated:
            measures = self._measures(before, before, task)
            return Outcome(self._observation.copy(), 0.0, self._terminated, self._truncated, measures)
        mapped = self._centre + self._half_range * action.astype(self._low.dtype)
        control = torch.from_numpy(np.maximum(np.minimum(mapped, self._high), self._low)[None])
        self.simulator.step(control, None)
        after = self.simulator.state()
        self._observation = self._observe(after)
        reward, ended = problem.reward(before, after, control, task), problem.terminated(after, task)
        if not self._is_checked:
            check_values(self.family.spec, "reward", reward, (1,), _CPU)
            check_values(self.family.spec, "terminated", ended, (1,), _CPU, boolean=True)
            self._is_checked = True
        earned = reward.to(self.simulator.dtype).item()
        failed = self.simulator.failed().item() or not math.isfinite(earned)
        if failed or not np.isfinite(self._observation).all():
            self._observation, earned, failed = np.full_like(self._observation, np.nan), math.nan, True
        self._elapsed += 1
        self._terminated = bool(failed or ended.item())
        self._truncated = not self._terminated and self._elapsed >= self.family.horizon
        self._state = after
        measures = self._measures(before, after, task)
        return Outcome(self._observation.copy(), earned, self._terminated, self._truncated, measures)

    def _observe(self, state: State) -> np.ndarray:
        observation = self.family.problem.observe(state)
        if not self._is_checked:
            check_values(self.family.spec, "observe", observation, (1, len(self.family.spec.observation_labels)), _CPU)
        row = observation.to(self.simulator.dtype).numpy()[0]
        if self.family.observe_task and self._task is not None:
            return np.concatenate([row, self._task[0].numpy()])
        return row

    def _measures(self, before: State, after: State, task: Tensor) -> dict[str, float]:
        if not self._describe:
            return {}
        measured: Any = cast("DescribesSteps", self.family.problem).describe_step(before, after, task)
        return {label: quantity.value.item() for label, quantity in measured.items()}
