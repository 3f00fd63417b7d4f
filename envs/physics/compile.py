"""From a family's description to a compiled MuJoCo model; what every backend and the renderer start from."""

# MuJoCo's classes come from compiled modules without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium
import mujoco

from envs.physics.model import MujocoModel


def mujoco_is_too_old() -> bool:
    return int(mujoco.__version__.split(".")[0]) < 4


def needs_newer_mujoco() -> ImportError:
    """For a backend to raise where what it imports is not there."""
    return ImportError(
        f"envs.physics needs MuJoCo 4.0 or later (mujoco.batch), but this environment has {mujoco.__version__}: "
        "run `pip install 'mujoco>=4.0'`, in an environment of its own if another package wants the older one."
    )


def build_model(description: MujocoModel) -> mujoco.MjModel:
    """Compiles the model a family describes, without a message on screen or a log file in the working directory."""
    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / description.asset
    with warnings.catch_warnings():
        # Gymnasium's half_cheetah.xml uses an attribute that MuJoCo 4 calls deprecated; the model is what it is.
        warnings.filterwarnings("ignore", message=".*settotalmass")
        spec = mujoco.MjSpec.from_file(str(path))
        for quantity in description.derived:
            if quantity.kind == "subtree_velocity":
                spec.add_sensor(
                    name=quantity.name,
                    type=mujoco.mjtSensor.mjSENS_SUBTREELINVEL,
                    objtype=mujoco.mjtObj.mjOBJ_BODY,
                    objname=quantity.body,
                )
        model = spec.compile()
    if description.timestep is not None:
        model.opt.timestep = description.timestep
    return model
