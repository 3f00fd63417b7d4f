"""What both Gymnasium faces do with their arguments: family, spaces, which task, and a true `EnvSpec`."""

from __future__ import annotations

import copy
import dataclasses
import sys
import weakref
from typing import Any, final

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from envs import registry
from envs.checks import is_finite_in_float32
from envs.family import TaskFamily

UNTIMED_FPS = 10  # for families whose time has no unit


@final
class TaskChoice:
    """The task of an environment by itself, from the arguments `task`, `tasks` and `task_seed`.

    It knows nothing of other environments: `gymnasium.make_vec` gives every sub-environment the same arguments, and
    what they mean must not depend on who steps them.

    Args:
        family: The family.
        task: `[task_dim]`: this one.
        tasks: `[task, task_dim]`: one of these, by the episode's seed.
        task_seed: The first training task under this seed.

    Raises:
        ValueError: If more than one is given, or does not fit the family.
    """

    def __init__(self, family: TaskFamily, task: Any, tasks: Any, task_seed: int | None) -> None:
        given = {"task": task, "tasks": tasks, "task_seed": task_seed}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} were given; each says which task it is, so give one of them.")
        self._family = family
        self._tasks = None if tasks is None else task_list(family, tasks)
        self.fixed: Tensor | None = None
        if task is not None:
            self.fixed = one_task(family, task)
        elif task_seed is not None:
            self.fixed = family.sample_tasks(1, split="train", seed=task_seed)

    def draw(self, seed: int) -> Tensor:
        """The task `[1, task_dim]` that goes with an episode seed: fixed, in turn from `tasks`, or from the law."""
        if self.fixed is not None:
            return self.fixed
        if self._tasks is not None:
            return self._tasks[seed % len(self._tasks)][None]
        return self._family.sample_tasks(1, split="train", seed=seed)


def one_task(family: TaskFamily, task: Any) -> Tensor:
    """A task as `[1, task_dim]`; a family with one task number also takes a plain number.

    Raises:
        ValueError: If it is none.
    """
    tasks = _tasks_or_none(family, [task])
    if tasks is None:
        raise ValueError(f"{task!r} is not a task of {_of(family)}.")
    return tasks


def task_list(family: TaskFamily, tasks: Any) -> Tensor:
    """Tasks as `[task, task_dim]`; a family with one task number also takes plain numbers.

    Raises:
        ValueError: If they are none.
    """
    found = _tasks_or_none(family, tasks)
    if found is None:
        raise ValueError(f"{tasks!r} is not a list of tasks of {_of(family)}.")
    return found


def _of(family: TaskFamily) -> str:
    labels = ", ".join(family.spec.task_labels)
    return f"{family.spec.id}: a task is {family.task_dim} finite number(s) ({labels}), in float32 too"


def _tasks_or_none(family: TaskFamily, tasks: Any) -> Tensor | None:
    try:
        array = np.array(tasks)
        if array.dtype.kind not in "iuf":  # text would be read as numbers
            return None
        array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError):
        return None
    if array.ndim == 1 and family.task_dim == 1:
        array = array[:, None]
    fits = array.ndim == 2 and array.shape[-1] == family.task_dim and len(array) > 0
    return torch.from_numpy(array) if fits and is_finite_in_float32(array) else None


_TASK_ARGUMENTS = ("task", "tasks", "task_seed", "env_tasks")


@final
class _Followers:
    """The specs that one environment keeps true, weakly: its own, and those of the wrappers around it."""

    def __init__(self) -> None:
        self._specs: list[weakref.ref[_OwnSpec]] = []

    def add(self, spec: _OwnSpec) -> None:
        self._specs = [known for known in self._specs if known() is not None] + [weakref.ref(spec)]

    def tell(self, name: str, tasks: Tensor) -> None:
        for known in self._specs:
            spec = known()
            if spec is not None:
                # A new one: the old may be shared with a changed copy.
                others = {key: value for key, value in spec.kwargs.items() if key not in _TASK_ARGUMENTS}
                spec.kwargs = {**others, name: tasks.tolist()}

    def __reduce__(self) -> tuple[Any, ...]:
        return _Followers, ()  # the specs that are copied with it put themselves into the copy


