"""How fast rollouts and updates are, each beside the limit measured in the same run.

    python scripts/benchmark.py rollout --family halfcheetah-vel
    python scripts/benchmark.py iteration --family halfcheetah-vel --fvp-fraction 0.25
    python scripts/benchmark.py iteration --family navigation-2d --meta-batch-size 20 --hidden-sizes 64 64

`rollout`: closed-loop episodes (policy, noise, recording) against native open-loop stepping with the same controls.
`update`: one meta-update on recorded rollouts against its matrix products (one inner step) at their measured rate.
`iteration`: a whole MAML-TRPO iteration, split into both. The ratio is measured / limit. CPU-seconds count all threads
of the process; on a shared machine quote ratios, not seconds. docs/performance.md explains the figures.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import _common
import tyro

from metarl.algorithms.maml_trpo import MAMLTRPOConfig
from metarl.experiment.config import PolicyConfig, TrainConfig, check
from metarl.experiment.errors import UserError, reports_errors
from metarl.experiment.files import write_json


@dataclass(frozen=True)
class Arguments:
    """Arguments of benchmark.py.

    Attributes:
        what: What to measure.
        family: Task family.
        meta_batch_size: Tasks.
        episodes_per_task: Episodes per task and phase.
        hidden_sizes: Policy layers.
        activation: Policy activation.
        inner_lr: Inner step size.
        fvp_fraction: Share of the episodes in the Fisher metric.
        chunk_size: Tasks handled together in the update; 0 chooses as training does.
        repeats: Measurements; the median by CPU time is reported.
        device: Device.
        num_threads: Threads of physics and update; 0 takes the available cores.
        json: Where to write the rows as JSON.
    """

    what: tyro.conf.Positional[Literal["rollout", "update", "iteration"]]
    family: str = "halfcheetah-vel"
    meta_batch_size: int = 40
    episodes_per_task: int = 20
    hidden_sizes: tuple[int, ...] = (100, 100)
    activation: Literal["tanh", "relu"] = "tanh"
    inner_lr: float = 0.1
    fvp_fraction: float = 1.0
    chunk_size: int = 0
    repeats: int = 3
    device: Literal["cpu", "cuda"] = "cpu"
    num_threads: int = 0
    json: Path | None = None


@reports_errors
def main() -> None:
    _common.handle_list(sys.argv)
    arguments = tyro.cli(Arguments, description=__doc__, prog="benchmark.py")
    if arguments.repeats < 1:
        raise UserError(f"--repeats is {arguments.repeats}; it must be positive.")
    config = TrainConfig(
        family=arguments.family,
        device=arguments.device,
        num_threads=arguments.num_threads,
        policy=PolicyConfig(hidden_sizes=arguments.hidden_sizes, activation=arguments.activation),
        learner=MAMLTRPOConfig(
            meta_batch_size=arguments.meta_batch_size,
            episodes_per_task=arguments.episodes_per_task,
            inner_lr=arguments.inner_lr,
            fvp_fraction=arguments.fvp_fraction,
            chunk_size=arguments.chunk_size,
        ),
    )
    check(config)
    family = _common.make_family(arguments.family)

    from _benchmark_cases import Case, measure

    case = Case(family, config)
    rows = measure(case, arguments.what, arguments.repeats)
    print(
        f"{family.spec.id}: {arguments.meta_batch_size} tasks x {arguments.episodes_per_task} episodes x "
        f"{family.horizon} steps, policy {'-'.join(map(str, arguments.hidden_sizes))} {arguments.activation}, "
        f"fvp_fraction {arguments.fvp_fraction}, {case.threads} threads, median of {arguments.repeats}"
    )
    header = f"{'':<22}{'measured':>12}{'limit':>12}{'ratio':>8}  {'unit':<20}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}"
    print(header)
    for row in rows:
        print(
            f"{row.name:<22}{row.measured:>12,.2f}{row.limit:>12,.2f}{row.ratio:>8.2f}  {row.unit:<20}"
            f"{row.cpu_seconds:>8.2f}{row.wall_seconds:>8.2f}{row.peak_memory_mb:>9.0f}"
        )
    if arguments.json:
        write_json(arguments.json, [dataclasses.asdict(row) for row in rows])
        print(f"saved {arguments.json}")


if __name__ == "__main__":
    main()
