"""Curves: the return over inner steps, and over training iterations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarl.evaluation import AdaptationCurve
from metarl.experiment.comparison import CurveRow
from metarl.types import PublishedCurve
from metarl.visualize.figure import BEFORE, INK, TITLE_HEIGHT, drawing, step_colours, step_label, title

_WIDTH, _HEIGHT, _LEGEND = 9.0, 4.6, 2.3
_OURS = "#3b2f9e"
_PUBLISHED = ("#d9480f", "#2b8a3e", "#1971c2", "#862e9c", "#5c940d")
# A share of single tasks may fall below the picture where they would stretch it by more than a factor.
_OUTLIERS, _STRETCH = 0.03, 1.5
# Curves of more points than this are shown by their end.
_LONGEST = 11
_MOST_LINES = 100
_VALIDATED = "validation/score_step_"


def draw_adaptation_curve(
    path: Path, curve: AdaptationCurve, published: Sequence[PublishedCurve] = (), *, detail: str, what: str = "return"
) -> Path:
    """Draws the return against the inner step: up to a hundred tasks thin, the mean with its 95 % interval thick.

    Args:
        path: PNG file to write.
        curve: What was measured.
        published: Published curves of the same variant, dashed; one of a single value (an oracle) is a level line.
        detail: What was run.
        what: What the values are.

    Returns:
        `path`.
    """
    returns, mean, ci95 = curve.returns.numpy(), curve.mean.numpy(), curve.ci95.numpy()
    num_tasks, num_points = returns.shape
    steps = np.arange(num_points)
    last = max([num_points - 1, *(len(p.returns) - 1 for p in published)])
    with drawing(path, _WIDTH, _HEIGHT) as figure:
        ax = _axes(figure)
        # Of many tasks the lines would hide one another, and the mean.
        single = returns if num_tasks <= _MOST_LINES else returns[:0]
        for i, row in enumerate(single):
            label = f"each of {num_tasks} tasks" if i == 0 else None
            ax.plot(steps, row, color=_OURS, linewidth=0.7, alpha=0.22, label=label)
        for colour, known in zip(_cycle(_PUBLISHED, len(published)), published, strict=True):
            _draw_published(ax, known, colour, last)
        known_interval = bool(np.isfinite(ci95).all())
        label = "mean, 95 % interval" if known_interval else "mean"
        style = {"color": _OURS, "linewidth": 2.6, "marker": "o", "markersize": 6, "capsize": 4, "elinewidth": 1.6}
        ax.errorbar(steps, mean, ci95 if known_interval else None, label=label, zorder=10, **style)
        interval_ends = np.nan_to_num(ci95) * [[-1.0], [1.0]] + mean
        _limits(ax, single, [*interval_ends.ravel(), *(v for p in published for v in p.returns if v is not None)])
        ax.set(xlabel="inner steps taken", ylabel=what, xlim=(-0.15, last + 0.15))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(ax)
        title(figure, f"{what.capitalize()} while adapting to test tasks", detail)
    return path


def draw_comparison(
    path: Path, rows: Sequence[CurveRow], published: Sequence[PublishedCurve] = (), *, detail: str, what: str = "return"
) -> Path:
    """Draws several adaptation curves with their intervals into one figure.

    A curve of a single value is a level line; one much longer than the others a level line at its end.

    Args:
        path: PNG file to write.
        rows: The curves, in the order of the legend.
        published: Published curves, dashed.
        detail: What was run.
        what: What the values are.
    """
    shown = max((len(row.mean) for row in rows if len(row.mean) <= _LONGEST), default=2)
    last = max(shown, *(len(p.returns) for p in published), 2) - 1
    colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.92, len(rows)))
    markers = "osD^vP*Xph<>"
    with drawing(path, _WIDTH, max(_HEIGHT, 0.24 * (len(rows) + len(published)) + 1.4)) as figure:
        ax = _axes(figure)
        for i, (row, colour) in enumerate(zip(rows, colours, strict=True)):
            style = {"color": colour, "linewidth": 1.8}
            mean = np.array(row.mean, dtype=np.float64)  # None becomes NaN: a gap
            if len(row.mean) == 1 or len(row.mean) > _LONGEST:
                steps = len(row.mean) - 1
                label = row.label + (f", after {steps} steps" if steps else "")
                ax.axhline(mean[-1], linestyle="-.", label=label, **style)
                continue
            # Shifted a little, so that intervals do not hide one another.
            x = np.arange(len(row.mean)) + 0.16 * ((i + 0.5) / len(rows) - 0.5)
            interval = np.nan_to_num(np.array(row.interval, dtype=np.float64))
            marker = markers[i % len(markers)]
            ax.errorbar(x, mean, interval, label=row.label, marker=marker, markersize=5, capsize=2.5, **style)
        for colour, known in zip(_cycle(_PUBLISHED, len(published)), published, strict=True):
            _draw_published(ax, known, colour, last)
        ax.set(xlabel="inner steps taken", ylabel=what, xlim=(-0.2, last + 0.2))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(ax, first=[row.label for row in rows])
        title(figure, f"{what.capitalize()} while adapting to test tasks", detail)
    return path


def draw_training_curve(path: Path, metrics: Sequence[Mapping[str, Any]], *, detail: str) -> Path:
    """Draws the training tasks' returns before and after adaptation, and the validation scores, over iterations.

    Args:
        path: PNG file to write.
        metrics: Rows of metrics.jsonl: `iteration`, `return/step_k`, and in some rows `validation/score`; null where
            a value was not finite.
        detail: What was run.

    Returns:
        `path`.
    """
    steps = 0
    while any(f"return/step_{steps + 1}" in row for row in metrics):
        steps += 1
    with drawing(path, _WIDTH, _HEIGHT) as figure:
        ax = _axes(figure)
        marker = "o" if len(metrics) <= 20 else ""
        for k, colour in enumerate(step_colours(steps)):
            iterations, values = _series(metrics, f"return/step_{k}")
            ax.plot(
                iterations, values, color=colour, linewidth=1.6, marker=marker, markersize=4, label=step_label(k)
            )  # fmt: skip
        iterations, scores = _series(metrics, "validation/score")
        if len(scores):
            ax.plot(iterations, scores, "D", color=INK, markersize=5, markeredgecolor="white", label="validation score")
        ax.set(xlabel="iteration", ylabel="return (mean over training tasks)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(ax)
        title(figure, "Return over training", detail)
    return path


def draw_fewshot_training(path: Path, metrics: Sequence[Mapping[str, Any]], *, detail: str) -> Path:
    """Draws the meta-loss of the training tasks and the scores of training and validation tasks over iterations.

    Args:
        path: PNG file to write.
        metrics: Rows of metrics.jsonl: `iteration`, `loss`, `score`, and in some rows `validation/score_step_k`.
        detail: What was run.
    """
    last = max((int(name.rsplit("_", 1)[1]) for row in metrics for name in row if _VALIDATED in name), default=0)
    with drawing(path, _WIDTH, _HEIGHT) as figure:
        ax = _axes(figure)
        losses = _series(metrics, "loss")[1]
        for name, label, colour in (("loss", "meta-loss", BEFORE), ("score", "score of training queries", _OURS)):
            iterations, values = _series(metrics, name)
            # Of a regression the score is the loss.
            if len(values) and (name == "loss" or not np.array_equal(values, losses)):
                ax.plot(iterations, values, color=colour, linewidth=1.2, label=label)
        iterations, scores = _series(metrics, f"{_VALIDATED}{last}")
        if len(scores):
            label = "validation score" + (f",\n{step_label(last)}" if last else "")
            ax.plot(iterations, scores, "D", color=INK, markersize=4, markeredgecolor="white", label=label)
        ax.set(xlabel="iteration", ylabel="mean over tasks", ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(ax)
        title(figure, "Few-shot training", detail)
    return path


def _draw_published(ax: Axes, known: PublishedCurve, colour: str, last: int) -> None:
    """A dashed curve through what is known of it; a level line up to inner step `last` for a single value."""
    level = len(known.returns) == 1
    points = [(step, value) for step, value in enumerate(known.returns) if value is not None]
    where, values = zip(*([(0, points[0][1]), (last, points[0][1])] if level else points), strict=True)
    style = {"linestyle": ":" if level else "--", "marker": "" if level else "o", "markersize": 4}
    ax.plot(where, values, color=colour, linewidth=1.5, label=f"published: {known.label}", **style)


def _axes(figure: Figure) -> Axes:
    """One panel below the title, with room for its labels and for the legend on its right."""
    width, height = figure.get_size_inches()
    left, right, bottom, top = 0.75, _LEGEND, 0.55, TITLE_HEIGHT + 0.05
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )


def _legend(ax: Axes, first: Sequence[str] = ()) -> None:
    """Beside the panel, where it hides nothing; curves named in `first` come first, in that order."""
    handles, labels = ax.get_legend_handles_labels()

    def place(label: str) -> int:
        return next(
            (i for i, name in enumerate(first) if label == name or label.startswith(f"{name}, after ")), len(first)
        )

    order = sorted(range(len(labels)), key=lambda i: place(labels[i]))
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    legend = ax.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0, labelspacing=0.8
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    for text in legend.get_texts():
        # A run's name may hold a dollar sign, which would begin a formula.
        text.set_parse_math(False)


def _limits(ax: Axes, returns: np.ndarray, always_shown: Sequence[float]) -> None:
    """Shows all that is given, and every single task but outliers, of which it says how many leave the picture."""
    finite = returns[np.isfinite(returns)]
    # 0 where not a single number is finite: the figure of a run that diverged is empty, not an error.
    known = [value for value in always_shown if math.isfinite(value)] or [0.0]
    high = max([*known, *finite])
    low = min([*known, *finite])
    usual = min([*known, *np.quantile(finite, [_OUTLIERS])] if len(finite) else known)
    if high - low > _STRETCH * (high - usual):
        low = usual
    margin = 0.05 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)
    hidden = int((returns < low - margin).any(axis=1).sum())
    if hidden:
        ax.text(
            0.99, 0.01, f"{hidden} of {len(returns)} tasks leave the picture", transform=ax.transAxes, fontsize=8,
            ha="right", va="bottom", color=BEFORE,
        )  # fmt: skip


def _series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of a metric where it was written; NaN, a gap in the line, where it was not finite."""
    rows = [(row["iteration"], row[name]) for row in metrics if name in row]
    values = np.array([math.nan if value is None else value for _, value in rows], dtype=np.float64)
    return np.array([iteration for iteration, _ in rows], dtype=np.int64), values


def _cycle(colours: Sequence[str], count: int) -> list[str]:
    return [colours[i % len(colours)] for i in range(count)]
