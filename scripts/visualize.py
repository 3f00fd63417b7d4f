"""Pictures of a trained run before and after adaptation, as the evaluation runs it.

    python scripts/visualize.py runs/demo
    python scripts/visualize.py pretrained/navigation-2d@maml2017 --tasks 3 --steps 2 --out figures

Navigation in the plane: a figure of the paths. Robots: one video per task, before and after side by side. Few-shot
runs: fits of sine waves, or sheets of support and query images with what was predicted. All: the adaptation curve and,
where the run has kept its metrics, the training curve. The run adapts to the same tasks with the same noise, budget and
step sizes as in evaluate.py, and the tasks of a policy that are shown are spread over those tasks' range.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import _common
import tyro

from metarl.algorithms.composition import FAR, MOST, Ranges
from metarl.experiment.errors import UserError, reports_errors
from metarl.experiment.outputs import check_outputs

if TYPE_CHECKING:
    from metarl.visualize.picture import Picture


@dataclass(frozen=True)
class Arguments:
    """Arguments of visualize.py.

    Attributes:
        run: Run directory, or one under pretrained/.
        tasks: How many tasks to show: by default 6 in a path figure, 2 in videos (the lowest and the highest), 4 sine
            waves, 2 sheets of images.
        steps: Inner gradient steps to take; by default 3, and 0 for an oracle.
        out: Directory to write into; by default "figures" in the run, or here if the run cannot be written.
        checkpoint: Which checkpoint: best (the last one where no validation has chosen one yet), last, or one that was
            kept, e.g. iteration_50.
        seed: Seed of the evaluation's noise (and of drawn tasks).
        actions: In videos, actions drawn from the policy as in evaluation, or its mean action.
    """

    run: tyro.conf.Positional[Path]
    tasks: int | None = None
    steps: int | None = None
    out: Path | None = None
    checkpoint: str = "best"
    seed: int = 0
    actions: Literal["sampled", "mean"] = "sampled"


_RANGES: Ranges = {
    "positive and below 2**31": (lambda x: 0 < x < MOST, ("tasks",)),
    "zero or more and below 2**31": (lambda x: 0 <= x < MOST, ("steps",)),
    "zero or more and below 2**63": (lambda x: 0 <= x < FAR, ("seed",)),
}


def output_directory(arguments: Arguments) -> Path:
    """The directory to write into, made and tried out before any work is done."""
    wanted = [arguments.out] if arguments.out else [arguments.run / "figures", Path("figures")]
    for path in wanted:
        try:
            path.mkdir(parents=True, exist_ok=True)
            check_outputs(out=path / "paths.png")
            return path
        except OSError as error:
            if path is wanted[-1]:
                error.filename = str(path)
                raise
            print(f"note: {path} cannot be written; writing to ./{wanted[-1]} instead")
    raise AssertionError


@reports_errors
def main() -> None:
    _common.handle_list(sys.argv)
    arguments = tyro.cli(Arguments, description=__doc__, prog="visualize.py")
    _common.check_ranges(arguments, _RANGES)
    if _common.is_fewshot_run(arguments.run):
        show_fewshot(arguments)
        return
    _common.prepare_display()
    run = _common.load_run(arguments.run, arguments.checkpoint)

    from metarl.experiment.evaluate_run import DEFAULT_STEPS, default_steps
    from metarl.visualize.paths import is_planar
    from metarl.visualize.show import show_run

    if is_planar(run.family.spec):
        check_actions(arguments, f"{run.config.family} is drawn as paths, not filmed")
    steps = min(DEFAULT_STEPS, default_steps(run)) if arguments.steps is None else arguments.steps
    _common.check_evaluation(run, None, None, steps)
    out = output_directory(arguments)
    options = {"num_steps": steps, "num_shown": arguments.tasks, "seed": arguments.seed}
    for picture in show_run(run, out, sampled=arguments.actions == "sampled", **options):
        report(picture)


def show_fewshot(arguments: Arguments) -> None:
    """The pictures of a run of train_fewshot.py."""
    from _evaluate_fewshot import check_steps

    from metarl.experiment.fewshot_run import load_fewshot_run
    from metarl.visualize.fewshot import show_fewshot_run

    check_actions(arguments, "there is no video of a few-shot run")
    run = load_fewshot_run(arguments.run, arguments.checkpoint)
    check_steps(arguments.steps, run)
    out = output_directory(arguments)
    steps = run.config.num_test_steps if arguments.steps is None else arguments.steps
    for picture in show_fewshot_run(run, out, num_steps=steps, num_shown=arguments.tasks, seed=arguments.seed):
        report(picture)


def check_actions(arguments: Arguments, why: str) -> None:
    """Refuses --actions where there is no video.

    Raises:
        UserError: Saying why there is none.
    """
    if arguments.actions != "sampled":
        raise UserError(f"--actions is {arguments.actions} and does nothing: {why}; leave it out.")


def report(picture: Picture) -> None:
    """Says that a picture is there."""
    print(f"wrote {picture.path}" + (f"  ({picture.note})" if picture.note else ""), flush=True)


if __name__ == "__main__":
    main()
