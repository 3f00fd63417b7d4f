"""Float32 products in float32: conjugate gradient amplifies what a Fisher product is off by (docs/gpu.md)."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_own = threading.local()
_chosen: tuple[str | None, list[str]] = None, []


@contextlib.contextmanager
def no_tf32() -> Iterator[None]:
    """Keeps matrix products out of TF32, and on the CPU out of bfloat16, whatever the program or its environment chose.

    NVIDIA's containers, for one, set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE. torch has an older switch for all products and a
    newer one for each library; where they contradict one another, reading the older one (`allow_tf32`) is an error. So
    both are turned, and put back, but for an older one that the program itself has left in contradiction. The switches
    belong to the process: blocks of several threads share one turn, and the last one to end puts back.
    """
    global _inside, _chosen
    with _lock:
        if not _inside:
            _chosen = _turn_up()
        _inside += 1
        _own.inside = getattr(_own, "inside", 0) + 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            _own.inside -= 1
            if not _inside:
                _put_back(*_chosen)


def _libraries() -> tuple[Any, ...]:
    return torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]


def _turn_up() -> tuple[str | None, list[str]]:
    """Chooses full precision; returns what was chosen for all products, if that can be told, and for each library."""
    of_libraries = [library.fp32_precision for library in _libraries()]
    try:
        of_all = torch.get_float32_matmul_precision()
    except RuntimeError:
        of_all = None
    if of_all is not None:
        torch.set_float32_matmul_precision("highest")
    for library in _libraries():
        library.fp32_precision = "ieee"
    return of_all, of_libraries


def _put_back(of_all: str | None, of_libraries: list[str]) -> None:
    if of_all is not None:
        torch.set_float32_matmul_precision(of_all)
    for library, precision in zip(_libraries(), of_libraries, strict=True):
        library.fp32_precision = precision


def _in_forked_child() -> None:
    """The blocks of other threads stay in the parent; those of the thread that forked go on."""
    global _lock, _inside
    before, _inside, _lock = _inside, getattr(_own, "inside", 0), threading.Lock()
    if before and not _inside:
        _put_back(*_chosen)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
