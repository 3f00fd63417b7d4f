"""What stands on a video's frames: the words, the trace below the pictures, and the picture they are put on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from metarl.types import FamilySpec
from metarl.visualize.figure import step_label
from metarl.visualize.recorder import Recording

PICTURE_WIDTH, PICTURE_HEIGHT = 480, 360
# Pixels: strips above and below the pictures, right end of the values on a picture.
_HEADER, _TRACE, _VALUES = 56, 128, 240
_BACKGROUND, _RULE, _TEXT, _DIM = (17, 19, 24), (58, 62, 72), (240, 240, 240), (165, 170, 180)
_SIDES = ((200, 200, 200), (255, 169, 77))
_TARGET = (255, 107, 107)
# Single steps outside these quantiles do not stretch the trace's scale: feet hitting the floor give spikes.
_SCALE_QUANTILES = (0.02, 0.98)


@dataclass(frozen=True)
class Trace:
    """A quantity over time on both sides, against its target.

    Attributes:
        label: With its unit.
        values: At every step, `[2, T]`.
        means: Mean from the start to every step, `[2, T]`.
        target: What the task asks for, or None where the task has no dimension of this unit.
    """

    label: str
    values: np.ndarray
    means: np.ndarray
    target: float | None


def amount(value: float, unit: str = "") -> str:
    """A number with two decimals and its unit."""
    text = f"{value:.2f}" if math.isfinite(value) else "not finite"
    return f"{text} {unit}".rstrip()


def task_text(spec: FamilySpec, task: Sequence[float]) -> str:
    """A task in words: "target velocity 1.52 m/s"."""
    parts = zip(spec.task_labels, task, spec.task_units, strict=True)
    return ", ".join(f"{label} {amount(value, unit)}" for label, value, unit in parts)


def side_text(recording: Recording, lane: int, step: int) -> list[tuple[str, str]]:
    """What is written on one picture after `step` steps: every measured quantity now and on average, reward, end.

    Args:
        recording: The episodes.
        lane: Which of them.
        step: 1 to T.

    Returns:
        (label, value) per line.
    """
    taken = min(step, int(recording.lengths[lane]))
    lines = []
    for label, (values, unit) in recording.measured.items():
        now, mean = float(values[lane, taken - 1]), float(values[lane, :taken].mean())
        lines += [(f"{label} now", amount(now, unit)), ("mean so far", amount(mean, unit))]
    lines.append(("reward so far", amount(float(recording.rewards[lane, :taken].sum()))))
    if step > taken:
        lines.append(("episode over after", f"{taken} steps"))
    return lines


def make_trace(recording: Recording, lanes: tuple[int, int], spec: FamilySpec, task: Tensor) -> Trace | None:
    """The first measured quantity over the episode, beside the task dimension of the same unit; None without one."""
    if not recording.measured:
        return None
    label, (values, unit) = next(iter(recording.measured.items()))
    pair = values[list(lanes)].cpu().double().numpy()
    # Past its end a lane stands still and is not measured.
    over = np.arange(pair.shape[1]) >= recording.lengths[list(lanes)].cpu().numpy()[:, None]
    pair = np.where(over, np.nan, pair)
    means = pair.cumsum(axis=1) / np.arange(1, pair.shape[1] + 1)
    target = next((float(task[i]) for i, u in enumerate(spec.task_units) if unit and u == unit), None)
    return Trace(f"{label} ({unit})" if unit else label, pair, means, target)


@final
class FrameComposer:
    """Puts two pictures, their words and the trace onto one frame.

    Args:
        spec: The family.
        task: `[task_dim]`.
        detail: Second line of the header: what was run, how actions were chosen.
        num_steps: Inner steps between the left and the right side.
        trace: What to draw under the pictures, or None for nothing.
    """

    def __init__(self, spec: FamilySpec, task: Tensor, detail: str, num_steps: int, trace: Trace | None) -> None:
        self._spec, self._trace = spec, trace
        self._labels = (step_label(0), step_label(num_steps))
        self._font, self._small, self._large = (ImageFont.load_default(size=size) for size in (15, 13, 19))
        self.size = (2 * PICTURE_WIDTH, _HEADER + PICTURE_HEIGHT + (_TRACE if trace else 0))
        self._base = Image.new("RGB", self.size, _BACKGROUND)
        draw = ImageDraw.Draw(self._base)
        draw.text((16, 6), task_text(spec, task.tolist()), _TEXT, self._large)
        draw.text((16, 33), detail, _DIM, self._small)
        if trace:
            self._scale = _trace_range(trace)
            for side in (0, 1):
                self._trace_frame(draw, side, trace)

    def compose(
        self, pictures: Sequence[np.ndarray], texts: Sequence[Sequence[tuple[str, str]]], step: int
    ) -> np.ndarray:
        """One frame `[height, width, 3]` uint8.

        Args:
            pictures: Before and after, `[PICTURE_HEIGHT, PICTURE_WIDTH, 3]` uint8 each.
            texts: The (label, value) lines on each.
            step: Control steps since the start.
        """
        frame = self._base.copy()
        draw = ImageDraw.Draw(frame)
        time = f"t = {step * self._spec.dt:.2f} s"
        draw.text((self.size[0] - 16, 6), time, _TEXT, self._large, anchor="ra")
        for side, (picture, lines) in enumerate(zip(pictures, texts, strict=True)):
            left = side * PICTURE_WIDTH
            frame.paste(Image.fromarray(picture), (left, _HEADER))
            outline = {"stroke_width": 2, "stroke_fill": _BACKGROUND}
            draw.text((left + 16, _HEADER + 10), self._labels[side], _SIDES[side], self._large, **outline)
            for row, (label, value) in enumerate(lines):
                y = _HEADER + 40 + 20 * row
                draw.text((left + 16, y), label, _DIM, self._font, **outline)
                # Right-aligned, so that a value that changes its width stays where it is.
                draw.text((left + _VALUES, y), value, _TEXT, self._font, anchor="ra", **outline)
            if self._trace:
                self._trace_lines(draw, side, self._trace, step)
        draw.line([(PICTURE_WIDTH, _HEADER), (PICTURE_WIDTH, self.size[1])], fill=_RULE, width=2)
        return np.asarray(frame)

    def _place(self, side: int, index: int, value: float, length: int) -> tuple[float, float]:
        low, high = self._scale
        x = side * PICTURE_WIDTH + 48 + (PICTURE_WIDTH - 64) * (index + 1) / length
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return x, self.size[1] - 14 - (_TRACE - 46) * share

    def _trace_frame(self, draw: ImageDraw.ImageDraw, side: int, trace: Trace) -> None:
        left, length = side * PICTURE_WIDTH, trace.values.shape[1]
        top = self.size[1] - _TRACE
        draw.text((left + 16, top + 6), f"{trace.label}: now thin, mean so far thick", _DIM, self._small)
        marks = [(0.0, _RULE, _DIM)] if self._scale[0] <= 0.0 <= self._scale[1] else []
        if trace.target is not None:
            draw.text((left + PICTURE_WIDTH - 16, top + 6), "target", _TARGET, self._small, anchor="ra")
            # A target beside 0 would have its number on top of the other.
            close = abs(self._place(side, 0, trace.target, length)[1] - self._place(side, 0, 0.0, length)[1]) < 14
            marks = [*([] if close else marks), (trace.target, _TARGET, _TARGET)]
        for value, line_colour, text_colour in marks:
            start, end = self._place(side, -1, value, length), self._place(side, length - 1, value, length)
            draw.line([start, end], fill=line_colour, width=1)
            draw.text((start[0] - 6, start[1]), amount(value), text_colour, self._small, anchor="rm")

    def _trace_lines(self, draw: ImageDraw.ImageDraw, side: int, trace: Trace, step: int) -> None:
        length = trace.values.shape[1]
        dim = tuple(c // 2 for c in _SIDES[side])
        for values, colour, width in ((trace.values[side], dim, 1), (trace.means[side], _SIDES[side], 3)):
            points = [self._place(side, i, v, length) for i, v in enumerate(values[:step]) if math.isfinite(v)]
            if len(points) > 1:
                draw.line(points, fill=colour, width=width, joint="curve")
        if points:
            x, y = points[-1]
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_SIDES[side])


def _trace_range(trace: Trace) -> tuple[float, float]:
    """Lower and upper end of the trace's scale: nearly all values, the target and 0."""
    finite = trace.values[np.isfinite(trace.values)]
    ends = [0.0, *([] if trace.target is None else [trace.target])]
    if len(finite):
        ends += np.quantile(finite, _SCALE_QUANTILES).tolist()
    return (min(ends), max(ends)) if max(ends) > min(ends) else (0.0, 1.0)
