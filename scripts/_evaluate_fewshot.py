"""The part of evaluate.py that is for few-shot runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import _common
from _evaluation import is_default_protocol, keep_record, run_labels, show_table

from metarl.experiment.comparison import CurveRow
from metarl.experiment.errors import UserError
from metarl.experiment.fewshot_config import MOST_STEPS
from metarl.experiment.fewshot_run import EVALUATION_TASKS, LoadedFewShotRun, fewshot_record, load_fewshot_run
from metarl.experiment.sizes import check_fits
from metarl.fewshot.methods import METHODS
from metarl.fewshot.published import published_scores

if TYPE_CHECKING:
    from evaluate import Arguments


def described(run: LoadedFewShotRun) -> tuple[str, ...]:
    """What its test tasks are, in words."""
    config = run.config
    return config.dataset, config.setting, f"{config.test_queries} queries", f"data {run.source.fingerprint}"


def check_comparable(runs: Sequence[LoadedFewShotRun]) -> None:
    """Refuses runs whose test tasks differ.

    Raises:
        UserError: Naming two of them.
    """
    first = runs[0]
    for run in runs:
        for here, there in zip(described(run), described(first), strict=True):
            if here != there:
                raise UserError(
                    f"{run.path} is a run on {here}, {first.path} on {there}: only runs on the same tasks can be "
                    "compared."
                )


def check_steps(steps: int | None, run: LoadedFewShotRun) -> None:
    """Refuses --steps for a method that takes none, and more than can be kept.

    Raises:
        UserError: Saying which.
    """
    if steps is not None and not METHODS[run.config.method].takes_steps:
        raise UserError(f"--steps is {steps}; {run.config.method} ({run.path}) takes no steps.")
    if steps is not None and steps > MOST_STEPS:
        raise UserError(f"--steps is {steps}; it must be at most {MOST_STEPS}.")


def score_row(label: str, record: dict[str, Any]) -> CurveRow:
    """A record as a row; accuracies in per cent."""
    scale = 100.0 if record["higher_is_better"] else 1.0
    return CurveRow(label, *([scale * value for value in record[key]] for key in ("return_mean", "return_ci95")))


def evaluate_fewshot_runs(arguments: Arguments) -> None:
    """Scores of the runs on the same test tasks, as a table, and as JSON and a plot if asked for."""
    if arguments.episodes is not None or arguments.device != "cpu":
        raise UserError("--episodes and --device are for policies; few-shot runs have --shots, on the CPU.")
    runs = [load_fewshot_run(path, arguments.checkpoint, arguments.shots) for path in arguments.runs]
    check_comparable(runs)
    for run in runs:
        check_steps(arguments.steps, run)
    # Scores are kept of every task and step, and gathered from parts.
    steps = max(run.config.num_test_steps if arguments.steps is None else arguments.steps for run in runs)
    sizes = {"num_tasks": arguments.num_tasks or EVALUATION_TASKS}
    usual = {"num_tasks": EVALUATION_TASKS}
    check_fits(sizes, usual, lambda s: 16 * s["num_tasks"] * (steps + 1), _common.flag)
    records, saved = [], []
    for run in runs:
        steps = run.config.num_test_steps if arguments.steps is None else arguments.steps
        curve = run.evaluate(arguments.num_tasks or EVALUATION_TASKS, steps, arguments.seed)
        records.append(fewshot_record(run, curve, arguments.seed))
        if is_default_protocol(arguments, run.path):
            saved.append(keep_record(run.path, records[-1]))
    first, record = runs[0].config, records[0]
    for run in runs:
        print(f"{run.path}: {run.config.method}, {run.checkpoint} checkpoint (iteration {run.iteration})")
    unit = "accuracy in %" if record["higher_is_better"] else record["metric"]
    where = f"{first.dataset}, {first.setting}, mean over {record['num_tasks']} tasks of the test split"
    print(f"{unit}{' before each step' if any(r['steps'] for r in records) else ''}; {where}")
    published, left_out = published_scores(first.dataset, first.setting, runs[0].source)
    if left_out:
        print(left_out)
    labels = run_labels([run.path for run in runs])
    show_table(
        arguments,
        records,
        [score_row(label, record) for label, record in zip(labels, records, strict=True)],
        published,
        saved=saved,
        detail=f"{where}, 95 % intervals",
        what=unit,
    )
