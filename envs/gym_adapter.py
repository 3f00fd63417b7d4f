"""The Gymnasium faces of a task family: one environment, and a vector environment. NumPy in and out.

Both are thin adapters over `TaskFamily.batch`, so that what a user steps here is what a learner trains on. The horizon
belongs to the variant: the environments truncate themselves and need no TimeLimit wrapper. Actions are in policy units:
[-action_scale, action_scale] spans the environment's own range, and what lies outside is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import gymnasium
import numpy as np
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs import registry
from envs.batched_env import BatchedEnv
from envs.family import Renderer, State, TaskFamily
from envs.window import Window, display_exists

_UNTIMED_FPS = 10  # for families whose time has no unit


@final
class FamilyEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One environment of a task family, under one task.

    Args:
        family: Family name, `family@variant`, or a `TaskFamily`.
        variant: Variant, where `family` is a plain name; None takes the family's default.
        task: `[task_dim]`. None draws a training task once, here, and keeps it over all episodes.
        task_seed: Task seed of that draw; None takes a fresh one from the operating system.
        observe_task: Append the task to the observation (the oracle).
        render_mode: None, "rgb_array", or "human" where a display exists.
        width: Of a frame, pixels.
        height: Of a frame, pixels.

    Raises:
        ValueError: For an unknown name or render mode, or a task that does not fit the family.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - the base class declares an instance attribute
        "render_modes": ["rgb_array", "human"] if display_exists() else ["rgb_array"],
        "render_fps": _UNTIMED_FPS,
    }

    def __init__(
        self,
        family: str | TaskFamily,
        variant: str | None = None,
        task: Any = None,
        task_seed: int | None = None,
        observe_task: bool = False,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 360,
    ) -> None:
        self.family = _find_family(family, variant, observe_task)
        _check_render_mode(render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": _frames_per_second(self.family)}
        self.observation_space, self.action_space = _spaces(self.family)
        tasks = _draw_tasks(self.family, 1, task_seed) if task is None else _check_tasks(self.family, [task], 1)
        self._batch = self.family.batch(tasks, episodes_per_task=1, num_threads=1)
        self._size = (width, height)
        self._renderer: Renderer | None = None
        self._window: Window | None = None

    @property
    def task(self) -> np.ndarray:
        """The current task `[task_dim]`."""
        return self._batch.tasks[0].numpy().copy()

    def set_task(self, task: Any) -> None:
        """Changes the task `[task_dim]` between episodes: call `reset` before the next `step`.

        Raises:
            ValueError: If it does not fit the family.
        """
        self._batch.set_tasks(_check_tasks(self.family, [task], 1))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        observation = self._batch.reset_to(_draw_initial_state(self.family, self.np_random))
        if self.render_mode == "human":
            self._show()
        return _to_numpy(observation[0, 0]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        step = self._batch.step(_check_actions(action, self.action_space)[None, None])
        if self.render_mode == "human":
            self._show()
        return _to_numpy(step.observation[0, 0]), float(step.reward), bool(step.terminated), bool(step.truncated), {}

    def render(self) -> np.ndarray | None:
        return self._draw() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        if self._window is not None:
            self._window.close()
        self._renderer = self._window = None

    def _draw(self) -> np.ndarray:
        if self._renderer is None:
            self._renderer = self.family.problem.make_renderer(*self._size)
        return self._renderer.render(self._batch.state, 0, self._batch.tasks[0])

    def _show(self) -> None:
        if self._window is None:
            self._window = Window(self.family.spec.id, self.metadata["render_fps"])
        self._window.show(self._draw())


@final
class FamilyVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` environments of a task family stepped together; equal to a SyncVectorEnv of `FamilyEnv`s.

    Sub-environment i is under task `i // (num_envs // len(tasks))`.

    Args:
        family: Family name, `family@variant`, or a `TaskFamily`.
        num_envs: Number of sub-environments.
        variant: Variant, where `family` is a plain name; None takes the family's default.
        tasks: `[task, task_dim]`, a number of tasks that divides `num_envs`. None draws a training task for each
            sub-environment once, here.
        task_seed: Task seed of that draw; None takes a fresh one from the operating system.
        observe_task: Append the task to the observation (the oracle).
        autoreset_mode: When a finished sub-environment starts its next episode. With DISABLED it stays at its last
            observation, earning 0, until `reset(options={"reset_mask": mask})`.
        num_threads: Physics threads; None takes the cores this process may use.
        render_mode: None or "rgb_array".
        width: Of a frame, pixels.
        height: Of a frame, pixels.

    Raises:
        ValueError: For an unknown name or mode, or tasks that do not fit the family or `num_envs`.
    """

    def __init__(
        self,
        family: str | TaskFamily,
        num_envs: int = 1,
        variant: str | None = None,
        tasks: Any = None,
        task_seed: int | None = None,
        observe_task: bool = False,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        num_threads: int | None = None,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 360,
    ) -> None:
        self.family = _find_family(family, variant, observe_task)
        _check_render_mode(render_mode, ["rgb_array"])
        self.render_mode = render_mode
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": _frames_per_second(self.family),
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space, self.single_action_space = _spaces(self.family)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if tasks is None:
            tensor = _draw_tasks(self.family, num_envs, task_seed)
        else:
            tensor = _check_tasks(self.family, tasks, None)
        if num_envs < 1 or len(tensor) < 1 or num_envs % len(tensor):
            raise ValueError(f"{len(tensor)} tasks were given for num_envs={num_envs}; the number must divide it.")
        self._batch: BatchedEnv = self.family.batch(tensor, num_envs // len(tensor), num_threads=num_threads)
        self._generators = [seeding.np_random(None)[0] for _ in range(num_envs)]
        self._finished = np.zeros(num_envs, dtype=bool)
        self._size = (width, height)
        self._renderer: Renderer | None = None

    @property
    def tasks(self) -> np.ndarray:
        """The current tasks `[task, task_dim]`."""
        return self._batch.tasks.numpy().copy()

    def set_tasks(self, tasks: Any) -> None:
        """Changes the tasks `[task, task_dim]`, as many as before: call `reset` before the next `step`.

        Raises:
            ValueError: If they do not fit the family or the number there was.
        """
        self._batch.set_tasks(_check_tasks(self.family, tasks, self._batch.num_tasks))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts new episodes.

        Args:
            seed: One seed per sub-environment; one integer stands for seed, seed + 1, ... (as in SyncVectorEnv); None
                continues each sub-environment's stream.
            options: `{"reset_mask": bool [num_envs]}` starts only those anew.
        """
        mask = np.ones(self.num_envs, dtype=bool)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
                raise ValueError(
                    f"options['reset_mask'] must be a boolean array of shape ({self.num_envs},) with a True in it."
                )
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds were given for num_envs={self.num_envs}; give one for each.")
        for i in np.flatnonzero(mask):
            if seeds[i] is not None:
                self._generators[i] = seeding.np_random(seeds[i])[0]
        self._finished[mask] = False
        return self._start(mask), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        tensor = _check_actions(actions, self.action_space)
        step = self._batch.step(tensor.reshape(self._batch.num_tasks, self._batch.episodes_per_task, -1))
        observations, rewards, terminated, truncated = (
            _to_numpy(value.flatten(0, 1)) for value in (step.observation, step.reward, step.terminated, step.truncated)
        )
        infos: dict[str, Any] = {}
        starting = self._finished
        self._finished = terminated | truncated
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and starting.any():
            # These were over before this call: it starts their next episode, whatever their action was.
            observations = self._start(starting)
            for flags in (terminated, truncated, self._finished):
                flags[starting] = False
        elif self.autoreset_mode is AutoresetMode.SAME_STEP and self._finished.any():
            for i in np.flatnonzero(self._finished):
                infos = self._add_info(infos, {"final_obs": observations[i].copy(), "final_info": {}}, int(i))
            observations = self._start(self._finished)
        return observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One frame `[height, width, 3]` per sub-environment."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = self.family.problem.make_renderer(*self._size)
        state, tasks = self._batch.state, self._batch.tasks.repeat_interleave(self._batch.episodes_per_task, dim=0)
        return tuple(self._renderer.render(state, lane, tasks[lane]) for lane in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = None

    def _start(self, mask: np.ndarray) -> np.ndarray:
        """Starts the next episode of the sub-environments in `mask`; returns the observations of all."""
        initial: dict[str, Tensor] = {}
        for lane in np.flatnonzero(mask):
            for name, value in _draw_initial_state(self.family, self._generators[lane]).items():
                rows = initial.setdefault(name, torch.zeros(self.num_envs, *value.shape[1:], dtype=value.dtype))
                rows[lane] = value[0]
        lanes = None if mask.all() else torch.from_numpy(mask)
        return _to_numpy(self._batch.reset_to(initial, lanes).flatten(0, 1))


def _find_family(family: str | TaskFamily, variant: str | None, observe_task: bool) -> TaskFamily:
    if isinstance(family, TaskFamily):
        if variant is not None:
            raise ValueError(f"variant is {variant!r}, but {family.spec.id} was given as an object, which has its own.")
        return TaskFamily(family.problem, observe_task or family.observe_task)
    return registry.make(family if variant is None else f"{family}@{variant}", observe_task=observe_task)


def _spaces(family: TaskFamily) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    """Observation and action space of one environment."""
    scale = family.spec.action_scale
    return (
        gymnasium.spaces.Box(-np.inf, np.inf, (family.observation_dim,), np.float64),
        gymnasium.spaces.Box(-scale, scale, (family.action_dim,), np.float32),
    )


def _frames_per_second(family: TaskFamily) -> int:
    return round(1 / family.spec.dt) if family.spec.dt > 0 else _UNTIMED_FPS


def _check_render_mode(render_mode: str | None, known: list[str]) -> None:
    if render_mode is not None and render_mode not in known:
        raise ValueError(
            f"render_mode is {render_mode!r}; here it can be None or {' or '.join(map(repr, known))}"
            " ('human' needs a display)."
        )


def _draw_tasks(family: TaskFamily, num_tasks: int, task_seed: int | None) -> Tensor:
    if task_seed is None:
        task_seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
    return family.sample_tasks(num_tasks, split="train", seed=task_seed)


def _check_tasks(family: TaskFamily, tasks: Any, num_tasks: int | None) -> Tensor:
    """Tasks `[task, task_dim]` as a tensor; a family with one task number also takes plain numbers."""
    try:
        array = np.array(tasks, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim == 1 and family.task_dim == 1:
        array = array[:, None]
    fits = array.ndim == 2 and array.shape[-1] == family.task_dim and num_tasks in (None, len(array))
    if not fits or not np.isfinite(array).all():
        shown = tasks[0] if num_tasks == 1 else tasks
        raise ValueError(
            f"{shown!r} is not {'a task' if num_tasks == 1 else 'a list of tasks'} of {family.spec.id}: a task is "
            f"{family.task_dim} finite number(s) ({', '.join(family.spec.task_labels)})."
        )
    return torch.from_numpy(array)


def _check_actions(actions: Any, space: gymnasium.Space) -> Tensor:
    array = np.asarray(actions)
    if array.shape != space.shape:
        raise ValueError(f"The action has shape {array.shape}; it must be {space.shape}.")
    return torch.from_numpy(array.astype(np.float64))


def _draw_initial_state(family: TaskFamily, generator: np.random.Generator) -> State:
    """One initial state (every entry `[1, ...]`)."""
    seed = int(generator.integers(2**63))
    return family.problem.initial_state(1, torch.Generator().manual_seed(seed))


def _to_numpy(value: Tensor) -> np.ndarray:
    # A copy: the caller may keep or change it, while the batch still holds its own.
    return value.cpu().numpy().copy()
