"""Adaptation curves of trained runs on held-out tasks, beside the published numbers where their preset has them.

    python scripts/evaluate.py runs/demo
    python scripts/evaluate.py pretrained/navigation-2d@maml2017 --steps 4 --episodes 40
    python scripts/evaluate.py runs/maml runs/pretrain runs/oracle --plot comparison.png
    python scripts/evaluate.py runs/sinusoid --shots 10

Several runs of one family are compared on the same tasks with the same noise, each under its own protocol. With no
other settings than --checkpoint a run's table is also saved as evaluation_<checkpoint>.json in its directory (not under
pretrained/, whose tables are part of the repository), and with any settings where --json says.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import _common
import tyro

from metarl.algorithms.composition import FAR, MOST, Ranges
from metarl.experiment.comparison import CurveRow
from metarl.experiment.config import check_device
from metarl.experiment.errors import UserError, reports_errors
from metarl.experiment.outputs import check_outputs

if TYPE_CHECKING:
    from torch import Tensor

    from metarl.experiment.loading import LoadedRun


@dataclass(frozen=True)
class Arguments:
    """Arguments of evaluate.py.

    Attributes:
        runs: Run directories, or ones under pretrained/.
        steps: Inner gradient steps to take; by default 3, or what the run's learner is made for (an oracle: 0).
        num_tasks: Test tasks; by default the variant's own fixed ones where it has them, else 40 drawn (few-shot: 600).
        episodes: Episodes per task and step; by default twice the training data, as published.
        shots: Few-shot runs: shots of the test tasks; by default the run's own.
        checkpoint: Which checkpoint: best (the last one where no validation has chosen one yet), last, or one that was
            kept, e.g. iteration_50.
        seed: Seed of the evaluation's noise (and of drawn tasks).
        device: Where it runs, wherever the run was trained.
        json: Where to write the results as JSON as well; of several runs {"runs": [...]}.
        plot: Where to draw the curves (PNG).
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    steps: int | None = None
    num_tasks: int | None = None
    episodes: int | None = None
    shots: int | None = None
    checkpoint: str = "best"
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    json: Path | None = None
    plot: Path | None = None


_RANGES: Ranges = {
    "positive and below 2**31": (lambda x: 0 < x < MOST, ("num_tasks", "episodes", "shots")),
    "zero or more and below 2**31": (lambda x: 0 <= x < MOST, ("steps",)),
    "zero or more and below 2**63": (lambda x: 0 <= x < FAR, ("seed",)),
}


def evaluate(run: LoadedRun, tasks: Tensor, arguments: Arguments) -> tuple[dict[str, Any], Path | None]:
    """A run's evaluation record, and where in the run it was saved."""
    from _evaluation import evaluated, is_default_protocol

    return evaluated(
        run,
        tasks,
        steps=steps_of(run, arguments),
        keep=is_default_protocol(arguments, run.path),
        episodes=arguments.episodes,
        seed=arguments.seed,
        device=arguments.device,
    )


def steps_of(run: LoadedRun, arguments: Arguments) -> int:
    """Inner steps to take of a run."""
    from metarl.experiment.evaluate_run import default_steps

    return default_steps(run) if arguments.steps is None else arguments.steps


def check_arguments(arguments: Arguments) -> None:
    """Refuses what cannot be run before anything is loaded."""
    _common.check_ranges(arguments, _RANGES)
    if not arguments.runs:
        raise UserError(
            "No run was named; name a run directory that train.py or train_fewshot.py made, or one under pretrained/."
        )
    check_device(arguments.device)
    check_outputs(json=arguments.json, plot=arguments.plot)


@reports_errors
def main() -> None:
    _common.handle_list(sys.argv)
    arguments = tyro.cli(Arguments, description=__doc__, prog="evaluate.py")
    check_arguments(arguments)
    if any(map(_common.is_fewshot_run, arguments.runs)):
        from _evaluate_fewshot import evaluate_fewshot_runs

        evaluate_fewshot_runs(arguments)
        return
    evaluate_policies(arguments)


def evaluate_policies(arguments: Arguments) -> None:
    """Adaptation curves of the runs on the same tasks with the same noise."""
    from _evaluation import run_labels, show_table

    from metarl.experiment.evaluate_run import on_published_tasks, test_tasks

    if arguments.shots is not None:
        raise UserError("--shots is for few-shot runs; a policy adapts on --episodes.")
    runs = [_common.load_run(path, arguments.checkpoint) for path in arguments.runs]
    first = runs[0]
    other = next((run for run in runs if run.config.family != first.config.family), None)
    if other is not None:
        raise UserError(
            f"{other.path} is a run on {other.config.family}, {first.path} on {first.config.family}: only runs on the "
            "same family and variant can be compared."
        )
    for run in runs:
        _common.check_evaluation(
            run, arguments.num_tasks, arguments.episodes, steps_of(run, arguments), arguments.device
        )
    tasks, origin = test_tasks(first, arguments.num_tasks, arguments.seed)
    records, saved = zip(*(evaluate(run, tasks, arguments) for run in runs), strict=True)
    for run in runs:
        described = (
            f"{run.config.family}, {run.config.algorithm}, {run.checkpoint} checkpoint (iteration {run.iteration})"
        )
        print(described if len(runs) == 1 else f"{run.path}: {described}")
    env_steps = sum(record["env_steps"] for record in records)
    print(f"return before each inner step, mean over {origin}; {env_steps:,} environment steps")
    labels = run_labels([run.path for run in runs])
    show_table(
        arguments,
        records,
        [CurveRow.of_record(label, record) for label, record in zip(labels, records, strict=True)],
        first.family.spec.published,
        saved=saved,
        detail=f"{first.config.family}, mean over {origin}, 95 % intervals over tasks",
        source_note="" if on_published_tasks(first, tasks) else "; measured on other tasks than these",
    )


if __name__ == "__main__":
    main()
