"""What a family says of its MuJoCo model: plain data that every physics backend reads, without importing MuJoCo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DerivedKind = Literal["body_position", "subtree_com", "subtree_velocity"]
Instant = Literal["last_substep", "new_state"]
VariedField = Literal[
    "body_mass", "body_inertia", "geom_friction", "dof_damping", "actuator_gainprm", "actuator_biasprm", "opt.gravity"
]
"""Model fields that may differ from world to world, by the names MuJoCo gives them."""

CONSTANTS_FOLLOW: tuple[VariedField, ...] = ("body_mass", "body_inertia")
"""Fields that other constants of the model derive from (`mj_setConst`)."""


@dataclass(frozen=True)
class Derived:
    """A quantity `[lane, 3]` that the simulator adds to the state beside `qpos` and `qvel`.

    Attributes:
        name: Its key in the state.
        kind: "body_position" is the origin of the body's frame (m); "subtree_com" the centre of mass of the body and
            everything attached to it (m); "subtree_velocity" the velocity of that centre (m/s). World coordinates.
        body: Name of the body in the model.
    """

    name: str
    kind: DerivedKind
    body: str


@dataclass(frozen=True)
class MujocoModel:
    """A MuJoCo model and how it is stepped.

    Attributes:
        asset: File name among the models that Gymnasium ships (`gymnasium/envs/mujoco/assets`).
        frame_skip: Physics substeps per control step; the control is held over them.
        timestep: Seconds per substep, or None for the file's own.
        derived: Quantities the state holds beside `qpos` and `qvel`.
        derived_at: The instant all of them belong to after a step. "last_substep" is what MuJoCo leaves behind: the
            state BEFORE the last substep, one timestep behind qpos (with the Euler integrator; this is also what
            Gymnasium's environments read from `data`). "new_state" evaluates them at the state that the step ended in.
            After a reset they belong to the reset state in both cases.
        varied: Model fields that differ from world to world; a family that names some has a `model_fields` method
            (`envs.family.VariesDynamics`). Scale inertia with mass.
        contacts_per_world: Room for contacts on the GPU, shared by all worlds: a mean, with a margin. MuJoCo on the CPU
            needs no such number. What does not fit is noticed, voids the episode, and the room is doubled.
        constraints_per_world: Room for constraint rows of each world on the GPU; likewise. It drives memory and work.
    """

    asset: str
    frame_skip: int
    timestep: float | None = None
    derived: tuple[Derived, ...] = ()
    derived_at: Instant = "last_substep"
    varied: tuple[VariedField, ...] = ()
    contacts_per_world: int = 24
    constraints_per_world: int = 96

    def check_control(self, given: Sequence[int], wanted: Sequence[int]) -> None:
        """Raises ValueError unless a control has the model's shape `[lane, motor]`: a narrower one would spread."""
        if tuple(given) != tuple(wanted):
            raise ValueError(
                f"control has shape {list(given)}; {self.asset} has {wanted[1]} motors, so it must be {list(wanted)}: "
                "the family's FamilySpec needs one action label for each motor."
            )
