"""A run on disk: config, metrics, events, checkpoints; held by one process at a time.

config.json          resolved settings           metrics.jsonl   one line per iteration
versions.json        packages, commit, command   events.*        TensorBoard
checkpoints/         last.pt, best.pt, iteration_N.pt
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, final

from metarl.experiment.config import TrainConfig, from_json, to_json
from metarl.experiment.errors import UserError
from metarl.experiment.files import load_checkpoint, write_bytes_atomically, write_json
from metarl.types import Params

CHECKPOINT_FORMAT = 1
_PACKAGES = ("metarl-toolkit", "torch", "numpy", "gymnasium", "mujoco", "tensorboard")


@final
class RunDirectory:
    """One run directory, held while open as a context. Open it with `create` or `resume`; reading needs neither."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @staticmethod
    def create(path: Path, config: TrainConfig) -> RunDirectory:
        """Makes a new run.

        Raises:
            UserError: If the directory already holds a run, or another process is using it.
            OSError: If it cannot be written.
        """
        path.mkdir(parents=True, exist_ok=True)
        run = RunDirectory(path, _lock(path))
        if (path / "config.json").exists():
            run.__exit__()
            raise UserError(
                f"{path} already holds a run; continue it with --resume {path}, or choose another --run-dir."
            )
        (path / "checkpoints").mkdir(exist_ok=True)
        write_json(path / "versions.json", versions())
        # Last, because a directory counts as a run once its config is there.
        write_json(path / "config.json", to_json(config))
        return run

    @staticmethod
    def resume(path: Path) -> RunDirectory:
        """Opens an existing run for writing.

        Raises:
            UserError: If there is none, or another process is using it.
        """
        read_config(path)
        run = RunDirectory(path, _lock(path))
        (path / "checkpoints").mkdir(exist_ok=True)
        return run

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.close()

    def checkpoint(self, name: str) -> Path:
        """Path of checkpoint `name` ("last", "best", "iteration_100")."""
        return self.path / "checkpoints" / f"{name}.pt"

    def save_config(self, config: TrainConfig) -> None:
        """Replaces the config: a resumed run may have been given more iterations."""
        write_json(self.path / "config.json", to_json(config))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            error.filename = str(path)
            raise

    def cut_metrics(self, iteration: int) -> None:
        """Drops every line after `iteration`, and a last line that a kill left unfinished."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = [line for line, row in read_metrics(path) if row["iteration"] <= iteration]
            write_bytes_atomically(path, "".join(line + "\n" for line in kept).encode())


def read_metrics(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(text, content) of each complete line of a metrics file."""
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("iteration"), int):
                yield line, row


def read_config(path: Path) -> TrainConfig:
    """The config of a run.

    Raises:
        UserError: If the directory is not a run.
    """
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"{path} is not a run: it has no config.json. Name a directory that train.py made.")
    try:
        data = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{file} is not valid JSON: it was damaged after the run wrote it.") from None
    return from_json(data, file)


def read_checkpoint(path: Path, config: TrainConfig, params: Params) -> dict[str, Any]:
    """Loads a checkpoint and makes sure it belongs to the run.

    Args:
        path: The file.
        config: The run's settings.
        params: Parameters of the run's policy, for their names and shapes.

    Raises:
        UserError: If it is missing, damaged, malicious, or of another format, algorithm, family or policy.
    """
    state = load_checkpoint(path)
    if state.get("format") != CHECKPOINT_FORMAT or not isinstance(state.get("learner"), dict):
        raise UserError(f"{path} is not a checkpoint of this version of metarl (format {state.get('format')!r}).")
    for what in ("algorithm", "family"):
        if state.get(what) != getattr(config, what):
            raise UserError(
                f"{path} belongs to another run: its {what} is {state.get(what)!r}, this run's is "
                f"{getattr(config, what)!r}."
            )
    saved = state["learner"].get("params")
    wanted = {name: tuple(value.shape) for name, value in params.items()}
    if not isinstance(saved, dict) or {name: tuple(value.shape) for name, value in saved.items()} != wanted:
        raise UserError(f"{path} does not fit this run: its policy network has other layers than config.json says.")
    return state


def versions() -> dict[str, Any]:
    """Package versions, platform, commit and command, for the record."""
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {
        "packages": found,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        "command": sys.argv,
    }


def _commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _lock(path: Path) -> IO[str]:
    """Holds the directory until the returned file is closed or the process ends, however it ends."""
    file = (path / ".lock").open("a")
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks of this kind.
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{path} is in use by another process; wait for it, or choose another --run-dir.") from None
    return file
