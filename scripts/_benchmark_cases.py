"""The measurements behind benchmark.py; `_benchmark_limits` has what they are held against."""

from __future__ import annotations

import statistics
from typing import final

import _benchmark_limits as limits
from _benchmark_limits import Row, Timing, median, peak_memory_mb, timed

from envs.batched_env import BatchedEnv
from envs.family import TaskFamily
from metarl.algorithms.maml_trpo import MAMLTRPO, MetaBatch, inner_loss, make_chunks, update
from metarl.collect import collect
from metarl.experiment.config import TrainConfig
from metarl.noise import TaskNoise
from metarl.parallel import num_cores, one_intra_op_thread
from metarl.policies import GaussianMLPPolicy, initial_params
from metarl.rollout_adaptation import RolloutAdaptation, adapt_on_rollouts


@final
class Case:
    """A MAML-TRPO set-up; builds nothing large before it is asked to."""

    def __init__(self, family: TaskFamily, config: TrainConfig) -> None:
        self.family, self.config = family, config.learner
        self.threads = config.num_threads or num_cores()
        hidden, activation = config.policy.hidden_sizes, config.policy.activation
        self.sizes = (family.observation_dim, *hidden, family.action_dim)
        self.policy = GaussianMLPPolicy(family.observation_dim, family.action_dim, hidden, activation)
        self.chunks = make_chunks(self.config, self.policy, family.horizon, config.device, self.threads)

    def make_env(self) -> BatchedEnv:
        tasks = self.family.sample_tasks(self.config.meta_batch_size)
        return self.family.batch(tasks, self.config.episodes_per_task, num_threads=self.threads)

    def record(self, env: BatchedEnv) -> RolloutAdaptation:
        """One inner step on fresh rollouts, and rollouts with what it gave."""
        return adapt_on_rollouts(
            env,
            self.policy,
            initial_params(self.policy),
            inner_loss(self.policy),
            inner_lr=self.config.inner_lr,
            num_steps=1,
            noise_key=(0, 0, 0),
            settings=self.config.advantage_settings(),
            chunks=self.chunks,
        )


@one_intra_op_thread()
def measure(case: Case, what: str, repeats: int) -> list[Row]:
    """Runs a benchmark after one warm-up of everything it times; limit and measurement alternate."""
    cases = {"rollout": measure_rollout, "update": measure_update, "iteration": measure_iteration}
    return cases[what](case, repeats)


def measure_rollout(case: Case, repeats: int) -> list[Row]:
    """Closed-loop collection with an adapted policy per task against open-loop stepping with the same controls."""
    env = case.make_env()
    data = case.record(env)
    step, controls, params = (
        limits.open_loop_stepper(env, case.threads),
        limits.controls_of(env, data.rollouts[-1]),
        data.trajectory[-1],
    )
    del data

    def closed() -> int:
        return collect(env, case.policy, params, TaskNoise((0, 0, 0, 1), env.num_tasks)).num_steps()

    opened, closed_loop = [], []
    for _ in range(repeats):
        opened.append(timed(lambda: step(controls)))
        closed_loop.append(timed(closed))
    reference, ours, memory = median(opened), median(closed_loop), peak_memory_mb()
    limit, rate = controls.shape[0] * controls.shape[1] / reference.cpu, ours.result / ours.cpu

    def row(name: str, rate: float, timing: Timing) -> Row:
        ratio, unit = rate / limit, "env steps/CPU-s"
        return Row(f"rollout/{name}", rate, limit, ratio, unit, timing.cpu, timing.wall, memory)

    return [row("open_loop", limit, reference), row("closed_loop", rate, ours)]


def measure_update(case: Case, repeats: int) -> list[Row]:
    """One meta-update on the same rollouts."""
    data, params = case.record(case.make_env()), initial_params(case.policy)
    valid = data.samples(0).valid

    def run() -> int:
        batch = MetaBatch.of(data, case.config.fvp_fraction)
        return update(case.policy, params, batch, case.config, case.chunks)[0].line_search_steps

    run()
    rates, timings = [], []
    for _ in range(repeats):
        timings.append(timed(run))
        rates.append(limits.matmul_rate(case.sizes, valid, case.chunks))
    ours, rate, memory = median(timings), statistics.median(rates), peak_memory_mb()
    work = limits.update_flops(case.sizes, valid, case.config, ours.result)
    limit = work / rate
    print(f"{work / 1e9:,.0f} GFLOP of matrix products at {rate / 1e9:.0f} GFLOP/s per core (batched matmul, this run)")
    return [Row("iteration/update", ours.cpu, limit, ours.cpu / limit, "CPU-s", ours.cpu, ours.wall, memory)]


def measure_iteration(case: Case, repeats: int) -> list[Row]:
    """A whole iteration: sampling against open-loop physics for the same steps, updating against matrix products."""
    learner = MAMLTRPO(case.family, case.policy, case.config, num_threads=case.threads)
    learner.iterate()
    runs: list[Timing[dict[str, float]]] = [timed(learner.iterate)]
    memory = peak_memory_mb()  # before anything is built that an iteration does not need
    env = case.make_env()
    data = case.record(env)
    step, controls, valid = (
        limits.open_loop_stepper(env, case.threads),
        limits.controls_of(env, data.rollouts[-1]),
        data.samples(0).valid,
    )
    del env, data
    physics, rates = [], []
    for _ in range(repeats):
        physics.append(timed(lambda: (step(controls), step(controls))))
        rates.append(limits.matmul_rate(case.sizes, valid, case.chunks))
        if len(runs) < repeats:
            runs.append(timed(learner.iterate))
    reference, ours, rate = median(physics), median(runs), statistics.median(rates)
    metrics = ours.result
    update_limit = limits.update_flops(case.sizes, valid, case.config, int(metrics["line_search/evaluations"])) / rate

    def row(name: str, cpu: float, wall: float, limit: float) -> Row:
        return Row(f"iteration/{name}", cpu, limit, cpu / limit, "CPU-s", cpu, wall, memory)

    return [
        row("sampling", metrics["time/sampling_cpu_seconds"], metrics["time/sampling_seconds"], reference.cpu),
        row("update", metrics["time/updating_cpu_seconds"], metrics["time/updating_seconds"], update_limit),
        row("total", ours.cpu, ours.wall, reference.cpu + update_limit),
    ]
