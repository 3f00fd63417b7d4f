"""Adaptation curves of several runs, and published ones, as rows of one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metarl.types import PublishedCurve

_LABEL, _CELL, _ALL_COLUMNS = 34, 18, 6


@dataclass(frozen=True)
class CurveRow:
    """One adaptation curve.

    Attributes:
        label: What it is of.
        mean: Return after 0, 1, ... inner steps; None where it was not reported.
        interval: Half-width of an interval around each; NaN where there is none.
    """

    label: str
    mean: Sequence[float | None]
    interval: Sequence[float]

    @staticmethod
    def of_record(label: str, record: dict[str, Any]) -> CurveRow:
        """The row of an evaluation record (`evaluate_run.evaluation_record`): 95 % intervals over tasks."""
        return CurveRow(label, record["return_mean"], record["return_ci95"])

    @staticmethod
    def of_published(curve: PublishedCurve) -> CurveRow:
        """The row of a published curve."""
        return CurveRow(f"published: {curve.label}", curve.returns, [math.nan] * len(curve.returns))

    def cell(self, step: int) -> str:
        """The value after `step` inner steps; empty where it was not measured."""
        value = self.mean[step] if step < len(self.mean) else None
        if value is None:
            return ""
        interval = self.interval[step]
        return _number(value) + (f" ± {_number(interval)}" if math.isfinite(interval) else "")


def _number(value: float) -> str:
    """Two decimals, or of what is too wide for a column three digits."""
    return f"{value:.2f}" if not abs(value) >= 1e5 else f"{value:.1e}"


def columns(rows: Sequence[CurveRow]) -> list[int]:
    """Inner steps to show: all, or of a long row the first ones, the last and those that only some rows know."""
    width = max(len(row.mean) for row in rows)
    if width <= _ALL_COLUMNS:
        return list(range(width))
    gaps = [row.mean for row in rows if None in row.mean]
    known = {step for mean in gaps for step, value in enumerate(mean) if value is not None}
    return sorted({0, 1, 2, 3, width - 1} | known)


def curve_table(rows: Sequence[CurveRow]) -> str:
    """The rows as text, under a line of inner steps."""
    steps, width = columns(rows), max(_LABEL, *(len(row.label) for row in rows))
    lines = ["adaptation step".ljust(width) + "".join(f"{step:>{_CELL}}" for step in steps)]
    lines += [row.label.ljust(width) + "".join(f"{row.cell(step):>{_CELL}}" for step in steps) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
