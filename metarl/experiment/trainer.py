"""The training run around a learner: logging, validation, checkpoints, resuming, stopping."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, final

from metarl.experiment.checkpoint import read_checkpoint, save_checkpoint
from metarl.experiment.errors import UserError
from metarl.experiment.progress import Progress
from metarl.experiment.run_directory import RunDirectory
from metarl.types import Params

_COUNTERS = ("env_steps", "skipped_updates", "tasks")
"""Metrics that count from the beginning of the run."""


class Learner(Protocol):
    """What is trained.

    Attributes:
        params: What it learns, by name.
        iteration: Iterations done.
        counters: Names of the numbers in its state that count.
    """

    params: Params
    iteration: int
    counters: tuple[str, ...]

    def iterate(self) -> dict[str, float]:
        """Runs one iteration and returns its metrics."""
        ...

    def tensors(self) -> dict[str, Params]:
        """The parts of its state that are sets of tensors of known names and shapes."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Validation(Protocol):
    """What tells how good a learner is, on tasks that are not the test's."""

    def __call__(self) -> tuple[float, dict[str, float]]:
        """A score, the higher the better, and metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it has chosen, which is saved with the learner."""
        ...

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Continues from a saved state.

        Raises:
            UserError: Naming `source`, if that does not fit.
        """
        ...


class RunConfig(Protocol):
    """What the trainer reads of a run's settings."""

    @property
    def iterations(self) -> int: ...
    @property
    def keep_every(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def validation(self) -> Any: ...


@final
class Trainer:
    """Runs a learner to its last iteration inside a run directory.

    Args:
        learner: Built before the run directory is made, so that what cannot be built leaves none.
        validation: Judges it.
        config: The run's settings.
        run: Where it is kept.
        resume: Continue from the run's last checkpoint, if it has one yet.
        identity: What a checkpoint must be of to belong to this run.
        describe: Metrics as a few words for the progress line.

    Raises:
        UserError: If the checkpoint is unusable or is past the configured iterations. The run is as it was then.
    """

    def __init__(
        self,
        learner: Learner,
        validation: Validation,
        config: RunConfig,
        run: RunDirectory,
        resume: bool,
        identity: dict[str, str],
        describe: Callable[[Mapping[str, float]], str],
    ) -> None:
        self.learner, self.config, self.run = learner, config, run
        self.best_score = -math.inf
        self._validation, self._identity, self._describe = validation, identity, describe
        self._lines, self._is_best = 0, False
        self._resumed = resume
        if resume:
            self._restore()

    def _restore(self) -> None:
        last = self.run.checkpoint("last")
        # A run killed before its first checkpoint starts again from nothing, which is where it was. One that has
        # got further and lost its last checkpoint would be thrown away by that.
        if not last.exists() and (written := len(self.run.metrics_until(sys.maxsize))) > 1:
            raise UserError(
                f"{self.run.path} has {written} lines of metrics but no checkpoints/last.pt to "
                "continue from; put a copy of another checkpoint there, or train anew with another --run-dir."
            )
        expected = 0
        if last.exists():
            learner = self.learner
            state = read_checkpoint(last, self._identity, learner.tensors(), learner.counters, self.config)
            done = state["learner"]["iteration"]
            if done > self.config.iterations:
                raise UserError(f"--iterations is {self.config.iterations}; {self.run.path} has done {done} already.")
            self._validation.load_state_dict(state, str(last))
            try:
                learner.load_state_dict(state["learner"])
            except ValueError as error:
                raise UserError(f"{last} does not fit this run: {error}.") from None
            self.best_score, expected = state["best_score"], state["lines"]
        lines = self.run.metrics_until(self.learner.iteration)
        # Nothing is written before this: all that can be refused has been.
        self._lines = len(lines)
        self.run.replace_metrics(lines.values(), keep_old=self._lines < expected)
        changes = self.run.add_session()
        self.run.save_config(self.config)
        if changes:
            print(
                f"warning: {', '.join(changes)} since this run's last session; it need no longer equal an unbroken "
                "run bit for bit.",
                file=sys.stderr,
            )
        if self._lines < expected:
            print(
                f"warning: {self.run.path / 'metrics.jsonl'} lacks {expected - self._lines} of the {expected} lines "
                "written so far; training goes on without them.",
                file=sys.stderr,
            )

    def train(self) -> bool:
        """Trains to the configured iteration. Returns whether it got there: False after Ctrl-C."""
        # Here, because TensorBoard takes a moment that nothing but training has to wait for.
        from metarl.experiment.events import Events

        start, total = self.learner.iteration, self.config.iterations
        events = Events(self.run.path, start + 1 if self._resumed else None)
        with _StopSignal() as stop, Progress(total, start, self._describe) as progress:
            while self.learner.iteration < total and not stop.requested:
                metrics = self._advance()
                if self._validation_due():
                    metrics |= self._validate()
                iteration = self.learner.iteration
                self.run.append_metrics({"iteration": iteration, **_without_nonfinite(metrics)})
                self._lines += 1
                events.add(metrics, iteration)
                self._save_checkpoints()
                progress.update(iteration, metrics)
        return self.learner.iteration >= total

    def _advance(self) -> dict[str, float]:
        """Iterations up to the next line of metrics, and the mean of what they measured.

        A line ends at a multiple of `log_every`, and where there is something to validate or to keep. A stop waits for
        it, so that lines are the same as in an unbroken run.
        """
        rows = [self.learner.iterate()]
        while not self._line_ends():
            rows.append(self.learner.iterate())
        return _mean(rows) if len(rows) > 1 else rows[0]

    def _line_ends(self) -> bool:
        iteration = self.learner.iteration
        ends = (self.config.log_every, self.config.keep_every, self.config.validation.every, self.config.iterations)
        return any(every > 0 and iteration % every == 0 for every in ends)

    def _validation_due(self) -> bool:
        every = self.config.validation.every
        return every > 0 and (self.learner.iteration % every == 0 or self.learner.iteration == self.config.iterations)

    def _validate(self) -> dict[str, float]:
        """Judges the learner."""
        score, metrics = self._validation()
        # A score that is not a number never becomes the best.
        if score > self.best_score:
            self.best_score, self._is_best = score, True
        return metrics | {"validation/score": score, "validation/best_score": self.best_score}

    def _save_checkpoints(self) -> None:
        """Saves what is due, after the line of metrics: a copy of any one is what the last one was then."""
        iteration = self.learner.iteration
        # Where no validation has chosen one, the best is the last.
        unchosen = self.best_score == -math.inf and iteration == self.config.iterations
        names = {"best": self._is_best or unchosen, f"iteration_{iteration}": iteration % self.config.keep_every == 0}
        for name in (*(name for name, due in names.items() if due), "last"):
            save_checkpoint(self.run.checkpoint(name), self._state(), self.config)
        self._is_best = False

    def _state(self) -> dict[str, Any]:
        return {
            **self._identity,
            "learner": self.learner.state_dict(),
            "best_score": self.best_score,
            "lines": self._lines,
            **self._validation.state_dict(),
        }


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over several iterations; what counts from the beginning is taken from the last."""
    last = rows[-1]
    return {
        name: value if name in _COUNTERS else sum(row[name] for row in rows) / len(rows) for name, value in last.items()
    }


def _without_nonfinite(metrics: dict[str, float]) -> dict[str, float | None]:
    """NaN and infinity as null: JSON has no word for them."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


class _StopSignal:
    """Ctrl-C or SIGTERM asks for a clean stop at the next checkpoint; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> _StopSignal:
        # Python delivers signals to the main thread only; training in another one is stopped by whoever runs it.
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nStopping at the next checkpoint (once more to stop at once) ...", file=sys.stderr)
