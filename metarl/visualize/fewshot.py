"""Pictures of a few-shot run: regressions before and after each step, or support and query images with predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metarl.experiment.errors import UserError
from metarl.experiment.fewshot_run import EVALUATION_TASKS, LoadedFewShotRun
from metarl.experiment.run_directory import metrics_of
from metarl.fewshot.methods import METHODS
from metarl.fewshot.sinusoid import INPUTS, Sinusoid
from metarl.fewshot.supervised import score
from metarl.fewshot.tasks import Examples
from metarl.visualize.curves import draw_adaptation_curve, draw_fewshot_training
from metarl.visualize.figure import (
    DOT,
    GOAL,
    INK,
    MUTED,
    TITLE_HEIGHT,
    describe_run,
    drawing,
    step_colours,
    step_label,
    title,
)
from metarl.visualize.picture import Picture

FITS, SHEETS = 4, 2
"""Tasks shown by default: of a regression, and of a classification."""
RIGHT, WRONG = "#2b8a3e", GOAL
_MAX_QUERIES = 10
_CELL, _GAP = 0.62, 0.35


def show_fewshot_run(
    run: LoadedFewShotRun, out: Path, *, num_steps: int, num_shown: int | None = None, seed: int = 0
) -> Iterator[Picture]:
    """Writes the pictures of a run, yielding each as soon as it is there.

    Args:
        run: The loaded run.
        out: An existing directory.
        num_steps: Inner steps, of a method that takes steps.
        num_shown: Tasks to show, the first ones of the evaluation; None takes `FITS` or `SHEETS`.
        seed: Seed of the evaluation's tasks.
    """
    if num_shown is not None and num_shown > EVALUATION_TASKS:
        raise UserError(f"{num_shown} tasks cannot be shown: the evaluation has {EVALUATION_TASKS}.")
    config = run.config
    detail = f"{describe_run(f'{config.dataset}, {config.setting}', config.method, run.iteration)}"
    if isinstance(run.source, Sinusoid):
        yield Picture(draw_fits(out / "fits.png", run, num_shown or FITS, num_steps, seed, detail))
    else:
        for index in range(num_shown or SHEETS):
            yield draw_sheet(out / f"task_{index}.png", run, index, num_steps, seed, detail)
    if METHODS[config.method].takes_steps and num_steps > 0:
        curve = run.evaluate(EVALUATION_TASKS, num_steps, seed)
        what = "accuracy" if run.source.is_classification else "mean squared error"
        yield Picture(draw_adaptation_curve(out / "adaptation_curve.png", curve, detail=detail, what=what))
    rows = metrics_of(run.path)
    if rows:
        yield Picture(draw_fewshot_training(out / "training_curve.png", rows, detail=detail))


def draw_fits(path: Path, run: LoadedFewShotRun, count: int, num_steps: int, seed: int, detail: str) -> Path:
    """Draws the sine waves of test tasks with what is predicted before and after steps (Finn et al. 2017, figure 2).

    Args:
        path: PNG file to write.
        run: A run on sinusoids.
        count: Tasks to show.
        num_steps: Inner steps.
        seed: Seed of the tasks.
        detail: What was run.
    """
    support = run.source.sample(count, "test", seed).support
    waves = Sinusoid.parameters(count, "test", seed)
    x = torch.linspace(*INPUTS, 200)
    predictions = _predictions(run, support, x.reshape(1, -1, 1).expand(count, -1, 1), num_steps)
    shown = sorted({0, 1, num_steps} & set(range(len(predictions))))
    columns = min(2, count)
    rows = math.ceil(count / columns)
    with drawing(path, 1.6 + 3.9 * columns, 2.4 * rows + TITLE_HEIGHT + 0.5) as figure:
        grid = _panels(figure, rows, columns)
        for i, ax in enumerate(grid[:count]):
            amplitude, phase = waves[i]
            ax.plot(x, amplitude * np.sin(x.numpy() - phase), color=INK, linewidth=2.2, label="truth")
            for k, colour in zip(shown, step_colours(max(1, len(shown) - 1)), strict=False):
                style = {"linestyle": ":" if k == 0 else "-", "linewidth": 1.7}
                ax.plot(x, predictions[k][i, :, 0], color=colour, label=step_label(k), **style)
            points = (support.x[i, :, 0], support.y[i, :, 0])
            ax.plot(*points, "^", color=GOAL, markersize=7, markeredgecolor="white", label="support", zorder=5)
            ax.text(
                0.02, 0.97, f"amplitude {amplitude:.2f}, phase {phase:.2f}", transform=ax.transAxes, fontsize=8.5,
                color=MUTED, va="top",
            )  # fmt: skip
            low, high = ax.get_ylim()
            ax.set_ylim(low, high + 0.18 * (high - low))
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels))
        title(figure, "Fits before and after adaptation", detail)
    return path


def draw_sheet(path: Path, run: LoadedFewShotRun, index: int, num_steps: int, seed: int, detail: str) -> Picture:
    """Draws one test task: a row for each class, its support images on the left, its queries framed by what was said.

    Args:
        path: PNG file to write.
        run: A run on images.
        index: Number of the task in the evaluation.
        num_steps: Inner steps.
        seed: Seed of the tasks.
        detail: What was run.
    """
    tasks = run.source.sample(1, "test", seed, start=index)
    predictions = _predictions(run, tasks.support, tasks.query.x, num_steps)
    scores = [100 * float(score(p, tasks.query.y)) for p in predictions]
    said = predictions[-1][0].argmax(-1)
    by_class = [[_of_class(part, c) for c in range(run.config.ways)] for part in (tasks.support, tasks.query)]
    shots = len(by_class[0][0])
    queries = min(_MAX_QUERIES, len(by_class[1][0]))
    width = _CELL * (shots + queries) + _GAP + 0.9
    with drawing(path, max(width, 6.5), _CELL * run.config.ways + TITLE_HEIGHT + 0.55) as figure:
        for c in range(run.config.ways):
            _row_label(figure, c)
            for j, i in enumerate(by_class[0][c]):
                _image(figure, tasks.support.x[0, i], c, j, 0.0, INK)
            for j, i in enumerate(by_class[1][c][:queries]):
                right = int(said[i]) == c
                words = "" if right else f"said {int(said[i]) + 1}"
                _image(figure, tasks.query.x[0, i], c, shots + j, _GAP, RIGHT if right else WRONG, words)
        told = " to ".join(f"{s:.0f} %" for s in (scores[0], scores[-1])[-len(scores) :])
        headline = f"Accuracy {told} on {len(said)} queries"
        how = (
            f"support | queries: green right, red wrong{f', after {len(scores) - 1} steps' if len(scores) > 1 else ''}"
        )
        title(figure, headline, f"{detail} {DOT} {how}")
    return Picture(path, f"task {index}: accuracy {scores[-1]:.0f} % on {len(said)} queries")


def _predictions(run: LoadedFewShotRun, support: Examples, query_x: Tensor, num_steps: int) -> list[Tensor]:
    with torch.no_grad():
        return run.method.predictions(run.params, run.buffers, support, query_x, num_steps)


def _of_class(examples: Examples, c: int) -> list[int]:
    """Numbers of the examples of class `c` in the only task."""
    return torch.nonzero(examples.y[0] == c).flatten().tolist()


def _panels(figure: Figure, rows: int, columns: int) -> Sequence[Axes]:
    """A grid of panels under the title and over the legend."""
    width, height = figure.get_size_inches()
    bottom, top, left, right = 0.72, TITLE_HEIGHT + 0.1, 0.5, 0.2
    grid = figure.add_gridspec(
        rows, columns, left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height,
        wspace=0.15, hspace=0.25,
    )  # fmt: skip
    return [figure.add_subplot(grid[i // columns, i % columns]) for i in range(rows * columns)]


def _row_label(figure: Figure, row: int) -> None:
    width, height = figure.get_size_inches()
    y = height - TITLE_HEIGHT - 0.1 - (row + 0.5) * _CELL
    figure.text(0.3 / width, y / height, f"{row + 1}", fontsize=11, fontweight="bold", ha="center", va="center")


def _image(figure: Figure, image: Tensor, row: int, column: int, shift: float, frame: str, words: str = "") -> None:
    """One image in a cell of the sheet, in a coloured frame, with a word under it."""
    width, height = figure.get_size_inches()
    x, y = 0.55 + column * _CELL + shift, height - TITLE_HEIGHT - 0.1 - (row + 1) * _CELL
    ax = figure.add_axes((x / width, (y + 0.06) / height, (_CELL - 0.1) / width, (_CELL - 0.1) / height))
    pixels = image.permute(1, 2, 0).numpy()
    ax.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color=frame, linewidth=1.8)
    if words:
        ax.text(0.5, 0.02, words, transform=ax.transAxes, fontsize=6.5, color=frame, ha="center", va="bottom",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85})  # fmt: skip
