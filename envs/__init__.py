"""Parameterized task families: each written once, served to learners as batches and to Gymnasium as envs.

Importing this package registers the Gymnasium ids and loads neither torch nor MuJoCo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Not `gymnasium.register`: versions that load plugins do so before their own package is complete.
from gymnasium.envs import registration

from envs.presets import FAMILIES

if TYPE_CHECKING:
    from envs.family import TaskFamily as TaskFamily
    from envs.registry import make as make

__all__ = ["TaskFamily", "make", "register_envs"]


def register_envs() -> None:
    """Registers the Gymnasium ids that are not registered yet; importing this package has done it."""
    for name, entry in FAMILIES.items():
        if entry.gym_id not in registration.registry:
            # No max_episode_steps: the horizon belongs to the variant, and the environments truncate themselves.
            registration.register(
                entry.gym_id,
                entry_point="envs.gym_adapter:FamilyEnv",
                vector_entry_point="envs.gym_vector:FamilyVectorEnv",
                kwargs={"family": name},
            )


register_envs()


def __getattr__(name: str) -> Any:
    if name == "make":
        from envs.registry import make

        return make
    if name == "TaskFamily":
        from envs.family import TaskFamily

        return TaskFamily
    raise AttributeError(f"module 'envs' has no attribute {name!r}")
