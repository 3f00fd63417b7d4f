"""How benchmark.py measures, and against what: the physics alone, and the matrix products no update can avoid."""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from envs.batched_env import BatchedEnv
from envs.family import Simulator, State, TaskFamily
from envs.physics.model import MujocoModel
from metarl.algorithms.config import LearnerConfig
from metarl.parallel import TaskChunks
from metarl.types import Rollout

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: `ratio` is measured / limit for rates and for times alike.

    `peak_memory_mb` is the largest resident memory of the process up to the end of what the row measures; on CUDA, the
    GPU's memory in use then. `worlds` is 0 where no worlds are stepped.
    """

    name: str
    measured: float
    limit: float
    ratio: float
    unit: str
    cpu_seconds: float
    wall_seconds: float
    peak_memory_mb: float
    worlds: int = 0


@dataclass(frozen=True)
class Timing(Generic[T]):
    """CPU and wall seconds of one call, and its result. `cost` is what counts: CPU seconds, on a GPU wall seconds."""

    cpu: float
    wall: float
    result: T
    cost: float


def timed(function: Callable[[], T], device: str) -> Timing[T]:
    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    wait()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Timing(cpu, wall, result, wall if device == "cuda" else cpu)


def median(timings: Sequence[Timing[T]]) -> Timing[T]:
    """The timing with the median cost."""
    return sorted(timings, key=lambda timing: timing.cost)[len(timings) // 2]


def peak_memory_mb(device: str) -> float:
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def controls_of(env: BatchedEnv, rollout: Rollout) -> Tensor:
    """`[time, lane, control_dim]` as the physics got them."""
    return env.applied_action(rollout.actions.flatten(0, 1).transpose(0, 1)).contiguous()


def open_loop_stepper(env: BatchedEnv, threads: int) -> Callable[[Tensor], None]:
    """`controls [time, lane, control_dim] -> None`: nothing but the dynamics, from the states that `env` resets to.

    Keeps nothing of `env` but what the dynamics need.
    """
    env.reset(0)
    simulator, start = env.simulator, env.state
    model = getattr(simulator, "model", None)
    if model is None:
        return _torch_stepper(simulator, start)

    frame_skip = round(env.family.spec.dt / model.opt.timestep)
    # MuJoCo itself, not our simulator around it: the limit must not contain what is measured against it.
    if simulator.dtype == torch.float32:
        return _warp_stepper(description_of(env.family), start)
    from mujoco.batch import Batch

    batch = Batch(model, simulator.num_lanes, nthread=threads)
    qpos, qvel, ctrl = (batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
    start_qpos, start_qvel = start["qpos"].numpy(), start["qvel"].numpy()
    del simulator

    def step_mujoco(controls: Tensor) -> None:
        batch.reset()
        qpos[:], qvel[:] = start_qpos, start_qvel
        batch.forward()
        for control in controls.numpy():
            ctrl[:] = control
            batch.step(nstep=frame_skip)

    return step_mujoco


def description_of(family: TaskFamily) -> MujocoModel:
    """What a MuJoCo family says of its model."""
    return cast(Any, family.problem).model


def _torch_stepper(simulator: Simulator, start: State) -> Callable[[Tensor], None]:
    """The transition alone; on CUDA as a captured graph, which is how the closed loop runs there too."""
    if simulator.device.type == "cpu":

        def step_eagerly(controls: Tensor) -> None:
            simulator.reset(start, None)
            for control in controls:
                simulator.step(control, None)

        return step_eagerly

    graph: torch.cuda.CUDAGraph | None = None
    held: list[Tensor] = []

    def step_captured(controls: Tensor) -> None:
        nonlocal graph
        simulator.reset(start, None)
        if graph is None:
            held.append(controls[0].clone())
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                simulator.step(held[0], None)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                simulator.step(held[0], None)
        for control in controls:
            held[0].copy_(control)
            graph.replay()

    return step_captured


def _warp_stepper(description: MujocoModel, start: State) -> Callable[[Tensor], None]:
    """Raw `mujoco_warp` with its own settings: one launch of a captured graph per control step."""
    import mujoco_warp as mjw
    import warp as wp

    from envs.physics.compile import build_model

    qpos, model = start["qpos"], build_model(description)
    room = {"nconmax": description.contacts_per_world, "njmax": description.constraints_per_world}
    with wp.ScopedDevice(wp.device_from_torch(qpos.device)):
        warp_model = mjw.put_model(model)
        warp_model.opt.warn_overflow = 0
        data = mjw.make_data(model, nworld=len(qpos), **room)

        def substeps() -> None:
            for _ in range(description.frame_skip):
                mjw.step(warp_model, data)

        substeps()
        with wp.ScopedCapture() as capture:
            substeps()
    graph = cast(Any, capture.graph)
    names = ("qpos", "qvel", "ctrl", "qacc_warmstart", "overflow")
    views = {name: wp.to_torch(getattr(data, name)) for name in names}

    def step_warp(controls: Tensor) -> None:
        for name in ("qpos", "qvel"):
            views[name].copy_(start[name])
        views["qacc_warmstart"].zero_()
        for control in controls:
            views["ctrl"].copy_(control)
            wp.capture_launch(graph)
        if views["overflow"].any():
            raise RuntimeError("The raw physics had no room for all contacts: its rate would mean nothing.")

    vars(step_warp)["holds"] = warp_model, data  # a CUDA graph does not keep the arrays it was captured on
    return step_warp


def matmul_rate(sizes: Sequence[int], valid: Tensor, chunks: TaskChunks) -> float:
    """FLOP per CPU-second of the update's typical product: every task's hidden activations by its own weights.

    On a GPU per second. Measured as the update runs: chunk by chunk over all tasks, so that activations come from
    memory, and on as many threads, as two threads on one physical core share its arithmetic units.

    Args:
        sizes: Widths of the policy's layers, input and output included.
        valid: Boolean `[task, row]` of the update's samples.
        chunks: As the update splits tasks.
    """
    (tasks, rows), width = valid.shape, max(sizes[1:-1], default=1)
    device = valid.device
    left, right = torch.randn(tasks, rows, width, device=device), torch.randn(tasks, width, width, device=device)

    def all_tasks() -> None:
        chunks.map(torch.bmm, tasks, left, right)

    all_tasks()
    return 2 * tasks * rows * width**2 / median([timed(all_tasks, device.type) for _ in range(9)]).cost


def update_flops(sizes: Sequence[int], valid: Tensor, config: LearnerConfig, line_search_steps: int) -> float:
    """Floating-point work of the matrix products alone that one update cannot do without (K = 1 inner step).

    Per row of data a layer n_in x n_out costs c = 2 n_in n_out for one product. With the sums over all layers (a) and
    over all but the first (b), whose input needs no gradient: forward a; gradient a + b; Hessian product on a kept
    graph 2a + 4b (tangents and cotangents of activations, and of weights); Fisher product of the policy 2a + 2b.
    """
    products = [2 * n_in * n_out for n_in, n_out in itertools.pairwise(sizes)]
    a, b = sum(products), sum(products[1:])
    gradient = (a + b) + a
    hessian, fisher = 2 * a + 4 * b, 2 * a + 2 * b
    inner_step = gradient
    meta_gradient = inner_step + gradient + hessian
    metric = config.fvp_fraction * (2 * gradient + config.cg_iters * (2 * hessian + fisher))
    line_search = line_search_steps * (inner_step + a)
    return float(valid.sum()) * (inner_step + meta_gradient + metric + line_search)
