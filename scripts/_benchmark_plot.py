"""The figure of a benchmark: rates over the number of worlds, or where the time of an iteration goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from _benchmark_limits import Row
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from metarl.visualize.figure import BEFORE, TITLE_HEIGHT, drawing, title

_OURS = "#5b2a86"


def draw(path: Path, rows: Sequence[Row], detail: str) -> None:
    """Draws the rows of one benchmark."""
    rollout = rows[0].name.startswith("rollout")
    width, height = 6.4, 3.9 if rollout else 2.6
    with drawing(path, width, height) as figure:
        title(
            figure, "Rollouts: how close to the dynamics alone" if rollout else "Where an iteration's time goes", detail
        )
        axes = figure.add_axes((0.14, 0.15, 0.82, (height - TITLE_HEIGHT) / height - 0.17))
        (_draw_rates if rollout else _draw_parts)(axes, rows)


def _draw_rates(axes: Axes, rows: Sequence[Row]) -> None:
    """Open and closed loop over the number of worlds, on logarithmic axes; the CPU's rate as a line."""
    for name, label, colour in (("open_loop", "dynamics alone", BEFORE), ("closed_loop", "closed loop", _OURS)):
        chosen = [row for row in rows if row.name == f"rollout/{name}"]
        axes.plot([row.worlds for row in chosen], [row.measured for row in chosen], "o-", color=colour, label=label)
    for row in rows:
        if row.name == "rollout/cpu":
            axes.axhline(row.measured, color="#222222", linestyle=":", label=f"this CPU, {row.worlds} worlds")
    axes.set_xscale("log", base=2)
    rates = [row.measured for row in rows]
    if max(rates) > 5 * min(rates):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))  # 20M, not 20,000,000
    axes.set_xlabel("worlds")
    axes.set_ylabel(rows[0].unit)
    axes.legend()


def _draw_parts(axes: Axes, rows: Sequence[Row]) -> None:
    """Measured seconds and their limit, a pair of bars per part."""
    names = [row.name.removeprefix("iteration/") for row in rows]
    for shift, label, colour in ((-0.2, "limit", BEFORE), (0.2, "measured", _OURS)):
        values = [row.limit if label == "limit" else row.measured for row in rows]
        bars = axes.barh([i + shift for i in range(len(rows))], values, height=0.36, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel(rows[0].unit)
    axes.margins(x=0.15)
    axes.legend()
