"""Pictures of a trained run before and after adaptation, as the evaluation runs it.

    python scripts/visualize.py runs/demo
    python scripts/visualize.py pretrained/navigation-2d@maml2017 --tasks 3 --steps 2 --out figures

Navigation in the plane: a figure of the paths. Robots: one video per task, before and after side by side. Both: the
adaptation curve and, where the run has kept its metrics, the training curve. The policy adapts to the same tasks with
the same noise, budget and step sizes as in evaluate.py, and the tasks shown are spread over those tasks' range.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import _common
import tyro

from metarl.experiment.errors import UserError, reports_errors


@dataclass(frozen=True)
class Arguments:
    """Arguments of visualize.py.

    Attributes:
        run: Run directory, or one under pretrained/.
        tasks: How many tasks to show: by default 6 in a path figure, 2 in videos (the lowest and the highest).
        steps: Inner gradient steps to take.
        out: Directory to write into; by default "figures" in the run, or here if the run cannot be written.
        checkpoint: Which checkpoint.
        seed: Seed of the evaluation's noise (and of drawn tasks).
        actions: In videos, actions drawn from the policy as in evaluation, or its mean action.
    """

    run: tyro.conf.Positional[Path]
    tasks: int | None = None
    steps: int = 3
    out: Path | None = None
    checkpoint: Literal["best", "last"] = "best"
    seed: int = 0
    actions: Literal["sampled", "mean"] = "sampled"


def output_directory(arguments: Arguments) -> Path:
    """The directory to write into, made and tried out before any work is done."""
    wanted = [arguments.out] if arguments.out else [arguments.run / "figures", Path("figures")]
    for path in wanted:
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                return path
        except OSError as error:
            if path is wanted[-1]:
                error.filename = str(path)
                raise
            print(f"note: {path} cannot be written; writing to ./{wanted[-1]} instead")
    raise AssertionError


@dataclass(frozen=True)
class Adapted:
    """A run, its evaluation and what to show of it."""

    run: Any
    tasks: Any
    curve: Any
    data: Any
    chosen: list[int]
    detail: str


def adapt(run: Any, arguments: Arguments, default_count: int) -> Adapted:
    """Evaluates the run as evaluate.py does and chooses tasks to show."""
    from metarl.experiment.evaluate_run import evaluate_run, test_tasks
    from metarl.visualize.figure import describe_run
    from metarl.visualize.selection import spread_tasks

    tasks, origin = test_tasks(run, None, arguments.seed)
    count = arguments.tasks or default_count
    if count > len(tasks):
        raise UserError(f"--tasks is {count}; the evaluation has {origin}, so it must be at most {len(tasks)}.")
    print(f"adapting to {origin}, {arguments.steps} steps ...", flush=True)
    curve, data = evaluate_run(
        run, tasks, num_steps=arguments.steps, episodes_per_task=None, seed=arguments.seed
    )  # fmt: skip
    detail = describe_run(run.config.family, run.config.algorithm, run.iteration)
    return Adapted(run, tasks, curve, data, spread_tasks(tasks, count), detail)


def write_videos(shown: Adapted, out: Path, renderer: Any, arguments: Arguments) -> None:
    """One video per chosen task."""
    from metarl.noise import EVALUATION
    from metarl.visualize.frames import task_text
    from metarl.visualize.video import record_before_after, write_video

    run, tasks, sampled = shown.run, shown.tasks, arguments.actions == "sampled"
    before, after = shown.data.trajectory[0], shown.data.trajectory[-1]
    # Phases 0 to K are those of the evaluation.
    key = (EVALUATION, arguments.seed, arguments.steps + 1)
    options = {"noise_key": key, "sampled": sampled, "device": run.config.device}
    recording = record_before_after(run.family, run.policy, before, after, tasks, shown.chosen, **options)
    how = "actions sampled; same start, same noise" if sampled else "mean actions; same start"
    spec, detail = run.family.spec, f"{shown.detail} \N{MIDDLE DOT} {how}"
    for i, index in enumerate(shown.chosen):
        options = {"spec": spec, "task": tasks[index], "num_steps": arguments.steps, "detail": detail}
        lanes, target = (2 * i, 2 * i + 1), out / f"before_after_task_{index}.mp4"
        path = write_video(target, recording, lanes, renderer=renderer, **options)
        returns = " -> ".join(f"{value:.1f}" for value in shown.curve.returns[index, [0, -1]])
        print(f"wrote {path}  (task {index}: {task_text(spec, tasks[index].tolist())}; evaluated return {returns})")


def write_curves(shown: Adapted, out: Path) -> None:
    """The adaptation curve, and the training curve of a run that has kept its metrics."""
    from metarl.experiment.run_directory import read_metrics
    from metarl.visualize.curves import draw_adaptation_curve, draw_training_curve

    published = shown.run.family.spec.published
    print(f"wrote {draw_adaptation_curve(out / 'adaptation_curve.png', shown.curve, published, detail=shown.detail)}")
    metrics = shown.run.path / "metrics.jsonl"
    rows = [row for _, row in read_metrics(metrics)] if metrics.is_file() else []
    if rows:
        print(f"wrote {draw_training_curve(out / 'training_curve.png', rows, detail=shown.detail)}")


@reports_errors
def main() -> None:
    _common.handle_list(sys.argv)
    arguments = tyro.cli(Arguments, description=__doc__, prog="visualize.py")
    if arguments.steps < 1 or arguments.seed < 0 or (arguments.tasks is not None and arguments.tasks < 1):
        raise UserError("--steps and --tasks must be positive and --seed zero or more.")
    _common.prepare_display()
    run = _common.load_run(arguments.run, arguments.checkpoint)
    _common.check_device(run.config.device)
    out = output_directory(arguments)

    from metarl.visualize.paths import draw_paths, is_planar
    from metarl.visualize.video import check_ffmpeg, open_renderer

    spec = run.family.spec
    if is_planar(spec):
        shown = adapt(run, arguments, default_count=6)
        options = {"detail": shown.detail}
        path = draw_paths(
            out / "paths.png", shown.data.rollouts, shown.tasks, shown.curve.returns, shown.chosen, **options
        )
        print(f"wrote {path}")
    elif spec.dt > 0:
        check_ffmpeg()
        renderer = open_renderer(run.family)
        try:
            shown = adapt(run, arguments, default_count=2)
            write_videos(shown, out, renderer, arguments)
        finally:
            renderer.close()
    else:
        shown = adapt(run, arguments, default_count=1)
        print(f"note: {spec.id} has neither paths in the plane nor time in seconds; only its curves are drawn")
    write_curves(shown, out)


if __name__ == "__main__":
    main()
