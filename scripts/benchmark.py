"""How fast rollouts and updates are, each beside the limit measured in the same run.

    python scripts/benchmark.py rollout --family halfcheetah-vel
    python scripts/benchmark.py iteration --family halfcheetah-vel --fvp-fraction 0.25
    python scripts/benchmark.py iteration --family navigation-2d --meta-batch-size 20 --hidden-sizes 64 64
    python scripts/benchmark.py rollout --device cuda --plot rollout.png
    python scripts/benchmark.py learners --family navigation-2d --meta-batch-size 20 --inner-lr 0.5
    python scripts/benchmark.py gradients --run pretrained/navigation-2d@maml2017
    python scripts/benchmark.py fewshot

`rollout`: closed-loop episodes (policy, noise, recording) against native open-loop stepping with the same controls; on
a GPU at 64 to 131072 worlds, with the CPU's rate beside.
`update`: one meta-update on recorded rollouts against its matrix products (one inner step) at their measured rate.
`iteration`: a whole MAML-TRPO iteration, split into both.
`learners`: an iteration of every learner that is trained (the oracle's is that of pretrain), against MAML-TRPO's.
`gradients`: bias and spread of the meta-gradient under every estimator, at a random policy or at a run's; of a run also
what its line search accepted.
`fewshot`: a second-order MAML step on 32 tasks of glyphs, and the same by vmap, against a plain loop over tasks.

The ratio is measured / limit. CPU-seconds count all threads of the process; on a shared machine quote ratios, not
seconds. On a GPU seconds are wall time. A family written in torch has no physics: its sampling limit is the bare
transition and says little. docs/performance.md explains the figures.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import _common
import tyro
from _benchmark_arguments import SWEEP, Arguments, check_worlds, configured

from metarl.experiment.config import TrainConfig
from metarl.experiment.errors import UserError, reports_errors
from metarl.experiment.outputs import write_json_output

if TYPE_CHECKING:
    from _benchmark_limits import Row

    from envs.family import TaskFamily


def print_table(rows: Sequence[Row]) -> None:
    """One line per row."""
    print(
        f"{'':<24}{'worlds':>8}{'measured':>14}{'limit':>14}{'ratio':>8}  {'unit':<18}"
        f"{'CPU s':>8}{'wall s':>8}{'peak MB':>9}"
    )
    for row in rows:
        print(
            f"{row.name:<24}{row.worlds or '':>8}{row.measured:>14,.2f}{row.limit:>14,.2f}{row.ratio:>8.2f}  "
            f"{row.unit:<18}{row.cpu_seconds:>8.2f}{row.wall_seconds:>8.2f}{row.peak_memory_mb:>9.0f}"
        )


def measured_speed(arguments: Arguments, config: TrainConfig, family: TaskFamily) -> list[Row]:
    """Times what was asked for, and prints the table."""
    from _benchmark_cases import Case, measure
    from _benchmark_limits import description_of

    repeats = arguments.repeats or 3
    case = Case(family, config, arguments.backend)
    sweep = arguments.worlds or (SWEEP if arguments.device == "cuda" else ())
    rows = measure(case, arguments.what, repeats, sweep)
    if not rows:
        raise UserError("Nothing could be measured; choose fewer --worlds.")
    size = "worlds as below" if sweep else f"{arguments.meta_batch_size} tasks x {arguments.episodes_per_task} episodes"
    print(
        f"{family.spec.id}: {size} x {family.horizon} steps, policy {'-'.join(map(str, arguments.hidden_sizes))} "
        f"{arguments.activation}, fvp_fraction {arguments.fvp_fraction}, {case.threads} threads, median of {repeats}"
    )
    print_table(rows)
    if arguments.what == "rollout" and family.spec.dt:
        best = max((row for row in rows if row.name == "rollout/closed_loop"), key=lambda row: row.measured)
        substeps = description_of(family).frame_skip
        unit = best.unit.replace("env", "physics")
        print(f"best closed loop: {best.measured * substeps:,.0f} {unit}, with {best.worlds:,} worlds")
    return rows


def measured_gradients(arguments: Arguments, config: TrainConfig) -> list[dict[str, Any]]:
    """Draws gradients at a run's policy or at a random one, and prints the table."""
    from _benchmark_gradients import GradientCase, run_gradients

    from metarl.experiment.policy_run import make_policy
    from metarl.functional import initial_params

    if arguments.run:
        run = _common.load_run(arguments.run)
        if run.config.learner.num_inner_steps == 0:
            raise UserError(f"{arguments.run} has no inner step in training, so that estimators do not differ.")
        case = GradientCase(run.family, run.policy, run.params, run.config.learner, config.num_threads or None)
    else:
        family = _common.make_family(arguments.family)
        check_worlds(arguments, config, family)
        policy = make_policy(family, config.policy, config.seed)
        case = GradientCase(family, policy, initial_params(policy), config.learner, config.num_threads or None)
    return run_gradients(case, arguments.repeats or 40, arguments.run)


@reports_errors
def main() -> None:
    _common.handle_list(sys.argv)
    arguments = tyro.cli(Arguments, description=__doc__, prog="benchmark.py")
    config = configured(arguments)
    if arguments.what == "gradients":
        found = measured_gradients(arguments, config)
    elif arguments.what == "fewshot":
        from _benchmark_fewshot import measured_fewshot

        rows = measured_fewshot(arguments)
        print_table(rows)
        found = [dataclasses.asdict(row) for row in rows]
    else:
        family = _common.make_family(arguments.family)
        check_worlds(arguments, config, family)
        try:
            family.batch(family.sample_tasks(1), 1, arguments.device, arguments.backend)
        except (ValueError, ImportError) as error:
            raise UserError(f"--backend {arguments.backend} --device {arguments.device}: {error}") from error
        rows = measured_speed(arguments, config, family)
        found = [dataclasses.asdict(row) for row in rows]
        if arguments.plot:
            from _benchmark_plot import draw

            draw(arguments.plot, rows, f"{family.spec.id}, {arguments.device}")
            print(f"saved {arguments.plot}")
    if arguments.json:
        write_json_output(arguments.json, found)
        print(f"saved {arguments.json}")


if __name__ == "__main__":
    main()
