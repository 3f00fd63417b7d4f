"""Every family and its named variants, as data: `family@variant` -> the config of its `Problem`.

Adding a family is one entry here. Modules are named rather than imported, so that listing families or
registering Gymnasium ids loads neither torch nor a physics engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedCurve:
    """A published adaptation curve: mean undiscounted return before each gradient step.

    Attributes:
        label: Method as the paper names it, e.g. "MAML".
        returns: Return at adaptation step 0, 1, 2, ...; None where it was not reported.
        source: Paper and table or file the numbers were read from.

    Raises:
        ValueError: Naming the curve and the field that is not what it says here.
    """

    label: str
    returns: tuple[float | None, ...]
    source: str

    def __post_init__(self) -> None:
        for field in ("label", "source"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"PublishedCurve {self.label!r}: {field} is {value!r}; it must be a text.")
        if not isinstance(self.returns, tuple | list) or not self.returns or not all(map(_is_return, self.returns)):
            raise ValueError(
                f"PublishedCurve {self.label!r}: returns is {self.returns!r}; it must be a tuple of finite numbers, at "
                "least one (None where a step was not reported)."
            )
        object.__setattr__(self, "returns", tuple(self.returns))


def _is_return(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


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


_MAML2017_CHEETAH = "Finn, Abbeel and Levine 2017, figure 5; per-task returns of the authors' repository (icml_cheetah)"
_HALFCHEETAH_MAML2017 = (
    PublishedCurve("MAML", (-129.53, -78.57, -66.62, -60.78), _MAML2017_CHEETAH),
    PublishedCurve("pretrained", (-158.00, -135.39, -128.47, -133.61), _MAML2017_CHEETAH),
    PublishedCurve("random", (-254.83, -254.33, -246.79, -230.83), _MAML2017_CHEETAH),
    PublishedCurve("oracle", (-54.47,), _MAML2017_CHEETAH),
)

_MAML2017_DIRECTION = (
    "Finn, Abbeel and Levine 2017, figure 5; per-task returns of the authors' repository (icml_cheetahdirec)"
)
_DIRECTION_MAML2017 = (
    PublishedCurve("MAML", (-50.69, 293.19, 313.48, 315.65), _MAML2017_DIRECTION),
    PublishedCurve("pretrained", (-43.03, -24.75, -12.85, 19.57), _MAML2017_DIRECTION),
    PublishedCurve("random", (-35.73, 21.83, 62.32, 86.18), _MAML2017_DIRECTION),
    PublishedCurve("oracle", (442.69,), _MAML2017_DIRECTION),
)
_RLLAB_CHEETAH: dict[str, Any] = {
    "max_velocity": 2.0,
    "frame_skip": 1,
    "velocity": "com",
    "observe": "com",
    "position_noise": "normal",
    "position_noise_scale": 0.01,
    "fixed_tasks_seed": 1,
    "num_fixed_tasks": 40,
}
_PROMP_CHEETAH: dict[str, Any] = {"horizon": 100, "action_scale": 10.0}

FAMILIES: dict[str, FamilyEntry] = {
    "navigation-2d": FamilyEntry(
        module="envs.navigation",
        problem="Navigation2D",
        config="Navigation2DConfig",
        gym_id="metarl/Navigation2D-v0",
        summary="A point in the plane finds an unseen goal (reward: minus the distance).",
        default_variant="maml2017",
        variants={
            "maml2017": (
                "Goals U(-0.5, 0.5)^2, horizon 100, as in the MAML paper's code; 40 published test goals.",
                {},
            ),
        },
    ),
    "navigation-2d-corners": FamilyEntry(
        module="envs.navigation",
        problem="CornerNavigation",
        config="CornerNavigationConfig",
        gym_id="metarl/Navigation2DCorners-v0",
        summary="A point in the plane finds out which of four corners is its goal; exploring decides.",
        default_variant="promp",
        variants={
            "promp": ("Sparse reward: nothing near the start, progress where the goal is the nearest corner.", {}),
            "promp-dense": ("Dense reward: minus the distance to the goal.", {"reward": "dense"}),
        },
    ),
    "halfcheetah-dir": FamilyEntry(
        module="envs.locomotion.half_cheetah",
        problem="HalfCheetah",
        config="HalfCheetahConfig",
        gym_id="metarl/HalfCheetahDir-v0",
        summary="A planar runner finds out whether to run forward or backward.",
        default_variant="plain",
        variants={
            "plain": ("Gymnasium's HalfCheetah-v5, horizon 200, 17 observations.", {"goal": "direction"}),
            "maml2017": (
                "rllab's timing (dt 0.01), centre of mass in reward and observation; 40 published tasks.",
                {**_RLLAB_CHEETAH, "goal": "direction", "published": _DIRECTION_MAML2017},
            ),
            "promp": ("Horizon 100, actions divided by 10.", {**_PROMP_CHEETAH, "goal": "direction"}),
        },
    ),
    "halfcheetah-vel": FamilyEntry(
        module="envs.locomotion.half_cheetah",
        problem="HalfCheetah",
        config="HalfCheetahConfig",
        gym_id="metarl/HalfCheetahVel-v0",
        summary="A planar runner finds its target velocity (reward: minus the error, minus a control cost).",
        default_variant="plain",
        variants={
            "plain": ("Gymnasium's HalfCheetah-v5, v* ~ U(0, 3), horizon 200, 17 observations.", {}),
            "maml2017": (
                "rllab's timing (dt 0.01), v* ~ U(0, 2), centre of mass in reward and observation; 40 published tasks.",
                {**_RLLAB_CHEETAH, "published": _HALFCHEETAH_MAML2017},
            ),
            "promp": ("v* ~ U(0, 3), horizon 100, actions divided by 10.", _PROMP_CHEETAH),
            "pearl": (
                "130 fixed v* from U(0, 3): 100 to train on, 30 to test; torso position in the observation.",
                {"observe": "torso", "fixed_tasks_seed": 1337, "num_fixed_tasks": 130, "num_train_tasks": 100},
            ),
            "varibad": ("v* ~ U(0, 3), horizon 200, torso position in the observation.", {"observe": "torso"}),
        },
    ),
}
