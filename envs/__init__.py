"""Parameterized task families: each written once, served to learners as batches and to Gymnasium as envs.

Importing this package registers the Gymnasium ids and loads neither torch nor MuJoCo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium

from envs.presets import FAMILIES

if TYPE_CHECKING:
    from envs.family import TaskFamily as TaskFamily
    from envs.registry import make as make

__all__ = ["TaskFamily", "make"]

for _name, _entry in FAMILIES.items():
    if _entry.gym_id not in gymnasium.registry:
        # No max_episode_steps: the horizon belongs to the variant, and the environments truncate themselves.
        gymnasium.register(
            _entry.gym_id,
            entry_point="envs.gym_adapter:FamilyEnv",
            vector_entry_point="envs.gym_adapter:FamilyVectorEnv",
            kwargs={"family": _name},
        )


def __getattr__(name: str) -> Any:
    if name == "make":
        from envs.registry import make

        return make
    if name == "TaskFamily":
        from envs.family import TaskFamily

        return TaskFamily
    raise AttributeError(f"module 'envs' has no attribute {name!r}")
