"""What a learner is to continue from, looked at as a whole before any of it is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from metarl.ops.tree import all_finite
from metarl.types import Params


def checked_state(
    state: Any, tensors: Mapping[str, Params], counters: Sequence[str]
) -> tuple[dict[str, Params], dict[str, int]]:
    """The sets of tensors and the counters of a learner's `state_dict`.

    Args:
        state: What `state_dict` returned, of this learner or of another.
        tensors: This learner's sets of tensors. One that is empty may be missing: it may be younger than the state. Its
            "params" must be finite; a constant need not be (a mask).
        counters: Names of its counters.

    Raises:
        ValueError: If something is missing or does not fit this learner, saying what.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"a {type(state).__name__} is not a learner's state")
    found = {
        name: _checked_tensors(state.get(name, None if like else {}), like, name) for name, like in tensors.items()
    }
    if not all_finite(found.get("params", {})):
        raise ValueError("the saved params are not all finite")
    for name in counters:
        if not is_count(state.get(name)):
            raise ValueError(f"the saved {name} is missing or not a possible number")
    return found, {name: state[name] for name in counters}


def _checked_tensors(saved: Any, like: Params, what: str) -> Params:
    """Tensors that were saved, on the device of those that they are to replace.

    Args:
        saved: What was saved.
        like: What has the names, shapes and kinds that they must have.
        what: What they are, for the sentence.

    Raises:
        ValueError: If they are not tensors of those names, shapes and kinds, saying which is not.
    """
    if not isinstance(saved, Mapping) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise ValueError(f"the saved {what} are missing, or not floating-point tensors")
    for name in like:
        if name not in saved:
            raise ValueError(f"the saved {what} lack {name}")
    for name in saved:
        if name not in like:
            raise ValueError(f"the saved {what} hold {name}, which there is no place for")
    for name, value in like.items():
        if saved[name].shape != value.shape:
            raise ValueError(f"{name} of the saved {what} has shape {list(saved[name].shape)}, not {list(value.shape)}")
        if saved[name].dtype != value.dtype:
            raise ValueError(f"{name} of the saved {what} is {saved[name].dtype}, not {value.dtype}")
    return {name: saved[name].detach().to(value) for name, value in like.items()}


def check_no_moments(state: Any) -> None:
    """For an outer optimiser that keeps nothing from one step to the next.

    Raises:
        ValueError: If `state` is that of one that does.
    """
    if state != {}:
        raise ValueError("the saved moments belong to another outer optimiser")


def is_count(value: Any, most: Any = 2**63) -> bool:
    """Whether something counts: a whole number from 0 to `most`."""
    return type(value) is int and type(most) is int and 0 <= value <= most
