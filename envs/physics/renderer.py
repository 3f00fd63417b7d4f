"""Pictures of one MuJoCo world, drawn off screen."""

# MuJoCo's classes come from compiled modules without type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, final

import mujoco
import numpy as np
from torch import Tensor

from envs.physics.compile import build_model
from envs.physics.model import MujocoModel

if TYPE_CHECKING:
    from envs.family import State

# Antialiasing, shadows, reflections and the sky cost ten times the rest of a frame where OpenGL runs in software.
_SLOW_EFFECTS = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_SKYBOX)


@final
class MujocoRenderer:
    """Draws worlds of a model through one of the model's own cameras; keeps one OpenGL context.

    Args:
        description: The model as its family describes it.
        camera: Name of a camera in it; one that follows the body keeps it in view, over a floor that shows the motion.
        width: Pixels.
        height: Pixels.

    Raises:
        RuntimeError: Where OpenGL is not available.
    """

    def __init__(self, description: MujocoModel, camera: str, width: int, height: int) -> None:
        model = build_model(description)
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)
        self._model, self._data, self._camera = model, mujoco.MjData(model), camera
        self._renderer = _open(model, width, height)
        for effect in _SLOW_EFFECTS:
            self._renderer.scene.flags[effect] = 0

    def render(self, state: State, lane: int, task: Tensor) -> np.ndarray:
        self._data.qpos[:] = state["qpos"][lane].cpu().numpy()
        mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, camera=self._camera)
        return self._renderer.render()

    def close(self) -> None:
        self._renderer.close()


def _open(model: mujoco.MjModel, width: int, height: int) -> mujoco.Renderer:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glfw warns of what is raised just after
            return mujoco.Renderer(model, height, width)
    except Exception as error:  # each of the OpenGL backends fails with exceptions of its own
        backend = os.environ.get("MUJOCO_GL", "")
        raise RuntimeError(
            f"Rendering needs OpenGL and none could be opened (MUJOCO_GL={backend!r}): set MUJOCO_GL=egl or "
            "MUJOCO_GL=osmesa before Python starts and install that library (Debian: libegl1 or libosmesa6)."
        ) from error
