"""One run evaluated, as evaluate.py and replicate.py both do it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from metarl.experiment.errors import describe_os_error
from metarl.experiment.evaluate_run import evaluate_run, evaluation_record
from metarl.experiment.files import write_json
from metarl.experiment.loading import LoadedRun


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
    curve, data = evaluate_run(run, tasks, num_steps=steps, episodes_per_task=episodes, seed=seed, device=device)
    record = evaluation_record(run, tasks, seed, curve, data)
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
