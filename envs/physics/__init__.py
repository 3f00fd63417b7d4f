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
        backend: "mujoco" (CPU threads, float64), "warp" (MuJoCo Warp, float32: CUDA, or Warp's own CPU device), or
            "auto", which is the first on the CPU and the second on CUDA.
        num_threads: CPU threads of "mujoco".

    Raises:
        ValueError: For a backend or a device that MuJoCo models cannot run on.
        ImportError: In one sentence, where what the backend needs is not installed.
    """
    if backend == "auto":
        backend = "mujoco" if device.type == "cpu" else "warp"
    if backend not in ("mujoco", "warp"):
        raise ValueError(f"backend is {backend!r}; MuJoCo families run with 'auto', 'mujoco' or 'warp'.")
    if device.type not in ("cpu", "cuda") or (backend == "mujoco" and device.type != "cpu"):
        runs_on = "'cpu'" if backend == "mujoco" else "'cuda' or 'cpu'"
        raise ValueError(f"device is '{device}'; MuJoCo families with backend '{backend}' run on {runs_on}.")
    if backend == "warp":
        from envs.physics.mujoco_warp import MujocoWarpSimulator

        return MujocoWarpSimulator(model, num_lanes, device)
    from envs.physics.mujoco_cpu import MujocoCpuSimulator

    return MujocoCpuSimulator(model, num_lanes, num_threads)
