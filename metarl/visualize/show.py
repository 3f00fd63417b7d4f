"""Pictures of a loaded run: the evaluation protocol, then the figures and videos that suit its family."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from metarl.evaluation import AdaptationCurve
from metarl.experiment.errors import UserError
from metarl.experiment.evaluate_run import evaluate_run, test_tasks
from metarl.experiment.loading import LoadedRun
from metarl.experiment.progress import status
from metarl.experiment.run_directory import metrics_of
from metarl.noise import EVALUATION
from metarl.rollout_adaptation import RolloutAdaptation
from metarl.visualize.curves import draw_adaptation_curve, draw_training_curve
from metarl.visualize.figure import DOT, describe_run
from metarl.visualize.frames import task_text
from metarl.visualize.paths import draw_paths, is_planar
from metarl.visualize.picture import Picture
from metarl.visualize.selection import spread_tasks
from metarl.visualize.video import check_ffmpeg, open_renderer, record_before_after, write_video

PATH_TASKS, VIDEO_TASKS = 6, 2
"""Tasks shown by default in a path figure, and in videos."""


@dataclass(frozen=True)
class Evaluated:
    """A run with its evaluation, which is exactly the one of `evaluate.py` with the same steps and seed.

    Attributes:
        run: The loaded run.
        tasks: Every task it was evaluated on, `[task, task_dim]`.
        curve: Their returns.
        data: Everything recorded on the way.
        shown: The tasks to show, spread over the others.
        seed: Noise seed of the evaluation.
    """

    run: LoadedRun
    tasks: Tensor
    curve: AdaptationCurve
    data: RolloutAdaptation
    shown: list[int]
    seed: int

    @property
    def num_steps(self) -> int:
        """Inner steps taken."""
        return len(self.data.trajectory) - 1

    @property
    def detail(self) -> str:
        """What was run, for the figures."""
        return describe_run(self.run.config.family, self.run.config.algorithm, self.run.iteration)


def show_run(
    run: LoadedRun, out: Path, *, num_steps: int, num_shown: int | None = None, seed: int = 0, sampled: bool = True
) -> Iterator[Picture]:
    """Evaluates a run and writes every picture that suits it, yielding each as soon as it is there.

    Navigation in the plane gets a path figure, a family with time in seconds one video per shown task, and both the
    adaptation curve and, where the run has kept its metrics, the training curve.

    Args:
        run: The loaded run.
        out: An existing directory.
        num_steps: Inner steps.
        num_shown: Tasks to show; None takes `PATH_TASKS` or `VIDEO_TASKS`, if there are so many.
        seed: Noise seed of the evaluation, and of drawn tasks.
        sampled: In videos, actions drawn as in the evaluation; otherwise the mean action.

    Raises:
        UserError: If more tasks are asked for than there are, or nothing can be drawn off screen, or ffmpeg fails.
    """
    tasks, origin = test_tasks(run, None, seed)
    planar = is_planar(run.family.spec)
    num_shown = num_shown or min(PATH_TASKS if planar else VIDEO_TASKS, len(tasks))
    if num_shown > len(tasks):
        raise UserError(f"{num_shown} tasks cannot be shown: the evaluation has {origin}.")
    with contextlib.ExitStack() as stack:
        renderer = None
        if not planar and run.family.spec.dt > 0:
            # Before the long part: what is missing should be known at once.
            check_ffmpeg()
            renderer = stack.enter_context(contextlib.closing(open_renderer(cast(Any, run.family))))
        curve, data = evaluate_run(
            run, tasks, num_steps=num_steps, episodes_per_task=None, seed=seed, keep_rollouts=True
        )
        evaluated = Evaluated(run, tasks, curve, data, spread_tasks(tasks, num_shown), seed)
        if planar:
            path = out / "paths.png"
            yield Picture(
                draw_paths(
                    path,
                    data.rollouts,
                    tasks,
                    curve.returns,
                    evaluated.shown,
                    detail=evaluated.detail,
                    goal_observed=run.config.observe_task,
                )
            )
        if renderer is not None:
            yield from write_videos(evaluated, out, renderer, sampled)
    yield from draw_curves(evaluated, out)


def write_videos(evaluated: Evaluated, out: Path, renderer: Any, sampled: bool) -> Iterator[Picture]:
    """One video per shown task, before and after all inner steps."""
    run, tasks, trajectory = evaluated.run, evaluated.tasks, evaluated.data.trajectory
    # Phases 0 to K of this stream are those of the evaluation.
    key = (EVALUATION, evaluated.seed, len(trajectory))
    options = {"noise_key": key, "sampled": sampled, "device": run.config.device}
    family = cast(Any, run.family)
    recording = record_before_after(
        family, run.policy, trajectory[0], trajectory[-1], tasks, evaluated.shown, **options
    )  # fmt: skip
    how = "actions sampled; same start, same noise" if sampled else "mean actions; same start"
    for i, index in enumerate(evaluated.shown):
        with status(f"drawing the video of task {index} ..."):
            path = write_video(
                out / f"before_after_task_{index}.mp4",
                recording,
                (2 * i, 2 * i + 1),
                spec=run.family.spec,
                task=tasks[index],
                renderer=renderer,
                num_steps=evaluated.num_steps,
                detail=f"{evaluated.detail} {DOT} {how}",
            )
        words = task_text(run.family.spec, tasks[index].tolist())
        first, last = evaluated.curve.returns[index, [0, -1]].tolist()
        yield Picture(path, f"task {index}: {words}; return in evaluation {first:.1f} -> {last:.1f}")


def draw_curves(evaluated: Evaluated, out: Path) -> Iterator[Picture]:
    """The adaptation curve, and the training curve of a run that has kept its metrics."""
    run = evaluated.run
    published = run.family.spec.published
    path = draw_adaptation_curve(out / "adaptation_curve.png", evaluated.curve, published, detail=evaluated.detail)
    yield Picture(path)
    rows = metrics_of(run.path)
    if rows:
        detail = describe_run(run.config.family, run.config.algorithm, rows[-1]["iteration"])
        yield Picture(draw_training_curve(out / "training_curve.png", rows, detail=detail))
