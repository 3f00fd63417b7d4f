"""One world of a family with NumPy in and out: a lane of `BatchedEnv`, bit for bit, at a fraction of its cost.

A tensor operation costs microseconds however few numbers it works on, and more after physics has taken the caches. Here
the family's own functions get arrays, where they take them, and the bookkeeping is plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

import numpy as np
import torch
from torch import Tensor

from envs.batched_env import change_dynamics
from envs.checks import check_finite_start, check_state, check_tasks, check_values

if TYPE_CHECKING:
    from envs.family import DescribesSteps, SharesArrays, Simulator, State, TaskFamily

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
        shares_arrays = hasattr(self.simulator, "step_arrays")
        self._arrays = cast("SharesArrays", self.simulator) if shares_arrays else _SharedTensors(self.simulator)
        dtype = torch.empty(0, dtype=self.simulator.dtype).numpy().dtype
        low, high = (np.array(ends, dtype) for ends in (family.spec.action_low, family.spec.action_high))
        # As in `BatchedEnv`, which says why.
        self._low, self._high, self._centre = low, high, (low + high) / 2
        self._half_range = (high - low) / (2 * family.spec.action_scale)
        self._takes_arrays = getattr(family.problem, "takes_arrays", False)
        self._describe = hasattr(family.problem, "describe_step")
        self._task: Tensor | None = None
        # Task and state as the family's functions take them: arrays or tensors.
        self._shown_task: Any = None
        self._shown: Any = None
        self._observation = np.empty(0)
        self._elapsed = 0
        self._terminated = self._truncated = False
        self._is_checked = False  # whether the family's author returned what `Problem` says, in a first step

    @property
    def task(self) -> Tensor | None:
        """The task `[1, task_dim]`; None before there is one."""
        return None if self._task is None else self._task.clone()

    def set_task(self, task: Tensor) -> None:
        """Gives the world a task `[1, task_dim]`: reset it before the next step."""
        check_tasks(self.family.spec, task, 1)
        self._task = task.detach().to(self.simulator.dtype, copy=True)
        self._shown_task = self._show(self._task.numpy())
        self._shown = None
        change_dynamics(self.family, self.simulator, self._task)

    @property
    def state(self) -> State:
        """Snapshot of the state, every entry `[1, ...]`."""
        if self._shown is None:
            raise RuntimeError("The environment has no state yet: call reset() first.")
        return {name: _as_tensor(value).clone() for name, value in self._shown.items()}

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> np.ndarray:
        """Starts an episode in a state of the family's draw; returns the observation `[obs_dim]`."""
        initial = self.family.problem.initial_state(1, generator)
        if not self._is_checked:
            check_state(self.family.spec, "initial_state()", initial, 1, self.simulator.state())
            check_finite_start(self.family.spec, initial)
        self.simulator.reset({name: value.to(self.simulator.dtype) for name, value in initial.items()}, None)
        self._elapsed, self._terminated, self._truncated = 0, False, False
        self._shown = self._look()
        with self._quiet():
            self._observation = self._observe(self._shown)
        return self._observation.copy()

    def step(self, action: np.ndarray) -> Outcome:
        """Applies `action [act_dim]`, float64 in policy units."""
        before, task = self._shown, self._shown_task
        if before is None:
            raise RuntimeError("The environment has no state yet: call reset() first.")
        if self._terminated or self._truncated:
            with self._quiet():
                measures = self._measures(before, before, task)
            return Outcome(self._observation.copy(), 0.0, self._terminated, self._truncated, measures)
        mapped = self._centre + self._half_range * action.astype(self._low.dtype)
        applied = np.maximum(np.minimum(mapped, self._high), self._low)[None]
        self._arrays.step_arrays(applied)
        self._shown = after = self._look()
        with self._quiet():
            self._observation = self._observe(after)
            reward, ended = self._judge(before, after, self._show(applied), task)
            measures = self._measures(before, after, task)
            finite = math.isfinite(reward) and _all_finite(self._observation)
        if not finite or self._arrays.failed_array()[0]:
            self._observation, reward, ended = np.full_like(self._observation, np.nan), math.nan, True
        self._elapsed += 1
        self._terminated = ended
        self._truncated = not ended and self._elapsed >= self.family.horizon
        return Outcome(self._observation.copy(), reward, self._terminated, self._truncated, measures)

    def _look(self) -> Any:
        """A snapshot of the simulator as the family's functions take it."""
        state = self._arrays.state_arrays()
        return state if self._takes_arrays else {name: torch.from_numpy(value) for name, value in state.items()}

    def _show(self, values: np.ndarray) -> Any:
        return values if self._takes_arrays else torch.from_numpy(values)

    def _quiet(self) -> AbstractContextManager[Any]:
        """For the family's functions: arrays say no more than tensors of what is not finite; tensors keep no graph."""
        return np.errstate(all="ignore") if self._takes_arrays else torch.no_grad()

    def _observe(self, state: Mapping[str, Any]) -> np.ndarray:
        observation: Any = self.family.problem.observe(state)
        if not self._is_checked:
            shape = (1, len(self.family.spec.observation_labels))
            check_values(self.family.spec, "observe", _as_tensor(observation), shape, _CPU)
        row = _as_array(observation)[0].astype(self._low.dtype, copy=False)
        return (
            np.concatenate([row, self._task[0].numpy()]) if self.family.observe_task and self._task is not None else row
        )

    def _judge(self, before: Any, after: Any, action: Any, task: Any) -> tuple[float, bool]:
        problem = self.family.problem
        reward, ended = problem.reward(before, after, action, task), problem.terminated(after, task)
        if not self._is_checked:
            check_values(self.family.spec, "reward", _as_tensor(reward), (1,), _CPU)
            check_values(self.family.spec, "terminated", _as_tensor(ended), (1,), _CPU, boolean=True)
            self._is_checked = True
        return _as_array(reward).astype(self._low.dtype, copy=False).item(), bool(ended.item())

    def _measures(self, before: Any, after: Any, task: Any) -> dict[str, float]:
        if not self._describe:
            return {}
        measured = cast("DescribesSteps", self.family.problem).describe_step(before, after, task)
        return {label: quantity.value.item() for label, quantity in measured.items()}


@final
class _SharedTensors:
    """`SharesArrays` of a simulator that has tensors only."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def state_arrays(self) -> Mapping[str, np.ndarray]:
        return {name: value.numpy() for name, value in self._simulator.state().items()}

    @torch.no_grad()
    def step_arrays(self, control: np.ndarray) -> None:
        self._simulator.step(torch.from_numpy(control), None)

    def failed_array(self) -> np.ndarray:
        return self._simulator.failed().numpy()


def _all_finite(row: np.ndarray) -> bool:
    # A finite sum has finite terms only, and plain Python has it soonest; the converse is not true.
    return math.isfinite(sum(row.tolist())) or bool(np.isfinite(row).all())


def _as_array(value: Any) -> np.ndarray:
    return value.numpy() if isinstance(value, Tensor) else value


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
