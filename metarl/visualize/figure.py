"""The look of every figure, and how one gets onto disk."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metarl.experiment.outputs import write_output

DPI = 200
TITLE_HEIGHT = 0.65
INK, MUTED, GRID = "#222222", "#6b6b6b", "#e4e4e4"
BEFORE = "#9b9b9b"
GOAL = "#e03131"
DOT, MINUS = "\N{MIDDLE DOT}", "\N{MINUS SIGN}"
_STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b5b5b5",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextlib.contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Gives a figure to draw on and writes it to `path` as PNG at the end.

    The look does not depend on the user's matplotlib configuration, and nothing of matplotlib's global state (pyplot,
    rcParams) is left changed. The same figure gives the same bytes.

    Args:
        path: The PNG file, replaced atomically.
        width: In inches of 100 pixels on a web page (the file has twice as many, for sharp screens).
        height: Likewise.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # pyright: ignore[reportCallIssue, reportArgumentType] (its keys are Literals)
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_output(path, buffer.getvalue())


def step_colours(num_steps: int) -> list[str]:
    """Colours of adaptation steps 0 to `num_steps`: grey before adaptation, then from orange to deep violet."""
    colour_map = matplotlib.colormaps["plasma"]
    if num_steps == 1:
        return [BEFORE, matplotlib.colors.to_hex(colour_map(0.2))]
    shades = [0.72 - 0.66 * k / (num_steps - 1) for k in range(num_steps)] if num_steps else []
    return [BEFORE, *(matplotlib.colors.to_hex(colour_map(shade)) for shade in shades)]


def step_label(step: int) -> str:
    """What an adaptation step is called in a legend or on a frame."""
    return "before adaptation" if step == 0 else f"after {step} step{'s' if step > 1 else ''}"


def number(value: float) -> str:
    """A return as people read it: one decimal, a real minus sign."""
    return f"{value:.1f}".replace("-", MINUS)


def title(figure: Figure, headline: str, detail: str) -> None:
    """A bold headline and a grey line under it, left-aligned in the `TITLE_HEIGHT` inches at the top."""
    width, height = figure.get_size_inches()
    figure.text(0.12 / width, 1 - 0.10 / height, headline, fontsize=13, fontweight="bold", va="top")
    figure.text(0.12 / width, 1 - 0.36 / height, detail, fontsize=9.5, color=MUTED, va="top")


def describe_run(family: str, algorithm: str, iteration: int) -> str:
    """The line under a figure's title: what was run."""
    return f"{family} {DOT} {algorithm} {DOT} iteration {iteration}"
