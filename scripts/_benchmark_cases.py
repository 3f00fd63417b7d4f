"""The measurements behind benchmark.py."""

from __future__ import annotations

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from metarl.algorithms.maml_trpo import MAMLTRPO, MAMLTRPOConfig, MetaBatch, inner_loss, update
from metarl.collect import collect
from metarl.noise import TaskNoise
from metarl.parallel import TaskChunks, num_cores, one_intra_op_thread
from metarl.policies import GaussianMLPPolicy
from metarl.rollout_adaptation import adapt_on_rollouts


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: `ratio` is measured / limit for rates and for times alike."""

    name: str
    measured: float
    limit: float
    ratio: float
    unit: str
    cpu_seconds: float
    wall_seconds: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Timing:
    """CPU and wall seconds of one call, and its result."""

    cpu: float
    wall: float
    result: Any


def timed(function: Callable[[], Any]) -> Timing:
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall, result)


def median(timings: Sequence[Timing]) -> Timing:
    """The timing with the median CPU time."""
    return sorted(timings, key=lambda timing: timing.cpu)[len(timings) // 2]


def peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@final
class Case:
    """A MAML-TRPO set-up of given sizes; see `benchmark.Arguments`."""

    def __init__(
        self,
        family: Any,
        num_tasks: int,
        episodes: int,
        hidden_sizes: Sequence[int],
        activation: Any,
        inner_lr: float,
        fvp_fraction: float,
        chunk_size: int,
        num_threads: int | None,
    ) -> None:
        self.family = family
        self.threads = num_threads or num_cores()
        self.config = MAMLTRPOConfig(
            meta_batch_size=num_tasks,
            episodes_per_task=episodes,
            inner_lr=inner_lr,
            fvp_fraction=fvp_fraction,
            chunk_size=chunk_size,
        )
        self.sizes = (family.observation_dim, *hidden_sizes, family.action_dim)
        self.policy = GaussianMLPPolicy(family.observation_dim, family.action_dim, hidden_sizes, activation)
        self.tasks = family.sample_tasks(num_tasks)
        self.env = family.batch(self.tasks, episodes, num_threads=self.threads)
        self.chunks = TaskChunks(chunk_size, self.threads)
        self.params = MAMLTRPO(family, self.policy, self.config, num_threads=self.threads).params

    def adapted(self) -> Any:
        """One inner step on fresh rollouts, and rollouts with what it gave."""
        return adapt_on_rollouts(
            self.env,
            self.policy,
            self.params,
            inner_loss(self.policy),
            inner_lr=self.config.inner_lr,
            num_steps=1,
            noise_key=(0, 0, 0),
            settings=self.config.advantage_settings(),
            chunks=self.chunks,
        )


def measure(case: Case, what: str, repeats: int) -> list[Row]:
    """Runs a benchmark after one warm-up of everything it times; limit and measurement alternate."""
    with one_intra_op_thread():
        data = case.adapted()
        if what == "rollout":
            return measure_rollout(case, data, repeats)
        if what == "update":
            return measure_update(case, data, repeats)
        return measure_iteration(case, data, repeats)


def measure_rollout(case: Case, data: Any, repeats: int) -> list[Row]:
    """Closed-loop collection with an adapted policy per task against open-loop stepping with the same controls."""
    step = open_loop_stepper(case)
    controls = case.env.applied_action(data.rollouts[-1].actions.flatten(0, 1).transpose(0, 1)).contiguous()
    params, lanes = data.trajectory[-1], case.env.num_tasks * case.env.episodes_per_task

    def closed() -> Any:
        return collect(case.env, case.policy, params, TaskNoise((0, 0, 0, 1), case.env.num_tasks))

    opened, closed_loop = [], []
    for _ in range(repeats):
        opened.append(timed(lambda: step(controls)))
        closed_loop.append(timed(closed))
    reference, ours = median(opened), median(closed_loop)
    steps = ours.result.num_steps()
    limit, rate = lanes * len(controls) / reference.cpu, steps / ours.cpu
    unit = "env steps/CPU-s"
    return [
        Row("rollout/open_loop", limit, limit, 1.0, unit, reference.cpu, reference.wall, peak_memory_mb()),
        Row("rollout/closed_loop", rate, limit, rate / limit, unit, ours.cpu, ours.wall, peak_memory_mb()),
    ]


def open_loop_stepper(case: Case) -> Callable[[Tensor], None]:
    """`controls [time, lane, control_dim] -> None`: nothing but the dynamics."""
    lanes = case.env.num_tasks * case.env.episodes_per_task
    simulator = case.env.simulator
    if not hasattr(simulator, "model"):

        def step_torch(controls: Tensor) -> None:
            case.env.reset(0)
            for control in controls:
                simulator.step(control, None)

        return step_torch

    # MuJoCo itself, not our simulator around it: the limit must not contain what is measured against it.
    from mujoco.batch import Batch

    batch = Batch(simulator.model, lanes, nthread=case.threads)
    qpos, qvel, ctrl = (batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
    case.env.reset(0)
    start = {name: value.numpy().copy() for name, value in case.env.state.items()}
    frame_skip = round(case.family.spec.dt / simulator.model.opt.timestep)

    def step_mujoco(controls: Tensor) -> None:
        batch.reset()
        qpos[:], qvel[:] = start["qpos"], start["qvel"]
        batch.forward()
        for control in controls.numpy():
            ctrl[:] = control
            batch.step(nstep=frame_skip)

    return step_mujoco


def measure_update(case: Case, data: Any, repeats: int) -> list[Row]:
    """One meta-update on the same rollouts."""

    def run() -> Any:
        batch = MetaBatch.of(data, case.config.fvp_fraction)
        return update(case.policy, case.params, batch, case.config, case.chunks)

    run()
    rates, timings = [], []
    for _ in range(repeats):
        rates.append(matmul_rate(case, data))
        timings.append(timed(run))
    ours, rate = median(timings), statistics.median(rates)
    work = update_flops(case, data, ours.result[0].line_search_steps)
    limit = work / rate
    print(f"{work / 1e9:,.0f} GFLOP of matrix products at {rate / 1e9:.0f} GFLOP/s per core (batched matmul, this run)")
    row = Row("iteration/update", ours.cpu, limit, ours.cpu / limit, "CPU-s", ours.cpu, ours.wall, peak_memory_mb())
    return [row]


def measure_iteration(case: Case, data: Any, repeats: int) -> list[Row]:
    """A whole iteration: sampling against open-loop physics for the same steps, updating against matrix products."""
    step = open_loop_stepper(case)
    learner = MAMLTRPO(case.family, case.policy, case.config, num_threads=case.threads)
    learner.iterate()
    controls = case.env.applied_action(data.rollouts[-1].actions.flatten(0, 1).transpose(0, 1)).contiguous()
    physics, rates, runs = [], [], []
    for _ in range(repeats):
        physics.append(timed(lambda: (step(controls), step(controls))))
        rates.append(matmul_rate(case, data))
        runs.append(timed(learner.iterate))
    reference, ours, rate = median(physics), median(runs), statistics.median(rates)
    metrics = ours.result
    update_limit = update_flops(case, data, int(metrics["line_search/evaluations"])) / rate
    memory = peak_memory_mb()

    def row(name: str, cpu: float, wall: float, limit: float) -> Row:
        return Row(f"iteration/{name}", cpu, limit, cpu / limit, "CPU-s", cpu, wall, memory)

    sampling, updating = metrics["time/sampling_cpu_seconds"], metrics["time/updating_cpu_seconds"]
    return [
        row("sampling", sampling, metrics["time/sampling_seconds"], reference.cpu),
        row("update", updating, metrics["time/updating_seconds"], update_limit),
        row("total", ours.cpu, ours.wall, reference.cpu + update_limit),
    ]


def matmul_rate(case: Case, data: Any) -> float:
    """FLOP per CPU-second of the update's typical product: every task's hidden activations by its own weights.

    Measured as the update runs: chunk by chunk over all tasks, so that activations come from memory, and on as many
    threads, as two threads on one physical core share its arithmetic units.
    """
    rows, width = data.samples(0).valid.shape[1], max(case.sizes[1:-1], default=1)
    tasks = case.env.num_tasks
    left, right = torch.randn(tasks, rows, width), torch.randn(tasks, width, width)

    def all_tasks() -> None:
        case.chunks.map(torch.bmm, tasks, left, right)

    all_tasks()
    return 2 * tasks * rows * width**2 / median([timed(all_tasks) for _ in range(9)]).cpu


def update_flops(case: Case, data: Any, line_search_steps: int) -> float:
    """Floating-point work of the matrix products that one update cannot do without (K = 1 inner step).

    Per row of data a layer n_in x n_out costs c = 2 n_in n_out for one product. With the sums over all layers (a) and
    over all but the first (b), whose input needs no gradient: forward a; gradient a + b; Hessian product on a kept
    graph 2a + 4b (tangents and cotangents of activations, and of weights); Fisher product of the policy 2a + 2b.
    """
    products = [2 * n_in * n_out for n_in, n_out in itertools.pairwise(case.sizes)]
    a, b = sum(products), sum(products[1:])
    rows = float(data.samples(0).valid.sum())
    share = case.config.fvp_fraction
    gradient = (a + b) + a
    hessian, fisher = 2 * a + 4 * b, 2 * a + 2 * b
    inner_step = gradient
    meta_gradient = inner_step + gradient + hessian
    metric = share * (2 * gradient + case.config.cg_iters * (2 * hessian + fisher))
    line_search = line_search_steps * (inner_step + a)
    return rows * (inner_step + meta_gradient + metric + line_search)
