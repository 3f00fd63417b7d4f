"""A line that tells how long work is doing; silent where nobody watches."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import final

from rich.console import Console
from rich.live import Live
from rich.text import Text


@final
class Progress:
    """Shows iterations, time left and what the metrics say on a terminal's last line.

    Args:
        total: Iterations in all.
        start: Iterations already done.
        describe: Metrics as a few words.
        console: Where to write; None takes standard error. Without a terminal nothing is shown.
    """

    def __init__(
        self,
        total: int,
        start: int,
        describe: Callable[[Mapping[str, float]], str],
        console: Console | None = None,
    ) -> None:
        self._total, self._start, self._describe = total, start, describe
        self._console = console or Console(file=sys.stderr)
        self._live: Live | None = None
        self._begin = time.monotonic()

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(Text("working on the first iteration ..."), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, iteration: int, metrics: dict[str, float]) -> None:
        """Shows the state after `iteration` iterations."""
        if self._live is not None:
            self._live.update(Text(self.line(iteration, metrics), no_wrap=True, overflow="ellipsis"))

    def line(self, iteration: int, metrics: dict[str, float]) -> str:
        """The line's text."""
        left = (time.monotonic() - self._begin) / max(iteration - self._start, 1) * (self._total - iteration)
        return f"iteration {iteration}/{self._total}  {_duration(left)} left  {self._describe(metrics)}"


@contextlib.contextmanager
def status(text: str, console: Console | None = None) -> Iterator[None]:
    """Shows `text` on a terminal's last line while the block runs.

    Args:
        text: What is being done.
        console: Where to write; None takes standard error. Without a terminal nothing is shown.
    """
    console = console or Console(file=sys.stderr)
    with console.status(text, refresh_per_second=4) if console.is_terminal else contextlib.nullcontext():
        yield


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