@final
class _OwnSpec(EnvSpec):
    """A spec that follows its environment's task.

    A copy of the environment has a spec that follows the copy; wrappers around either have theirs in the same group. A
    copy of the spec alone is a snapshot, but for the one that a wrapper makes when it is first asked for its spec: it
    is told from others by what the wrapper does next, whose property `spec` writes into the copy what the wrapper is.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.__setstate__({"_followers": _Followers()})

    def tell(self, name: str, tasks: Tensor) -> None:
        self.__dict__["_followers"].tell(name, tasks)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_copied_from" in self.__dict__ and sys._getframe(1).f_code.co_name == "spec":
            self.__setstate__({"_followers": self.__dict__.pop("_copied_from")})

    def __eq__(self, other: object) -> bool:
        names = [field.name for field in dataclasses.fields(self)]
        return isinstance(other, EnvSpec) and all(getattr(self, name) == getattr(other, name) for name in names)

    __hash__ = None  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride] - as EnvSpec's

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_copied_from"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__["_followers"].add(self)

    def __copy__(self) -> _OwnSpec:
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> _OwnSpec:
        alone = not memo
        memo[id(self)] = twin = _OwnSpec.__new__(_OwnSpec)
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        if alone:
            twin.__dict__["_copied_from"] = self.__dict__["_followers"]
        return twin


def own_spec(spec: EnvSpec | None, horizon: int) -> EnvSpec | None:
    """A spec of the environment's own: arguments in plain lists and numbers, which JSON takes, and the horizon.

    The horizon is for those who read it there. The environments truncate themselves; in an environment made from the
    spec Gymnasium wraps a TimeLimit around it that ends no episode earlier.
    """
    if spec is None:
        return None
    arguments = {name: _plain(value) for name, value in spec.kwargs.items()}
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.init}
    return _OwnSpec(**{**values, "kwargs": arguments, "max_episode_steps": horizon})


def tell(spec: EnvSpec | None, name: str, tasks: Tensor) -> None:
    """Writes the present task or tasks as argument `name` into a spec that `own_spec` made, and those of wrappers."""
    if isinstance(spec, _OwnSpec):
        spec.tell(name, tasks)


def _plain(value: Any) -> Any:
    """NumPy and torch values as lists and numbers, also inside lists."""
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def find_family(family: str | TaskFamily, variant: str | None, observe_task: bool) -> TaskFamily:
    if isinstance(family, TaskFamily):
        if variant is not None:
            raise ValueError(f"variant is {variant!r}, but {family.spec.id} was given as an object, which has its own.")
        return TaskFamily(family.problem, observe_task or family.observe_task)
    return registry.make(family if variant is None else f"{family}@{variant}", observe_task=observe_task)


def spaces(family: TaskFamily) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    """Observation and action space of one environment."""
    scale = family.spec.action_scale
    return (
        gymnasium.spaces.Box(-np.inf, np.inf, (family.observation_dim,), np.float64),
        gymnasium.spaces.Box(-scale, scale, (family.action_dim,), np.float32),
    )


def frames_per_second(family: TaskFamily) -> int:
    return round(1 / family.spec.dt) if family.spec.dt > 0 else UNTIMED_FPS


def check_render_mode(render_mode: str | None, known: list[str]) -> None:
    if render_mode is not None and render_mode not in known:
        raise ValueError(
            f"render_mode is {render_mode!r}; here it can be None or {' or '.join(map(repr, known))}"
            " ('human' needs a display)."
        )


def check_options(options: dict[str, Any] | None, *known: str) -> None:
    """Refuses an option of `reset` that would be ignored.

    Raises:
        ValueError: Naming it.
    """
    for name in options or {}:
        if name not in known:
            knows = f"the one that there is is {known[0]!r}" if known else "there are none"
            raise ValueError(
                f"reset() was given the option {name!r}, which would do nothing: {knows}. A task is chosen by `task=` "
                "when the environment is made, and by set_task() or set_tasks() afterwards."
            )


def check_actions(actions: Any, space: gymnasium.Space) -> np.ndarray:
    """A float64 copy."""
    array = np.asarray(actions)
    if array.shape != space.shape:
        raise ValueError(f"The action has shape {array.shape}; it must be {space.shape}.")
    return array.astype(np.float64)


def episode_generator(generator: np.random.Generator) -> torch.Generator:
    """What an episode's initial state is drawn from."""
    return torch.Generator().manual_seed(int(generator.integers(2**63)))
