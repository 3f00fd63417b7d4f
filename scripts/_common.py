"""What the scripts share: the listing, family construction with clear errors, and start-up settings."""

from __future__ import annotations

import ctypes.util
import os
import sys
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parent.parent
# A script's own directory is the first entry of sys.path; `envs` and `metarl` must be this checkout's, also where
# the package is not installed.
sys.path.insert(0, str(REPOSITORY))

from metarl.experiment.errors import UserError  # noqa: E402


def prepare_display() -> None:
    """Chooses off-screen rendering where no display exists and MUJOCO_GL does not say otherwise."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl" if ctypes.util.find_library("EGL") else "osmesa")


def handle_list(arguments: list[str]) -> None:
    """Prints families, variants and algorithms and leaves, if `--list` is among the arguments."""
    if "--list" not in arguments:
        return
    from envs.registry import describe
    from metarl.experiment.config import ALGORITHMS

    print("Task families and variants:")
    for name, line in describe():
        print(f"  {name:<28} {line}")
    print("\nAlgorithms:")
    for name, line in ALGORITHMS.items():
        print(f"  {name:<28} {line}")
    raise SystemExit(0)


def resolve_family(name: str) -> str:
    """`family` or `family@variant` -> `family@variant`.

    Raises:
        UserError: For an unknown name, with the nearest ones.
    """
    from envs.registry import resolve

    try:
        return "@".join(resolve(name))
    except ValueError as error:
        raise UserError(f"{error} See --list.") from None


def make_family(name: str, observe_task: bool = False):
    """Builds a task family; a physics engine that is missing or too old is reported in one sentence."""
    from envs.registry import make

    try:
        return make(resolve_family(name), observe_task=observe_task)
    except ImportError as error:
        raise UserError(str(error)) from None


def check_device(device: str) -> None:
    """Makes sure that an asked-for CUDA device is there.

    Raises:
        UserError: If it is not.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine (or this build of torch) has no CUDA device; use --device cpu.")


def load_run(path: Path, checkpoint: Literal["best", "last"] = "best"):
    """Loads a run directory (or one under `pretrained/`) with its family; see `metarl.experiment.loading`."""
    from metarl.experiment.loading import load_run

    return load_run(path, lambda config: make_family(config.family, config.observe_task), checkpoint)
