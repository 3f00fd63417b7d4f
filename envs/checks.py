"""What a family's author and a family's user hand over, checked where it comes in; each fault is one sentence."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from envs.presets import PublishedCurve

if TYPE_CHECKING:
    from envs.family import FamilySpec, State

_MAX_HORIZON = 2**31 - 1


def check_spec(spec: FamilySpec) -> None:
    """Raises ValueError, naming family and field, unless every field of `spec` is what `FamilySpec` says."""
    for field in ("name", "variant"):
        value = getattr(spec, field)
        if not isinstance(value, str) or not value.strip() or "@" in value:
            raise _misfit(spec, field, value, "a word without '@'")
    for field in ("observation_labels", "action_labels", "task_labels", "task_units"):
        value = getattr(spec, field)
        if not isinstance(value, tuple) or not value or not all(isinstance(entry, str) for entry in value):
            raise _misfit(spec, field, value, "a tuple with one text for each dimension, at least one")
    if len(spec.task_units) != len(spec.task_labels):
        raise _misfit(spec, "task_units", spec.task_units, f"one text for each of {spec.task_labels} (task_labels)")
    if not _is_number(spec.action_scale) or not 0 < float(_to_float32(spec.action_scale)) < math.inf:
        raise _misfit(spec, "action_scale", spec.action_scale, "a positive finite number")
    _check_action_range(spec)
    if not _is_integer(spec.horizon) or not 1 <= spec.horizon <= _MAX_HORIZON:
        raise _misfit(spec, "horizon", spec.horizon, f"an integer from 1 to {_MAX_HORIZON}, in control steps")
    if not _is_number(spec.dt) or not 0 <= spec.dt < math.inf:
        raise _misfit(spec, "dt", spec.dt, "a finite number of seconds, or 0 where time has no unit")
    if not isinstance(spec.published, tuple) or not all(isinstance(c, PublishedCurve) for c in spec.published):
        raise _misfit(spec, "published", spec.published, "a tuple of PublishedCurve")


def _check_action_range(spec: FamilySpec) -> None:
    for field in ("action_low", "action_high"):
        value = getattr(spec, field)
        if not isinstance(value, tuple) or len(value) != len(spec.action_labels) or not all(map(_is_number, value)):
            raise _misfit(spec, field, value, f"a tuple with one number for each of {spec.action_labels}")
        if not is_finite_in_float32(value):
            raise _misfit(spec, field, value, "finite, also in float32: what a policy may do needs two ends")
    # What maps a policy's action onto the range, in the narrower of the two precisions that worlds have.
    with np.errstate(over="ignore"):
        half_range = (_to_float32(spec.action_high) - _to_float32(spec.action_low)) / _to_float32(2 * spec.action_scale)
    for low, high, half in zip(spec.action_low, spec.action_high, half_range, strict=True):
        if not low < high:
            raise _misfit(spec, "action_low", spec.action_low, f"below action_high {spec.action_high} everywhere")
        if not 0 < half < math.inf:
            raise _misfit(
                spec,
                "action_scale",
                spec.action_scale,
                f"such that {low} to {high} divided by it fits float32",
            )


def check_tasks(spec: FamilySpec, tasks: Tensor, num_tasks: int | None) -> None:
    """Raises ValueError unless `tasks` is `[num_tasks, task_dim]` (None: any number but zero), real and finite.

    Finite also in float32, the precision of a policy and of worlds on a GPU.
    """
    if not _is_real(tasks):
        raise ValueError(f"tasks is {_describe(tasks)}; {spec.id} takes a tensor of real numbers [task, task_dim].")
    task_dim = len(spec.task_labels)
    fits = tasks.ndim == 2 and tasks.shape[1] == task_dim
    if not fits or tasks.shape[0] != (num_tasks or max(1, tasks.shape[0])):
        raise ValueError(
            f"tasks has shape {list(tasks.shape)}; {spec.id} takes "
            f"[{num_tasks or 'task'}, {task_dim}] ({', '.join(spec.task_labels)})."
        )
    if not bool(torch.isfinite(tasks.to(torch.float32)).all()):
        raise ValueError(f"tasks for {spec.id} hold a number that is not finite (in float32, below 3.4e38).")


def check_sampled_task(spec: FamilySpec, what: str, task: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """What a `Problem` gives as its tasks, as float64 of its own.

    Args:
        spec: Of the family.
        what: The method it came from.
        task: What it returned.
        shape: What it must have; None stands for any number but zero.

    Raises:
        ValueError: If it has another shape or holds a number that is not finite, also in float32.
    """
    try:
        array = np.array(task, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    fits = array.ndim == len(shape) and all(
        n == wanted or (wanted is None and n > 0) for n, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits or not is_finite_in_float32(array):
        wanted = [n or "task" for n in shape]
        labels = ", ".join(spec.task_labels)
        raise ValueError(
            f"{what} of {spec.id} gave {task!r}; it must give finite numbers of shape {wanted} ({labels})."
        )
    return array


def check_state(spec: FamilySpec, what: str, state: State, num_lanes: int, known: State) -> None:
    """Raises ValueError unless `state` has one row for every lane, and `known`'s names and shapes where there are any.

    Args:
        spec: Of the family.
        what: Where the state comes from.
        state: To check.
        num_lanes: Rows of every entry.
        known: The simulator's own state; empty where it has none yet.
    """
    if not isinstance(state, Mapping) or not all(_is_real(value) for value in state.values()):
        raise ValueError(f"{what} of {spec.id} is {_describe(state)}; it must map names to tensors of real numbers.")
    for name, value in state.items():
        if known and name not in known:
            raise ValueError(f"{what} of {spec.id} has {name!r}; the state of its worlds has {', '.join(known)}.")
        wanted = [num_lanes, *(known[name].shape[1:] if known else value.shape[1:])]
        if list(value.shape) != wanted:
            raise ValueError(f"{name!r} in {what} of {spec.id} has shape {list(value.shape)}; it must be {wanted}.")


def check_finite_start(spec: FamilySpec, initial: State) -> None:
    """Raises ValueError if an initial state holds a number that is not finite. On a GPU it waits."""
    for name, value in initial.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"{name!r} in initial_state() of {spec.id} is not finite everywhere; an episode cannot start so."
            )


def check_fields(spec: FamilySpec, fields: Any, nominal: State, num_lanes: int) -> None:
    """Raises ValueError unless `fields` has a finite value of every world for every field of `nominal`."""
    names = ", ".join(nominal)
    if not isinstance(fields, Mapping) or set(fields) != set(nominal):
        given = ", ".join(map(str, fields)) if isinstance(fields, Mapping) else _describe(fields)
        raise ValueError(f"model_fields() of {spec.id} gave {given or 'nothing'}; it must give {names}.")
    for name, value in fields.items():
        wanted = [num_lanes, *nominal[name].shape]
        if not _is_real(value) or list(value.shape) != wanted or not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"{name!r} in model_fields() of {spec.id} is {_describe(value)}; it must be finite, of shape {wanted}."
            )


def check_lanes(lanes: Tensor, shape: tuple[int, int]) -> None:
    """Raises ValueError unless `lanes` is a boolean mask `[task, episode]`, or the same flattened."""
    if not isinstance(lanes, Tensor) or lanes.dtype != torch.bool or lanes.shape not in (shape, (math.prod(shape),)):
        raise ValueError(f"lanes is {_describe(lanes)}; it must be a boolean tensor [task, episode] = {list(shape)}.")


def check_values(
    spec: FamilySpec, what: str, value: Tensor, shape: tuple[int, ...], device: torch.device, boolean: bool = False
) -> None:
    """Raises ValueError unless a method of the `Problem` gave a tensor of this kind. It reads no number: nothing waits.

    Args:
        spec: Of the family.
        what: The method.
        value: What it returned.
        shape: What it must have: another one would be broadcast without a word.
        device: Where it must be.
        boolean: Whether it must be boolean; else it must be floating.
    """
    kind = "boolean" if boolean else "floating"
    if (
        not isinstance(value, Tensor)
        or value.shape != shape
        or value.device.type != device.type
        or not (value.dtype == torch.bool if boolean else value.dtype.is_floating_point)
    ):
        raise ValueError(
            f"{what}() of {spec.id} gave {_describe(value)}; it must give a {kind} tensor {list(shape)} on {device}."
        )


def check_count(what: str, value: Any, least: int = 1) -> None:
    """Raises ValueError unless `value` is an integer of at least `least`."""
    if not _is_integer(value) or value < least:
        raise ValueError(f"{what} is {value!r}; it must be an integer, at least {least}.")


def to_tuple(value: Any) -> Any:
    """A list or an array as a tuple of Python's own numbers, its own copy; anything else as it is."""
    if isinstance(value, np.ndarray | Tensor):
        value = value.tolist()
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _misfit(spec: FamilySpec, field: str, value: object, wanted: str) -> ValueError:
    return ValueError(f"FamilySpec of {spec.name!r}: {field} is {value!r}; it must be {wanted}.")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} on {value.device}"
    return f"a {type(value).__name__}"


def _is_integer(value: object) -> bool:
    try:
        operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return False
    return not isinstance(value, bool | np.bool_)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex()


def is_finite_in_float32(values: Any) -> bool:
    """Whether all numbers are finite also in float32, the precision of a policy and of worlds on a GPU."""
    return bool(np.isfinite(_to_float32(values)).all())


def _to_float32(values: Any) -> np.ndarray:
    """What is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float64).astype(np.float32)
