"""One run evaluated, as evaluate.py and replicate.py both do it, and several shown side by side."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _common
from torch import Tensor

from metarl.experiment.comparison import CurveRow, curve_table
from metarl.experiment.errors import describe_os_error
from metarl.experiment.evaluate_run import evaluate_run, evaluation_record
from metarl.experiment.files import write_json
from metarl.experiment.loading import LoadedRun
from metarl.experiment.outputs import write_json_output
from metarl.types import PublishedCurve

if TYPE_CHECKING:
    from evaluate import Arguments


def evaluated(
    run: LoadedRun,
    tasks: Tensor,
    *,
    steps: int,
    keep: bool,
    episodes: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[dict[str, Any], Path | None]:
    """Evaluates a run and says so where its steps were not finite.

    Args:
        run: The loaded run.
        tasks: `[task, task_dim]`.
        steps: Inner steps.
        keep: Save the record in the run, as its own table.
        episodes: Per task and step; None for the run's own protocol.
        seed: Noise seed.
        device: Where it runs.

    Returns:
        The evaluation record, and where in the run it was saved; None if it was not.
    """
    curve, _ = evaluate_run(run, tasks, num_steps=steps, episodes_per_task=episodes, seed=seed, device=device)
    record = evaluation_record(run, tasks, seed, curve)
    if record["nonfinite_steps"]:
        print(f"{run.path}: {record['nonfinite_steps']:,} steps were not finite: its returns mean little.")
    return record, keep_record(run.path, record) if keep else None


def keep_record(run: Path, record: dict[str, Any]) -> Path | None:
    """Saves an evaluation record in its run; says so, and gives None, where the run cannot be written."""
    file = run / f"evaluation_{record['checkpoint']}.json"
    try:
        write_json(file, record)
    except OSError as error:
        # A shared, read-only run (an installed or somebody else's one) can be evaluated all the same.
        print(f"note: not saved in the run: {describe_os_error(error)}", file=sys.stderr)
        return None
    return file


def is_default_protocol(arguments: Arguments, path: Path) -> bool:
    """Whether the table is one to keep in the run: default settings, and not a pretrained run of the repository."""
    protocol = {f.name: f.default for f in dataclasses.fields(arguments)}
    names = ("steps", "num_tasks", "episodes", "shots", "seed", "device")
    pretrained = (_common.REPOSITORY / "pretrained").resolve() in path.resolve().parents
    return not pretrained and all(getattr(arguments, name) == protocol[name] for name in names)


def run_labels(paths: Sequence[Path]) -> list[str]:
    """What runs are called in a table: their directories' names, or if two share one their paths; always text."""
    if len(paths) == 1:
        return ["this run (± 95 % over tasks)"]
    names = [path.name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    return [name.encode(errors="backslashreplace").decode() for name in names]


def show_table(
    arguments: Arguments,
    records: Sequence[dict[str, Any]],
    rows: Sequence[CurveRow],
    published: Sequence[PublishedCurve],
    *,
    saved: Sequence[Path | None],
    detail: str,
    what: str = "return",
    source_note: str = "",
) -> None:
    """Prints curves beside published ones, and writes what --json and --plot ask for.

    Args:
        arguments: Of evaluate.py.
        records: Evaluation records of the runs.
        rows: Their rows.
        published: Published curves.
        saved: Files that were saved already, to be named at the end.
        detail: What was run, for the plot.
        what: What the values are.
        source_note: What to say behind the sources of the published curves.
    """
    if arguments.json:
        write_json_output(arguments.json, records[0] if len(records) == 1 else {"runs": list(records)})
    print(curve_table([*rows, *map(CurveRow.of_published, published)]))
    for source in dict.fromkeys(curve.source for curve in published):
        print(f"published numbers: {source}{source_note}")
    if arguments.plot:
        from metarl.visualize.curves import draw_comparison

        draw_comparison(arguments.plot, rows, published, detail=detail, what=what)
    for path in (*saved, arguments.json, arguments.plot):
        if path is not None:
            print(f"saved {path}")
