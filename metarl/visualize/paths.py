"""Paths in the plane before and after adaptation, several tasks beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metarl.types import FamilySpec, Rollout
from metarl.visualize.figure import (
    DOT,
    GOAL,
    INK,
    MUTED,
    TITLE_HEIGHT,
    drawing,
    number,
    step_colours,
    step_label,
    title,
)

_MAX_COLUMNS, _MAX_RETURNS, _MAX_LEGEND_COLUMNS = 3, 5, 6
# The view reaches at most this many times as far as the farthest goal.
_VIEW_LIMIT = 1.7
# Inches: margins around the panels, space between them for their returns, the legend's line.
_LEFT, _RIGHT, _GAP, _CAPTION, _TICKS, _LEGEND = 0.42, 0.0, 0.14, 0.3, 0.25, 0.35


def is_planar(spec: FamilySpec) -> bool:
    """Whether, by its labels, a family observes its position in the plane and its task is a goal there."""
    return spec.observation_labels[:2] == ("x", "y") and spec.task_labels == ("goal x", "goal y")


def planar_paths(rollout: Rollout, task: int) -> np.ndarray:
    """Positions `[episode, time + 1, 2]` of a task's episodes; one that is over stays where it ended.

    Args:
        rollout: Its observations begin with x and y.
        task: Which task.
    """
    played = rollout.valid[task].any(-1)
    valid = rollout.valid[task, played].cpu().numpy()
    seen = rollout.observations[task, played, :, :2].cpu().double().numpy()
    last = rollout.final_observation[task, played, :2].cpu().double().numpy()[:, None]
    return np.concatenate([np.where(valid[..., None], seen, last), last], axis=1)


def view_half_width(goals: np.ndarray, paths: Sequence[np.ndarray]) -> float:
    """Half-width of the square that all panels show, centred on the origin.

    It holds every goal and every path with its overshoots, but a path that runs away does not shrink all the others: it
    leaves the picture, and its panel says so.

    Args:
        goals: `[task, 2]`.
        paths: `[episode, time + 1, 2]` each.
    """
    goal_extent = float(np.abs(goals).max())
    points = np.concatenate([np.abs(path).max(axis=-1).ravel() for path in paths])
    points = points[np.isfinite(points)]
    reach = float(points.max()) if len(points) else 0.0
    # 0.05: a picture of something even where the goal and all paths are at the origin.
    return 1.08 * max(goal_extent, min(reach, _VIEW_LIMIT * goal_extent), 0.05)


def draw_paths(
    path: Path,
    rollouts: Sequence[Rollout],
    goals: Tensor,
    returns: Tensor,
    panels: Sequence[int],
    *,
    detail: str,
    goal_observed: bool = False,
    episodes_shown: int = 4,
) -> Path:
    """Draws one panel per task with the paths of a few episodes before adaptation and after each inner step.

    Args:
        path: PNG file to write.
        rollouts: Rollout k was collected after k inner steps; its observations begin with x and y.
        goals: `[task, 2]`.
        returns: `[task, K + 1]`, mean over all of a task's episodes.
        panels: The tasks to show.
        detail: What was run, e.g. family, algorithm and iteration.
        goal_observed: Whether the policy sees its goal.
        episodes_shown: Paths per panel and step.

    Returns:
        `path`.
    """
    recorded = {task: [planar_paths(rollout, task) for rollout in rollouts] for task in panels}
    centres = goals.cpu().double().numpy()
    half = view_half_width(centres[list(panels)], [paths for steps in recorded.values() for paths in steps])
    colours = step_colours(len(rollouts) - 1)
    columns = 2 if len(panels) == 4 else min(len(panels), _MAX_COLUMNS)
    rows = -(-len(panels) // columns)
    legend_rows = -(-(len(colours) + 2) // _MAX_LEGEND_COLUMNS)
    side = (9.0 - _LEFT - _RIGHT) / _MAX_COLUMNS - _GAP
    # Three columns of panels, or the legend below fewer, are 900 pixels of a web page.
    height = TITLE_HEIGHT + rows * (side + _CAPTION) + _TICKS + _LEGEND * legend_rows
    with drawing(path, 9.0, height) as figure:
        left = _LEFT if columns == _MAX_COLUMNS else (9.0 - columns * side - (columns - 1) * _GAP) / 2
        for i, task in enumerate(panels):
            bottom = height - TITLE_HEIGHT - (i // columns + 1) * (side + _CAPTION)
            x = left + (i % columns) * (side + _GAP)
            ax = figure.add_axes((x / 9.0, bottom / height, side / 9.0, side / height))
            _frame(ax, half, left=i % columns == 0, bottom=i + columns >= len(panels))
            _panel(ax, recorded[task], centres[task], colours, half, episodes_shown)
            _returns_line(ax, returns[task].tolist(), colours)
        _legend(figure, colours, goal_observed)
        title(
            figure,
            "One policy, before and after adapting to each goal" if len(colours) > 1 else "One policy, as it is",
            f"{detail} {DOT} thin: single episodes, thick: mean of all",
        )
    return path


def _frame(ax: Axes, half: float, left: bool, bottom: bool) -> None:
    """The square that all panels share; tick labels only at the outer edges."""
    ax.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    for axis, outer in ((ax.xaxis, bottom), (ax.yaxis, left)):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_tick_params(length=0, labelsize=8, labelleft=outer, labelbottom=outer)
    ax.spines[["top", "right"]].set_visible(True)


def _panel(
    ax: Axes, steps: Sequence[np.ndarray], goal: np.ndarray, colours: Sequence[str], half: float, episodes_shown: int
) -> None:
    """Single episodes thin, the mean over all episodes thick."""
    for k, (paths, colour) in enumerate(zip(steps, colours, strict=True)):
        for points in paths[:episodes_shown]:
            ax.plot(*points.T, color=colour, linewidth=0.7, alpha=0.4, zorder=2 + k, solid_joinstyle="round")
        mean = paths.mean(axis=0)
        ax.plot(*mean.T, color="white", linewidth=4.2, zorder=20 + 2 * k, solid_joinstyle="round")
        ax.plot(*mean.T, color=colour, linewidth=2.4, zorder=21 + 2 * k, solid_joinstyle="round")
        ax.plot(*mean[-1], "o", color=colour, markersize=7, markeredgecolor="white", zorder=21 + 2 * k)
    ax.plot(0, 0, "o", color="white", markeredgecolor=INK, markersize=7, markeredgewidth=1.6, zorder=60)
    ax.plot(*goal, "*", color=GOAL, markersize=15, markeredgecolor="white", markeredgewidth=0.9, zorder=61)
    outside = sum(int((np.abs(paths) > half).any((1, 2)).sum()) for paths in steps)
    if outside:
        note = f"{outside} of {sum(map(len, steps))} episodes leave the picture"
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
        ax.text(0.03, 0.03, note, transform=ax.transAxes, color=MUTED, fontsize=8, zorder=70, bbox=box)


def _returns_line(ax: Axes, returns: Sequence[float], colours: Sequence[str]) -> None:
    """The returns after each step, above the panel, each in its step's colour; of many, the first and the last ones."""
    parts: list[Artist] = [TextArea("return ", textprops={"color": MUTED, "fontsize": 9})]
    last = len(returns) - 1
    for k, (value, colour) in enumerate(zip(returns, colours, strict=True)):
        if last >= _MAX_RETURNS and 1 < k < last - 1:
            continue
        if k:
            skipped = " \N{HORIZONTAL ELLIPSIS} \N{RIGHTWARDS ARROW}" if last >= _MAX_RETURNS and k == last - 1 else ""
            parts.append(TextArea(f"\N{RIGHTWARDS ARROW}{skipped}", textprops={"color": MUTED, "fontsize": 9}))
        parts.append(TextArea(number(value), textprops={"color": colour, "fontsize": 9, "fontweight": "bold"}))
    line = HPacker(children=parts, align="baseline", pad=0, sep=2)
    above = {"bbox_to_anchor": (0, 1), "bbox_transform": ax.transAxes}
    ax.add_artist(AnchoredOffsetbox("lower left", child=line, pad=0, borderpad=0.4, frameon=False, **above))


def _legend(figure: Figure, colours: Sequence[str], goal_observed: bool) -> None:
    marks = [
        Line2D([], [], marker="o", linestyle="", color="white", markeredgecolor=INK, markersize=7, markeredgewidth=1.6),
        Line2D([], [], marker="*", linestyle="", color=GOAL, markersize=14, markeredgecolor="white"),
    ]
    lines = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours]
    goal = "goal (observed)" if goal_observed else "goal (not observed)"
    labels = ["start", goal, *(step_label(k) for k in range(len(colours)))]
    figure.legend(
        [*marks, *lines],
        labels,
        loc="lower center",
        ncols=min(len(labels), _MAX_LEGEND_COLUMNS),
        columnspacing=1.5,
        handlelength=1.5,
    )
