"""Checkpoints that are made sure to be whole, and to belong to their run, before anything is taken from them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from metarl.experiment.archive import digest, read_archive
from metarl.experiment.config import from_json, to_json
from metarl.experiment.errors import UserError
from metarl.experiment.files import read_regular, write_bytes_atomically
from metarl.learner_state import checked_state, is_count
from metarl.types import Params

CHECKPOINT_FORMAT = 2
"""1 had neither the run's config nor a digest."""

_FREE = ("iterations", "data_dir")
"""Settings that may change in a run's life: how long it is, and where its data lie (what they are is compared)."""


def save_checkpoint(path: Path, state: dict[str, Any], config: Any) -> None:
    """Saves the state of a run, atomically.

    Args:
        path: The file.
        state: Tensors, numbers, strings and containers of those.
        config: The run's settings, which are saved with it.
    """
    settings = {name: value for name, value in to_json(config).items() if name not in _FREE}
    state = {"format": CHECKPOINT_FORMAT, **state, "config": settings}
    buffer = io.BytesIO()
    torch.save({**state, "digest": digest(state)}, buffer)
    write_bytes_atomically(path, buffer.getvalue())


def read_checkpoint(
    path: Path, identity: dict[str, str], tensors: dict[str, Params], counters: tuple[str, ...], config: Any
) -> dict[str, Any]:
    """Loads a checkpoint and makes sure that it is as it was saved, and belongs to the run.

    Args:
        path: The file.
        identity: What the run is of, e.g. its algorithm and its family.
        tensors: Sets of tensors that the learner's state holds ("params", ...), for their names and shapes. One that
            is empty may be missing.
        counters: Names of its counters.
        config: The run's settings, as config.json has them.

    Raises:
        UserError: If it is missing, damaged, malicious, of another format, or of another run.
    """
    expected = sum(value.numel() * value.element_size() for like in tensors.values() for value in like.values())
    try:
        # Moments, and memory that tensors share with others, make it larger than its tensors; not a hundred times.
        content = read_regular(path, 2**28 + 100 * expected)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}.") from None
    try:
        state = read_archive(content)
        _check_digest(state, len(content))
    except ValueError as error:
        raise UserError(
            f"{path} is not a usable checkpoint: {error}. Look at another one with --checkpoint; to resume, put a "
            "copy of another one in its place."
        ) from None
    _check_identity(state, path, identity)
    if state["format"] > 1:
        _check_config(state.get("config"), config, path)
    _check_content(state, path, tensors, counters)
    return state


def _check_digest(state: Any, size: int) -> None:
    """Makes sure that the content is what was saved, where the checkpoint is not older than digests.

    Raises:
        ValueError: Saying what is wrong.
    """
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    version = state.get("format")
    if type(version) is not int or not 1 <= version <= CHECKPOINT_FORMAT or not isinstance(state.get("learner"), dict):
        said = f"format {version}" if type(version) is int else "no format"
        raise ValueError(f"it is not of this version of metarl ({said})")
    written = state.pop("digest", None)
    if version > 1 and (type(written) is not str or written != digest(state, size)):
        raise ValueError("it is damaged: its content is not what was saved")


def _check_identity(state: dict[str, Any], path: Path, identity: dict[str, str]) -> None:
    for what, value in identity.items():
        found = state.get(what)
        if type(found) is not str or found != value:
            said = f"its {what} is {found!r}, this run's is {value!r}" if type(found) is str else f"it names no {what}"
            if what == "data":
                said = "the data are not the same classes and images any more as when it was trained"
            raise UserError(f"{path} belongs to another run: {said}.")


def _check_content(state: dict[str, Any], path: Path, tensors: dict[str, Params], counters: tuple[str, ...]) -> None:
    """Makes sure that everything that training or evaluation reads is there and of the right kind."""
    learner = state["learner"]
    try:
        found, _ = checked_state(learner, tensors, counters)
    except ValueError as error:
        raise UserError(f"{path} does not fit this run: {error}.") from None
    learner |= found
    wrong = []
    score = state.get("best_score")
    if type(score) is not float or math.isnan(score):
        wrong.append("best_score")
    # A line of metrics is of one iteration or more.
    if not is_count(state.setdefault("lines", learner.get("iteration")), learner.get("iteration")):
        wrong.append("lines")
    if not isinstance(learner.setdefault("outer", {}), dict):
        wrong.append("outer")
    if wrong:
        raise UserError(f"{path} is not a usable checkpoint: {', '.join(wrong)} is missing or not a possible number.")


def _check_config(saved: Any, config: Any, path: Path) -> None:
    """Refuses a checkpoint that was made under other settings than those of config.json.

    A field that is newer than the checkpoint has its default in both.

    Raises:
        UserError: Naming the first that differs, with both values.
    """
    own = to_json(config)
    free = {name: own[name] for name in _FREE if name in own}
    then = to_json(from_json(type(config), {**saved, **free} if isinstance(saved, dict) else saved, path))
    for (name, there), (_, here) in zip(_settings(then), _settings(own), strict=True):
        if there != here:
            raise UserError(
                f"{path} belongs to another run, or config.json was changed: {name} is {there!r} in the checkpoint and "
                f"{here!r} in config.json."
            )


def _settings(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every setting, those of a part as `part.name`."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
