"""Parameterized task families: each written once, served to learners as batches and to Gymnasium as envs.

Importing this package registers the Gymnasium ids and loads neither torch nor MuJoCo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.family import TaskFamily as TaskFamily
    from envs.registry import make as make

__all__ = ["TaskFamily", "make"]


def __getattr__(name: str) -> Any:
    if name == "make":
        from envs.registry import make

        return make
    if name == "TaskFamily":
        from envs.family import TaskFamily

        return TaskFamily
    raise AttributeError(f"module 'envs' has no attribute {name!r}")
