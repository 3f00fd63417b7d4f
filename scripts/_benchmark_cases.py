"""The measurements behind benchmark.py; `_benchmark_limits` has what they are held against."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import statistics
from collections.abc import Sequence
from typing import Any, final

import _benchmark_limits as limits
from _benchmark_limits import Row, Timing, median, peak_memory_mb, timed

from envs.batched_env import BatchedEnv
from envs.family import Backend, TaskFamily
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
from metarl.algorithms.meta_learner import MetaLearner, make_chunks
from metarl.algorithms.objective import MetaBatch
from metarl.algorithms.trust_region import trust_region_update
from metarl.collect import collect
from metarl.experiment.config import TrainConfig
from metarl.functional import initial_params
from metarl.noise import collection_noise
from metarl.parallel import num_cores, one_intra_op_thread
from metarl.policies import Activation, GaussianMLPPolicy
from metarl.rollout_adaptation import RolloutAdaptation, adapt_on_rollouts
from metarl.types import Params


@final
class Case:
    """A MAML-TRPO set-up; builds nothing large before it is asked to."""

    def __init__(self, family: TaskFamily, config: TrainConfig, backend: Backend = "auto") -> None:
        self.family, self.config = family, config.learner
        self.device: str = config.device
        self.backend: Backend = backend
        self.threads = config.num_threads or num_cores()
        hidden = config.policy.hidden_sizes
        self.activation: Activation = config.policy.activation
        self.sizes = (family.observation_dim, *hidden, family.action_dim)
        self.policy = GaussianMLPPolicy(family.observation_dim, family.action_dim, hidden, self.activation)
        self.inner = self.config.inner_loop(self.policy)
        self.chunks = make_chunks(self.config, self.policy, family.horizon, self.device, self.threads)

    @property
    def per_second(self) -> str:
        """What rates and costs are counted in."""
        return "s" if self.device == "cuda" else "CPU-s"

    def with_worlds(self, worlds: int) -> Case:
        """The same with so many worlds: a power of two of tasks, up to the case's own number of them."""
        tasks = min(2 ** int(math.log2(self.config.meta_batch_size)), worlds)
        learner = dataclasses.replace(self.config, meta_batch_size=tasks, episodes_per_task=max(1, worlds // tasks))
        return self._with(config=learner)

    def on_cpu(self) -> Case:
        """The same on the CPU's own physics."""
        return self._with(device="cpu", backend="auto")

    def _with(self, **changes: Any) -> Case:
        other = copy.copy(self)
        other.__dict__.update(changes)
        other.chunks = make_chunks(other.config, other.policy, other.family.horizon, other.device, other.threads)
        return other

    def make_env(self) -> BatchedEnv:
        tasks = self.family.sample_tasks(self.config.meta_batch_size)
        return self.family.batch(
            tasks, self.config.episodes_per_task, self.device, self.backend, num_threads=self.threads
        )

    def params(self) -> Params:
        return {name: value.to(self.device) for name, value in initial_params(self.policy).items()}

    def record(self, env: BatchedEnv) -> RolloutAdaptation:
        """One inner step on fresh rollouts, and rollouts with what it gave."""
        return adapt_on_rollouts(
            env,
            self.inner,
            self.params(),
            num_steps=1,
            noise_key=(0, 0, 0),
            settings=self.config.advantage_settings(),
            chunks=self.chunks,
        )


@one_intra_op_thread()
def measure(case: Case, what: str, repeats: int, worlds: Sequence[int]) -> list[Row]:
    """Runs a benchmark after one warm-up of everything it times; limit and measurement alternate."""
    if what == "rollout":
        return measure_sweep(case, repeats, worlds)
    cases = {"update": measure_update, "iteration": measure_iteration, "learners": measure_learners}
    return cases[what](case, repeats)


def measure_sweep(case: Case, repeats: int, worlds: Sequence[int]) -> list[Row]:
    """`measure_rollout` at every number of worlds; on CUDA also the CPU's own rate, at the case's size."""
    rows = []
    for number in worlds:
        try:
            rows += measure_rollout(case.with_worlds(number), repeats)
        except RuntimeError as error:
            # torch and Warp each have words of their own for it.
            if "memory" not in str(error) and "allocat" not in str(error):
                raise
            print(f"{number:,} worlds do not fit into memory; the sweep ends here.")
            break
        gc.collect()  # a simulator and its captured graphs refer to one another
        print(
            f"{number:>9,} worlds: {rows[-1].measured:,.0f} {rows[-1].unit}, {rows[-1].ratio:.2f} of the limit",
            flush=True,
        )
    if not worlds:
        rows += measure_rollout(case, repeats)
    if case.device == "cuda":
        closed = measure_rollout(case.on_cpu(), repeats)[1]
        rate = closed.measured * closed.cpu_seconds / closed.wall_seconds
        beside = {"measured": rate, "limit": rate, "ratio": 1.0, "unit": "env steps/s"}
        rows.append(dataclasses.replace(closed, name="rollout/cpu", **beside))
    return rows


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
    noise = collection_noise((0, 0, 0, 1), env.num_tasks, env.device)

    def closed() -> int:
        return collect(env, case.policy, params, noise).num_steps()

    opened, closed_loop = [], []
    for _ in range(repeats):
        opened.append(timed(lambda: step(controls), case.device))
        closed_loop.append(timed(closed, case.device))
    reference, ours, memory = median(opened), median(closed_loop), peak_memory_mb(case.device)
    limit, rate = controls.shape[0] * controls.shape[1] / reference.cost, ours.result / ours.cost

    def row(name: str, rate: float, timing: Timing) -> Row:
        unit, worlds = f"env steps/{case.per_second}", controls.shape[1]
        return Row(f"rollout/{name}", rate, limit, rate / limit, unit, timing.cpu, timing.wall, memory, worlds)

    return [row("open_loop", limit, reference), row("closed_loop", rate, ours)]


def measure_update(case: Case, repeats: int) -> list[Row]:
    """One meta-update on the same rollouts."""
    data, params = case.record(case.make_env()), case.params()
    valid = data.samples(0).valid

    def run() -> int:
        batch = MetaBatch.of(data, case.config)
        return trust_region_update(case.inner, params, batch, case.config, case.chunks)[0].line_search_steps

    run()
    rates, timings = [], []
    for _ in range(repeats):
        timings.append(timed(run, case.device))
        rates.append(limits.matmul_rate(case.sizes, valid, case.chunks))
    ours, rate, memory = median(timings), statistics.median(rates), peak_memory_mb(case.device)
    work = limits.update_flops(case.sizes, valid, case.config, ours.result)
    limit = work / rate
    print(f"{work / 1e9:,.0f} GFLOP of matrix products at {rate / 1e9:.0f} GFLOP/s (batched matmul, this run)")
    return [Row("iteration/update", ours.cost, limit, ours.cost / limit, case.per_second, ours.cpu, ours.wall, memory)]


def measure_iteration(case: Case, repeats: int) -> list[Row]:
    """A whole iteration: sampling against open-loop physics for the same steps, updating against matrix products."""
    learner = MetaLearner(case.family, case.policy, case.config, device=case.device, num_threads=case.threads)
    learner.iterate()
    runs: list[Timing[dict[str, float]]] = [timed(learner.iterate, case.device)]
    memory = peak_memory_mb(case.device)  # before anything is built that an iteration does not need
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
        physics.append(timed(lambda: (step(controls), step(controls)), case.device))
        rates.append(limits.matmul_rate(case.sizes, valid, case.chunks))
        if len(runs) < repeats:
            runs.append(timed(learner.iterate, case.device))
    reference, ours, rate = median(physics), median(runs), statistics.median(rates)
    metrics = ours.result
    update_limit = limits.update_flops(case.sizes, valid, case.config, int(metrics["line_search/evaluations"])) / rate
    parts = {
        name: (metrics[f"time/{verb}_cpu_seconds"], metrics[f"time/{verb}_seconds"])
        for name, verb in (("sampling", "sampling"), ("update", "updating"))
    }
    bounds = {"sampling": reference.cost, "update": update_limit, "total": reference.cost + update_limit}

    def row(name: str, cpu: float, wall: float) -> Row:
        cost = wall if case.device == "cuda" else cpu
        ratio = cost / bounds[name]
        return Row(
            f"iteration/{name}", cost, bounds[name], ratio, case.per_second, cpu, wall, memory, controls.shape[1]
        )

    return [*(row(name, *seconds) for name, seconds in parts.items()), row("total", ours.cpu, ours.wall)]


def measure_learners(case: Case, repeats: int) -> list[Row]:
    """An iteration of every learner that is trained, in turns; the limit of each is what MAML-TRPO takes."""
    shared = ("meta_batch_size", "episodes_per_task", "inner_lr", "chunk_size")
    settings = {name: getattr(case.config, name) for name in shared}
    learners = {}
    for name, named in LEARNERS.items():
        config = LearnerConfig(**{**named.settings, **settings})
        if config.outer_optimizer == "trpo":
            config = dataclasses.replace(config, fvp_fraction=case.config.fvp_fraction)
        if named.is_trained and not named.observe_task:  # the oracle is pretraining with more inputs
            policy = GaussianMLPPolicy(
                case.sizes[0], case.sizes[-1], case.sizes[1:-1], case.activation, context_dim=config.context_dim
            )
            learners[name] = MetaLearner(case.family, policy, config, device=case.device, num_threads=case.threads)
    timings: dict[str, list[Timing[Any]]] = {name: [] for name in learners}
    for repeat in range(repeats + 1):
        for name, learner in learners.items():
            timing = timed(learner.iterate, case.device)
            if repeat:
                timings[name].append(timing)
    medians = {name: median(found) for name, found in timings.items()}
    limit, memory = medians["maml-trpo"].cost, peak_memory_mb(case.device)
    worlds = case.config.meta_batch_size * case.config.episodes_per_task
    return [
        Row(f"learners/{name}", m.cost, limit, m.cost / limit, case.per_second, m.cpu, m.wall, memory, worlds)
        for name, m in medians.items()
    ]
