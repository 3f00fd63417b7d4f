"""A run on disk: config, metrics, events, checkpoints; held by one process at a time.

config.json          resolved settings           metrics.jsonl   one line per iteration
versions.json        packages of each session    events.*        TensorBoard
checkpoints/         last.pt, best.pt, iteration_N.pt
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, final

import torch

from metarl.experiment.config import to_json
from metarl.experiment.errors import UserError
from metarl.experiment.files import (
    LONGEST_WRITING,
    append,
    open_regular,
    read_regular,
    remove_leftovers,
    write_bytes_atomically,
    write_json,
)

_PACKAGES = (
    *("metarl-toolkit", "torch", "numpy", "gymnasium", "mujoco", "mujoco-warp", "warp-lang", "tensorboard"),
    *("matplotlib", "pillow", "scikit-learn"),
)

_MOST_SETTINGS, _MOST_SESSIONS, _MOST_METRICS = 2**20, 2**26, 2**32
"""Bytes that config.json, versions.json and metrics.jsonl can honestly have."""

_MARKS = ("config.json", "versions.json", "metrics.jsonl", "checkpoints", ".lock")
"""A directory with two of them is a run, or what is left of one."""

_WRITTEN = r"config\.json|versions\.json|metrics.*\.jsonl"
"""What only the process that holds the run replaces; evaluation tables are written beside it."""

_OWN_FILES = re.compile(
    rf"{_WRITTEN}|\.lock|events\..*|evaluation_.*\.json|checkpoints(/.*)?",
    re.IGNORECASE | re.DOTALL,
)


@final
class RunDirectory:
    """One run directory, held while open as a context. Open it with `create` or `resume`; reading needs neither."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @staticmethod
    def create(path: Path, config: Any) -> RunDirectory:
        """Makes a new run.

        Raises:
            UserError: If the directory already holds a run, or another process is using it.
            OSError: If it cannot be written.
        """
        _check_name(path)
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "config.json").exists() and not _is_fresh(path):
            raise UserError(f"{path} holds other files and is not a run; choose another --run-dir.")
        run = RunDirectory(path, _lock(path))
        try:
            if (path / "config.json").exists():
                raise UserError(
                    f"{path} already holds a run; continue it with --resume {path}, or choose another --run-dir."
                )
            run._prepare()
            write_json(path / "versions.json", [session()])
            # Last, because a directory counts as a run once its config is there.
            write_json(path / "config.json", to_json(config))
        except BaseException:
            run.__exit__()
            raise
        return run

    @staticmethod
    def resume(path: Path) -> RunDirectory:
        """Opens an existing run for writing.

        Raises:
            UserError: If there is none, or another process is using it.
        """
        _check_name(path)
        read_config_file(path)
        run = RunDirectory(path, _lock(path))
        run._prepare()
        return run

    def _prepare(self) -> None:
        """Makes the folder of checkpoints, and removes what a process that was killed in a write has left."""
        (self.path / "checkpoints").mkdir(exist_ok=True)
        remove_leftovers(self.path, _WRITTEN)
        remove_leftovers(self.path, r"evaluation_.*\.json", LONGEST_WRITING)
        remove_leftovers(self.path / "checkpoints", r"(last|best|iteration_\d+)\.pt")

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.close()

    def checkpoint(self, name: str) -> Path:
        """Path of checkpoint `name` ("last", "best", "iteration_100")."""
        return self.path / "checkpoints" / f"{name}.pt"

    def save_config(self, config: Any) -> None:
        """Replaces the config: a resumed run may have been given more iterations."""
        write_json(self.path / "config.json", to_json(config))

    def add_session(self) -> list[str]:
        """Adds this process to versions.json; returns what differs from the last one, e.g. "torch 2.11 -> 2.12"."""
        path = self.path / "versions.json"
        sessions = _read_sessions(path)
        now = session()
        write_json(path, [*sessions, now])
        if not sessions:
            return []
        before = sessions[-1]
        old = {**before.get("packages", {}), "commit": before.get("commit")}
        new = {**now["packages"], "commit": now["commit"]}
        names = ("metarl-toolkit", "commit", "torch", "numpy", "mujoco")
        return [f"{name} {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl and sees it onto the disk, before a checkpoint counts its iteration as done."""
        append(self.path / "metrics.jsonl", (json.dumps(row) + "\n").encode())

    def metrics_until(self, iteration: int) -> dict[int, str]:
        """Iteration -> line of metrics, of the lines up to `iteration`.

        Raises:
            UserError: If metrics.jsonl is something else than a file.
        """
        return {row["iteration"]: line for line, row in read_metrics(self.path) if row["iteration"] <= iteration}

    def replace_metrics(self, lines: Iterable[str], keep_old: bool) -> None:
        """Makes metrics.jsonl hold just these lines.

        Args:
            lines: Lines of it.
            keep_old: If this changes the file, keep it as it was, as metrics.damaged.jsonl, metrics.damaged-2.jsonl
                and so on: what cannot be read here may be put right by hand.
        """
        path = self.path / "metrics.jsonl"
        old = read_regular(path, _MOST_METRICS) if path.exists() else b""
        new = "".join(line + "\n" for line in lines).encode()
        if new == old:
            return
        if keep_old:
            copy, number = path.with_name("metrics.damaged.jsonl"), 1
            while copy.exists():
                number += 1
                copy = path.with_name(f"metrics.damaged-{number}.jsonl")
            write_bytes_atomically(copy, old)
        write_bytes_atomically(path, new)


def read_metrics(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(text, content) of each complete line of a run's metrics; none where it has no file of them.

    Raises:
        UserError: If metrics.jsonl is something else than a file.
    """
    try:
        content = read_regular(run / "metrics.jsonl", _MOST_METRICS)
    except FileNotFoundError:
        return
    for line in content.decode(errors="replace").split("\n"):
        # ValueError: not JSON. RecursionError: JSON of absurd depth.
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and type(row.get("iteration")) is int and 0 < row["iteration"] < 2**63:
                yield line, row


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The metrics that a run has kept: numbers, None for what was not finite."""
    return [
        {name: value for name, value in row.items() if value is None or _is_number(value)}
        for _, row in read_metrics(run)
    ]


def _is_number(value: Any) -> bool:
    """Whether it is one that a floating-point number can be."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def run_of(file: Path) -> Path | None:
    """The run that this file belongs to, whether it is there or not: its settings, metrics, tables or checkpoints."""
    for run in file.parents:
        checkpoint = f"{file.stem.removeprefix('evaluation_')}.pt"
        if file.parent == run and file.name.startswith("evaluation_") and checkpoint not in _checkpoints(run):
            continue
        if _OWN_FILES.fullmatch(file.relative_to(run).as_posix()):
            with contextlib.suppress(OSError):
                if sum((run / mark).exists() for mark in _MARKS) > 1:
                    return run
    return None


def _checkpoints(run: Path) -> set[str]:
    """Names of the checkpoints that a run has, or will have."""
    return {"best.pt", "last.pt", *(path.name for path in (run / "checkpoints").glob("*.pt"))}


def read_config_file(path: Path) -> tuple[Any, Path]:
    """What the config.json of a run holds, and that file.

    Raises:
        UserError: If the directory is not a run.
    """
    file = path / "config.json"
    try:
        content = read_regular(file, _MOST_SETTINGS)
    except (FileNotFoundError, NotADirectoryError):
        has = "it has no config.json" if path.exists() else "there is no such directory"
        raise UserError(f"{path} is not a run: {has}. Name a directory that a training script made.") from None
    try:
        return json.loads(content.decode()), file
    except (ValueError, RecursionError):
        raise UserError(f"{file} is not valid JSON: it was damaged after the run wrote it.") from None


def session() -> dict[str, Any]:
    """Package versions, platform, commit, command and time of this process, for the record."""
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {
        "packages": found,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _read_sessions(path: Path) -> list[dict[str, Any]]:
    """What versions.json holds; nothing where it cannot be read, because it is only a record."""
    try:
        data = json.loads(read_regular(path, _MOST_SESSIONS).decode())
    except (OSError, UserError, ValueError, RecursionError):
        return []
    sessions = data if isinstance(data, list) else [data]
    return [item for item in sessions if isinstance(item, dict) and isinstance(item.get("packages", {}), dict)]


def _commit() -> str | None:
    """The commit of the clone this package runs from; None for an installed package, whatever repository it is in."""
    package = Path(__file__).resolve().parents[1]
    top = _git(package, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() / package.name != package:
        return None
    return _git(package, "describe", "--always", "--dirty", "--abbrev=12")


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _check_name(path: Path) -> None:
    """Refuses a name that is not text: in metrics, commands and pictures it could only stand as something else.

    Raises:
        UserError: Naming it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path} is not a name in UTF-8; choose another --run-dir, or rename the run.") from None


def _is_fresh(path: Path) -> bool:
    """Whether a directory is empty, but for what a run killed before it had a config leaves."""
    return all(
        entry.name in (".lock", "versions.json")
        or (entry.name.startswith((".versions.", ".config.")) and entry.suffix == ".tmp")
        or (entry.name == "checkpoints" and entry.is_dir() and not any(entry.iterdir()))
        for entry in path.iterdir()
    )


def _lock(path: Path) -> IO[str]:
    """Holds the directory until the returned file is closed or the process ends, however it ends."""
    file = os.fdopen(open_regular(path / ".lock", os.O_RDWR | os.O_CREAT), "a")
    try:
        _flock(file, path)
    except BaseException:
        file.close()
        raise
    return file


def _flock(file: IO[str], path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks of this kind.
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path} is in use by another process; wait for it, or choose another --run-dir.") from None
    except OSError as error:
        error.filename = str(path)
        raise
