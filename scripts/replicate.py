"""Train over several seeds under a protocol and print published numbers beside ours.

    python scripts/replicate.py maml2017 --quick --seeds 5
    python scripts/replicate.py maml2017 --families navigation-2d halfcheetah-vel
    python scripts/replicate.py learners --seeds 3 --plot learners.png
    python scripts/replicate.py fewshot --seeds 1

`maml2017` is MAML-TRPO as in Finn, Abbeel and Levine, ICML 2017. `learners` trains every learner, and the references
that judge them, on the same number of environment steps. `fewshot` trains every few-shot method on glyphs for about
five CPU-minutes, 5-way and some of them 20-way 1-shot, beside chance and nearest neighbours in pixels. Every seed is an
ordinary run under --out: a killed replication continues where it stopped, a finished seed is only evaluated again.
Training, choice of checkpoint and test tasks are those of train.py, train_fewshot.py and evaluate.py.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import _common
import tyro
from _replicate_protocols import FAMILIES, Summary, evaluation_of, planned_runs, trained_run

from metarl.algorithms.composition import FAR, MOST, Ranges
from metarl.algorithms.learners import LEARNERS
from metarl.experiment.checks import check
from metarl.experiment.comparison import CurveRow, curve_table
from metarl.experiment.errors import UserError, reports_errors
from metarl.experiment.evaluate_run import DEFAULT_NUM_TASKS
from metarl.experiment.outputs import check_outputs, write_json_output
from metarl.experiment.sizes import Sizes, check_fits
from metarl.fewshot.methods import METHODS

UNREAD = {"maml2017": ("learners", "env_steps"), "fewshot": ("families", "env_steps", "steps", "plot")}
"""What a protocol has no use for: one learner is all of maml2017, and few-shot methods take no environment steps."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of replicate.py.

    Attributes:
        protocol: What to train: maml2017, learners, or fewshot.
        families: Families to train, each in the variant of MAML 2017.
        learners: Which learners, or few-shot methods; by default all.
        seeds: Number of seeds: 0, 1, ...
        quick: A few minutes per seed instead of the full number of iterations; of learners a tenth of --env-steps, of
            few-shot methods a tenth of their iterations.
        env_steps: Environment steps of each training in the protocol `learners`.
        steps: Inner steps in evaluation; by default 3, or what a learner is made for.
        out: Where the runs are kept.
        json: Where to write the tables as JSON as well.
        plot: Where to draw the curves of one family (PNG).
    """

    protocol: tyro.conf.Positional[Literal["maml2017", "learners", "fewshot"]]
    families: tuple[Literal["navigation-2d", "halfcheetah-vel"], ...] = ("navigation-2d",)
    learners: tuple[str, ...] = ()
    seeds: int = 5
    quick: bool = False
    env_steps: int = 6_000_000
    steps: int | None = None
    out: Path = Path("runs")
    json: Path | None = None
    plot: Path | None = None


_RANGES: Ranges = {
    "positive and below 2**31": (lambda x: 0 < x < MOST, ("seeds",)),
    "zero or more and below 2**31": (lambda x: 0 <= x < MOST, ("steps",)),
    "positive and below 2**63": (lambda x: 0 < x < FAR, ("env_steps",)),
}


def kept_bytes(sizes: Sizes) -> int:
    """Least bytes that the seeds of one learner take: settings that are planned ahead, and tables that are kept."""
    return sizes["seeds"] * (2000 + DEFAULT_NUM_TASKS * 32 * (sizes["steps"] + 1))


@reports_errors
def main() -> None:
    _common.handle_list(sys.argv)
    arguments = tyro.cli(Arguments, description=__doc__, prog="replicate.py")
    _common.check_ranges(arguments, _RANGES)
    if not arguments.families:
        raise UserError("--families is empty; name at least one.")
    check_fits(
        {"seeds": arguments.seeds, "steps": arguments.steps or 0}, {"seeds": 5, "steps": 3}, kept_bytes, _common.flag
    )
    if arguments.plot and len(arguments.families) > 1:
        raise UserError("--plot draws one family; name one with --families.")
    known = METHODS if arguments.protocol == "fewshot" else LEARNERS
    if unknown := sorted(set(arguments.learners) - set(known)):
        raise UserError(f"--learners names {', '.join(unknown)}. Known: {', '.join(known)}.")
    defaults = {f.name: f.default for f in dataclasses.fields(Arguments)}
    for name in UNREAD.get(arguments.protocol, ()):
        if getattr(arguments, name) != defaults[name]:
            raise UserError(f"--{name.replace('_', '-')} means nothing to the protocol {arguments.protocol}.")
    check_outputs(json=arguments.json, plot=arguments.plot)
    if arguments.protocol == "fewshot":
        from _replicate_fewshot import replicate_fewshot

        replicate_fewshot(arguments)
        return
    results: dict[str, Any] = {}
    for family in arguments.families:
        made = _common.make_family(FAMILIES[family])
        published = made.spec.published
        summaries = []
        for label, runs in planned_runs(arguments, family, made.horizon).items():
            records = []
            for path, config in runs:
                check(config)
                records.append(evaluation_of(trained_run(path, config), arguments.steps))
                values = "  ".join(f"{value:.2f}" for value in records[-1]["return_mean"][:6])
                print(f"  {label}, seed {config.seed}: {values}", flush=True)
            summaries.append(Summary(label, records))
        rows = [row for summary in summaries for row in summary.rows(with_seeds=arguments.protocol == "maml2017")]
        print(
            f"\n{FAMILIES[family]}: return before each inner step, mean over the published test tasks; ± as said below"
        )
        print(curve_table([*map(CurveRow.of_published, published), *rows]))
        print(f"± of a learner: {summaries[0].interval_label}; of one seed: 95 % over tasks")
        print(f"published numbers: {published[0].source}")
        results[family] = {summary.label: summary.record() for summary in summaries}
        if arguments.plot:
            from metarl.visualize.curves import draw_comparison

            drawn = [summary.mean_row() for summary in summaries]
            draw_comparison(
                arguments.plot, drawn, published, detail=f"{FAMILIES[family]}, {summaries[0].interval_label}"
            )
            print(f"saved {arguments.plot}")
    if arguments.json:
        write_json_output(arguments.json, results)
        print(f"saved {arguments.json}")


if __name__ == "__main__":
    main()
