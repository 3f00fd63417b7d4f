"""Every family and its named variants, as data: `family@variant` -> the config of its `Problem`.

Adding a family is one entry here. Modules are named rather than imported, so that listing families or
registering Gymnasium ids loads neither torch nor a physics engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FamilyEntry:
    """Where a family lives.

    Attributes:
        module: Module holding the `Problem` and its config class.
        problem: Name of the `Problem` class.
        config: Name of the config class.
        gym_id: Its Gymnasium id.
        summary: One line for `--list`.
        default_variant: What the plain family name means.
        variants: Variant name -> (one line about it, config fields that differ from the config's defaults).
    """

    module: str
    problem: str
    config: str
    gym_id: str
    summary: str
    default_variant: str
    variants: dict[str, tuple[str, dict[str, Any]]]


FAMILIES: dict[str, FamilyEntry] = {
    "navigation-2d": FamilyEntry(
        module="envs.navigation",
        problem="Navigation2D",
        config="Navigation2DConfig",
        gym_id="metarl/Navigation2D-v0",
        summary="A point in the plane finds an unseen goal (reward: minus the distance).",
        default_variant="maml2017",
        variants={
            "maml2017": ("Goals U(-0.5, 0.5)^2, horizon 100, as in the MAML paper's code; 40 published test goals.", {}),
        },
    ),
}
