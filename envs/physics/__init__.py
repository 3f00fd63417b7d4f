"""Physics engines behind `envs.family.Simulator`. Imported only by families that need one, when they need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from envs.family import Backend, Simulator
    from envs.physics.model import MujocoModel


def make_simulator(
    model: MujocoModel, num_lanes: int, device: torch.device, backend: Backend, num_threads: int
) -> Simulator:
    """Builds `num_lanes` worlds of a MuJoCo model on the backend that fits the device.

    Args:
        model: The model as its family describes it.
        num_lanes: Number of worlds.
        device: Where state and control live.
        backend: "auto" or "mujoco": MuJoCo on CPU threads.
        num_threads: CPU threads.

    Raises:
        ValueError: For a backend or a device that MuJoCo models cannot run on.
    """
    if backend not in ("auto", "mujoco"):
        raise ValueError(f"backend is {backend!r}; MuJoCo families run with 'auto' or 'mujoco'.")
    if device.type != "cpu":
        raise ValueError(f"device is '{device}'; MuJoCo families run on 'cpu'.")
    from envs.physics.mujoco_cpu import MujocoCpuSimulator

    return MujocoCpuSimulator(model, num_lanes, num_threads)
