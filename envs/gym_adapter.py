"""The Gymnasium faces of a task family: one environment, and a vector environment. NumPy in and out.

What a user steps here is what a learner trains on: the vector environment is an adapter over `TaskFamily.batch`, the
single one over `World`, which equals a lane of it. The horizon belongs to the variant: the environments truncate
themselves and need no TimeLimit wrapper. Actions are in policy units: [-action_scale, action_scale] spans the
environment's own range, and what lies outside is clipped.

Which task an environment is under (`task`, `tasks`, `task_seed`) means the same in every `vectorization_mode` of
`gymnasium.make_vec`. Given none of them, or `tasks`, the task goes with the seed: `reset(seed=s)` determines task and
episode. Without a seed the first reset draws a task, and later ones keep it. `env.spec` holds the present task, so that
`gymnasium.make(env.spec)` is under it too, for good.

`info` holds the task by label, `info["task"]["target velocity"]`, and after a step what the family measured of it.

Environments can be pickled and deep-copied, also in the middle of an episode; renderers and windows are not copied.
"""

from __future__ import annotations

from typing import Any, cast, final

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from envs.family import Renderer, TaskFamily
from envs.gym_arguments import (
    UNTIMED_FPS,
    TaskChoice,
    check_actions,
    check_options,
    check_render_mode,
    episode_generator,
    find_family,
    frames_per_second,
    one_task,
    own_spec,
    spaces,
    tell,
)
from envs.gym_vector import FamilyVectorEnv
from envs.window import Window, display_exists
from envs.world import World

__all__ = ["FamilyEnv", "FamilyVectorEnv"]


@final
class FamilyEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One environment of a task family, under one task.

    Args:
        family: Family name, `family@variant`, or a `TaskFamily`.
        variant: Variant, where `family` is a plain name; None takes the family's default.
        task: `[task_dim]`: the task, whatever the seed.
        tasks: `[task, task_dim]`: `reset(seed=s)` takes `tasks[s % len(tasks)]`, so that the consecutive seeds of a
            vector environment take them in turn.
        task_seed: The task is the first training task under this task seed, whatever the seed of `reset`.
        observe_task: Append the task to the observation (the oracle).
        render_mode: None, "rgb_array", or "human" where a display exists.
        width: Of a frame, pixels.
        height: Of a frame, pixels.

    Raises:
        ValueError: For an unknown name or render mode, or a task that does not fit the family.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - the base class declares an instance attribute
        "render_modes": ["rgb_array", "human"] if display_exists() else ["rgb_array"],
        "render_fps": UNTIMED_FPS,
    }
    _spec: EnvSpec | None = None

    def __init__(
        self,
        family: str | TaskFamily,
        variant: str | None = None,
        task: Any = None,
        tasks: Any = None,
        task_seed: int | None = None,
        observe_task: bool = False,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 360,
    ) -> None:
        self.family = find_family(family, variant, observe_task)
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": frames_per_second(self.family)}
        self.observation_space, self.action_space = spaces(self.family)
        self._choice = TaskChoice(self.family, task, tasks, task_seed)
        self._world = World(self.family)
        self._task_info: dict[str, float] = {}
        self._size = (width, height)
        self._renderer: Renderer | None = None
        self._window: Window | None = None
        if self._choice.fixed is not None:
            self._take(self._choice.fixed)

    @property
    def spec(self) -> EnvSpec | None:
        """How to make this environment again, under the task it has now; None if it was not made by id."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._spec = own_spec(spec, self.family.horizon)
        if self._world.task is not None:
            tell(self._spec, "task", self._world.task[0])

    @property
    def task(self) -> np.ndarray:
        """The current task `[task_dim]`; asked for before there is one, it is drawn as an unseeded reset would."""
        if self._world.task is None:
            self._take(self._choice.draw(self._task_seed()))
        return cast(Tensor, self._world.task)[0].numpy()

    def set_task(self, task: Any) -> None:
        """Changes the task `[task_dim]` for good: call `reset` before the next `step`; seeds do not change it.

        Raises:
            ValueError: If it does not fit the family.
        """
        self._choice.fixed = one_task(self.family, task)
        self._take(self._choice.fixed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        check_options(options)
        super().reset(seed=seed)
        if self._world.task is None or (seed is not None and self._choice.fixed is None):
            self._take(self._choice.draw(self._task_seed()))
        observation = self._world.reset(episode_generator(self.np_random))
        if self.render_mode == "human":
            self._show()
        return observation, {"task": dict(self._task_info)}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, measures = self._world.step(
            check_actions(action, self.action_space)
        )
        if self.render_mode == "human":
            self._show()
        return observation, reward, terminated, truncated, {"task": dict(self._task_info), **measures}

    def render(self) -> np.ndarray | None:
        return self._draw() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        if self._window is not None:
            self._window.close()
        self._renderer = self._window = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renderer": None, "_window": None}

    def _take(self, task: Tensor) -> None:
        self._world.set_task(task)
        self._task_info = dict(zip(self.family.spec.task_labels, task[0].tolist(), strict=True))
        tell(self._spec, "task", task[0])

    def _task_seed(self) -> int:
        """The seed of `np_random`, from which tasks are drawn; it has none where somebody put in a generator."""
        return self.np_random_seed if self.np_random_seed >= 0 else int(self.np_random.integers(2**63))

    def _draw(self) -> np.ndarray:
        if self._renderer is None:
            self._renderer = self.family.problem.make_renderer(*self._size)
        return self._renderer.render(self._world.state, 0, torch.from_numpy(self.task))

    def _show(self) -> None:
        if self._window is None:
            self._window = Window(self.family.spec.id, self.metadata["render_fps"])
        self._window.show(self._draw())
