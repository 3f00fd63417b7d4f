"""Adaptation curve of a trained run on held-out tasks, beside the published numbers where its preset has them.

    python scripts/evaluate.py runs/demo
    python scripts/evaluate.py pretrained/navigation-2d@maml2017 --steps 4 --episodes 40

With no other settings than --checkpoint the table is also saved as evaluation_<checkpoint>.json in the run directory
(not under pretrained/, whose tables are part of the repository), and with any settings where --json says.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import _common
import tyro

from metarl.experiment.config import check_device
from metarl.experiment.errors import UserError, describe_os_error, reports_errors
from metarl.experiment.evaluate_run import DEFAULT_STEPS
from metarl.experiment.files import check_writable, write_json
from metarl.types import PublishedCurve


@dataclass(frozen=True)
class Arguments:
    """Arguments of evaluate.py.

    Attributes:
        run: Run directory, or one under pretrained/.
        steps: Inner gradient steps to take.
        num_tasks: Test tasks; by default the variant's own fixed ones where it has them, else 40 drawn.
        episodes: Episodes per task and step; by default twice the training data, as published.
        checkpoint: Which checkpoint: best (the last one where no validation has chosen one yet), last, or one that was
            kept, e.g. iteration_50.
        seed: Seed of the evaluation's noise (and of drawn tasks).
        device: Where it runs, wherever the run was trained.
        json: Where to write the results as JSON as well.
    """

    run: tyro.conf.Positional[Path]
    steps: int = DEFAULT_STEPS
    num_tasks: int | None = None
    episodes: int | None = None
    checkpoint: str = "best"
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    json: Path | None = None


def table(record: dict, published: Sequence[PublishedCurve], same_tasks: bool) -> str:
    """The curve as text: a row for the run, one per published method."""
    width = max(record["steps"] + 1, *(len(curve.returns) for curve in published), 1)
    lines = ["adaptation step".ljust(34) + "".join(f"{k:>18}" for k in range(width))]
    # One task has no interval.
    cells = [
        f"{m:.2f}" + (f" ± {c:.2f}" if math.isfinite(c) else "")
        for m, c in zip(record["return_mean"], record["return_ci95"], strict=True)
    ]
    lines.append("this run (± 95 % over tasks)".ljust(34) + "".join(f"{cell:>18}" for cell in cells))
    for curve in published:
        cells = "".join(f"{value:>18.2f}" for value in curve.returns)
        lines.append(f"published: {curve.label}".ljust(34) + cells)
    for source in dict.fromkeys(curve.source for curve in published):
        lines.append(f"published numbers: {source}" + ("" if same_tasks else "; measured on other tasks than these"))
    return "\n".join(lines)


def saved_table(arguments: Arguments, checkpoint: str) -> Path | None:
    """Where the run's own table goes; None unless this is the default protocol and the run is not a pretrained one."""
    protocol = {f.name: f.default for f in dataclasses.fields(Arguments)}
    for name in ("steps", "num_tasks", "episodes", "seed", "device"):
        if getattr(arguments, name) != protocol[name]:
            return None
    if (_common.REPOSITORY / "pretrained").resolve() in arguments.run.resolve().parents:
        return None
    return arguments.run / f"evaluation_{checkpoint}.json"


@reports_errors
def main() -> None:
    _common.handle_list(sys.argv)
    arguments = tyro.cli(Arguments, description=__doc__, prog="evaluate.py")
    _common.require_positive(arguments, "num_tasks", "episodes")
    if arguments.steps < 0 or arguments.seed < 0:
        raise UserError(f"--steps ({arguments.steps}) and --seed ({arguments.seed}) must be zero or more.")
    check_device(arguments.device)
    if arguments.json:
        check_writable(arguments.json)
    run = _common.load_run(arguments.run, arguments.checkpoint)

    from metarl.experiment.evaluate_run import evaluate_run, evaluation_record, on_published_tasks, test_tasks

    tasks, origin = test_tasks(run, arguments.num_tasks, arguments.seed)
    curve, data = evaluate_run(
        run,
        tasks,
        num_steps=arguments.steps,
        episodes_per_task=arguments.episodes,
        seed=arguments.seed,
        device=arguments.device,
    )
    record = evaluation_record(run, tasks, arguments.seed, curve, data)
    default = saved_table(arguments, run.checkpoint)
    if default is not None:
        try:
            write_json(default, record)
        except OSError as error:
            # A shared, read-only run (an installed or somebody else's one) can be evaluated all the same.
            print(f"note: not saved in the run: {describe_os_error(error)}", file=sys.stderr)
            default = None
    if arguments.json:
        write_json(arguments.json, record)
    print(f"{run.config.family}, {run.config.algorithm}, {run.checkpoint} checkpoint (iteration {run.iteration})")
    print(f"return before each inner step, mean over {origin}; {curve.env_steps:,} environment steps")
    print(table(record, run.family.spec.published, on_published_tasks(run, tasks)))
    if record["nonfinite_steps"]:
        print(f"{record['nonfinite_steps']:,} of these steps were not finite: the returns above mean little.")
    for path in (default, arguments.json):
        if path is not None:
            print(f"saved {path}")


if __name__ == "__main__":
    main()
