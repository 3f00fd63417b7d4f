"""Checkpoints that are made sure to belong to their run before anything is taken from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from metarl.experiment.errors import UserError
from metarl.experiment.files import load_checkpoint
from metarl.types import Params

CHECKPOINT_FORMAT = 1


def read_checkpoint(
    path: Path, identity: dict[str, str], tensors: dict[str, Params], counters: tuple[str, ...]
) -> dict[str, Any]:
    """Loads a checkpoint and makes sure it belongs to the run.

    Args:
        path: The file.
        identity: What the run is of, e.g. its algorithm and its family.
        tensors: Sets of tensors that the learner's state holds ("params", ...), for their names and shapes.
        counters: Names of its counters.

    Raises:
        UserError: If it is missing, damaged, malicious, of another format, or of another run.
    """
    state = load_checkpoint(path)
    if state.get("format") != CHECKPOINT_FORMAT or not isinstance(state.get("learner"), dict):
        raise UserError(f"{path} is not a checkpoint of this version of metarl (format {state.get('format')!r}).")
    for what, value in identity.items():
        if state.get(what) != value:
            said = f"its {what} is {state.get(what)!r}, this run's is {value!r}"
            if what == "data":
                said = "the data are not the same classes and images any more as when it was trained"
            raise UserError(f"{path} belongs to another run: {said}.")
    learner = state["learner"]
    for name, like in tensors.items():
        # A set that is empty may be younger than the checkpoint.
        learner[name] = _checked(learner.get(name, None if like else {}), like, path)
    wrong = [name for name in counters if type(learner.get(name)) is not int or learner[name] < 0]
    score = state.get("best_score")
    if type(score) is not float or math.isnan(score):
        wrong.append("best_score")
    if type(state.setdefault("lines", learner.get("iteration"))) is not int:
        wrong.append("lines")
    if not isinstance(learner.setdefault("outer", {}), dict):
        wrong.append("outer")
    if wrong:
        raise UserError(f"{path} is not a usable checkpoint: {', '.join(wrong)} is missing or not a number.")
    return state


def _checked(saved: Any, like: Params, path: Path) -> Params:
    """Tensors of a checkpoint, made sure to be finite numbers of the right names, shapes and kinds."""
    if not isinstance(saved, dict) or not all(
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and (value.is_floating_point() or (name in like and value.dtype == like[name].dtype))
        for name, value in saved.items()
    ):
        raise UserError(f"{path} is not a usable checkpoint: its parameters are not floating-point tensors.")
    if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in like.items()}:
        raise UserError(f"{path} does not fit this run: its layers or step sizes are not those of config.json.")
    if not all(bool(torch.isfinite(value).all()) for value in saved.values()):
        raise UserError(f"{path} is not a usable checkpoint: its parameters are not all finite.")
    return {name: saved[name].detach().to(value) for name, value in like.items()}
