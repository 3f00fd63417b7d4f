"""How fast rollouts and updates are, each beside the limit measured in the same run.

    python scripts/benchmark.py rollout --family halfcheetah-vel
    python scripts/benchmark.py iteration --family halfcheetah-vel --fvp-fraction 0.25
    python scripts/benchmark.py iteration --family navigation-2d --meta-batch-size 20 --hidden-sizes 64 64
    python scripts/benchmark.py rollout --device cuda --plot rollout.png

`rollout`: closed-loop episodes (policy, noise, recording) against native open-loop stepping with the same controls; on
a GPU at 64 to 131072 worlds, with the CPU's rate beside.
`update`: one meta-update on recorded rollouts against its matrix products (one inner step) at their measured rate.
`iteration`: a whole MAML-TRPO iteration, split into both. The ratio is measured / limit. CPU-seconds count all threads
of the process; on a shared machine quote ratios, not seconds. On a GPU seconds are wall time. A family
written in torch has no physics: its sampling limit is the bare transition and says little. docs/performance.md explains
the figures.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import _common
import tyro

from metarl.algorithms.config import LearnerConfig
from metarl.experiment.config import PolicyConfig, TrainConfig, check, check_device
from metarl.experiment.errors import UserError, reports_errors
from metarl.experiment.files import check_writable, write_json

if TYPE_CHECKING:
    from _benchmark_limits import Row


SWEEP = tuple(2**k for k in range(6, 18))
"""Numbers of worlds tried on a GPU."""


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
        fvp_fraction: Share of the tasks in the Fisher metric.
        chunk_size: Tasks handled together in the update; 0 chooses as training does.
        repeats: Measurements; the median by CPU time is reported.
        device: Device.
        backend: Physics engine: auto, or warp with --device cpu for MuJoCo Warp's CPU device (slow; to try the code).
        worlds: Numbers of worlds for rollout, each with a power of two of tasks; by default 64 to 131072 on cuda and
            the tasks and episodes above on cpu.
        num_threads: Threads of physics and update; 0 takes the available cores.
        json: Where to write the rows as JSON.
        plot: Where to draw them (PNG).
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
    backend: Literal["auto", "mujoco", "warp", "torch"] = "auto"
    worlds: tuple[int, ...] = ()
    num_threads: int = 0
    json: Path | None = None
    plot: Path | None = None


def print_table(rows: Sequence[Row]) -> None:
    """One line per row."""
    print(
        f"{'':<22}{'worlds':>8}{'measured':>14}{'limit':>14}{'ratio':>8}  {'unit':<18}"
        f"{'CPU s':>8}{'wall s':>8}{'peak MB':>9}"
    )
    for row in rows:
        print(
            f"{row.name:<22}{row.worlds or '':>8}{row.measured:>14,.2f}{row.limit:>14,.2f}{row.ratio:>8.2f}  "
            f"{row.unit:<18}{row.cpu_seconds:>8.2f}{row.wall_seconds:>8.2f}{row.peak_memory_mb:>9.0f}"
        )


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
        learner=LearnerConfig(
            meta_batch_size=arguments.meta_batch_size,
            episodes_per_task=arguments.episodes_per_task,
            inner_lr=arguments.inner_lr,
            fvp_fraction=arguments.fvp_fraction,
            chunk_size=arguments.chunk_size,
        ),
    )
    check(config)
    check_device(config.device)
    if min(arguments.worlds, default=1) < 1:
        raise UserError(f"--worlds is {' '.join(map(str, arguments.worlds))}; each must be positive.")
    for path in (arguments.json, arguments.plot):
        if path:
            check_writable(path)
    if arguments.worlds and arguments.what != "rollout":
        raise UserError(
            f"--worlds belongs to rollout; {arguments.what} takes --meta-batch-size and --episodes-per-task."
        )
    family = _common.make_family(arguments.family)
    try:
        family.batch(family.sample_tasks(1), 1, arguments.device, arguments.backend)
    except (ValueError, ImportError) as error:
        raise UserError(f"--backend {arguments.backend} --device {arguments.device}: {error}") from error

    from _benchmark_cases import Case, measure
    from _benchmark_limits import description_of

    case = Case(family, config, arguments.backend)
    sweep = arguments.worlds or (SWEEP if arguments.device == "cuda" else ())
    rows = measure(case, arguments.what, arguments.repeats, sweep)
    size = "worlds as below" if sweep else f"{arguments.meta_batch_size} tasks x {arguments.episodes_per_task} episodes"
    print(
        f"{family.spec.id}: {size} x {family.horizon} steps, policy {'-'.join(map(str, arguments.hidden_sizes))} "
        f"{arguments.activation}, fvp_fraction {arguments.fvp_fraction}, {case.threads} threads, "
        f"median of {arguments.repeats}"
    )
    print_table(rows)
    if arguments.what == "rollout" and family.spec.dt:
        best = max((row for row in rows if row.name == "rollout/closed_loop"), key=lambda row: row.measured)
        substeps = description_of(family).frame_skip
        unit = best.unit.replace("env", "physics")
        print(f"best closed loop: {best.measured * substeps:,.0f} {unit}, with {best.worlds:,} worlds")
    if arguments.plot:
        from _benchmark_plot import draw

        draw(arguments.plot, rows, f"{family.spec.id}, {arguments.device}")
        print(f"saved {arguments.plot}")
    if arguments.json:
        write_json(arguments.json, [dataclasses.asdict(row) for row in rows])
        print(f"saved {arguments.json}")


if __name__ == "__main__":
    main()
