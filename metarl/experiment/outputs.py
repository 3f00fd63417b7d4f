"""Results that a script writes where it is told to: --json, --plot, pictures."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from metarl.experiment.errors import UserError
from metarl.experiment.files import json_bytes, write_bytes_atomically
from metarl.experiment.run_directory import run_of

_pipes: dict[Path, int] = {}
"""Pipes that results are to go into, open from the check on: who reads them would take a close for the end."""


def check_outputs(**paths: Path | None) -> None:
    """Makes sure, before long work, that its results can be written and that nothing is lost by it.

    Args:
        paths: Flag -> where its result is to go; None where the flag was not given.

    Raises:
        UserError: If two are to go to one place, one onto a file of a run, or one where nothing can be written, or a
            picture into a file that says it is something else.
        OSError: If one cannot be written, naming it.
    """
    named: dict[Path, str] = {}
    for flag, path in paths.items():
        if path is None:
            continue
        target = _target(path)
        info = _status(path)
        if flag == "plot" and path.suffix.lower() not in ("", ".png") and (not info or stat.S_ISREG(info.st_mode)):
            raise UserError(f"--plot is {path}; pictures are PNG, so give it a name that ends in .png.")
        if target in named and not (info and stat.S_ISCHR(info.st_mode)):
            raise UserError(f"--{named[target]} and --{flag} both name {path}; each needs a file of its own.")
        named[target] = flag
        try:
            _check(path, target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def write_output(path: Path, content: bytes) -> None:
    """Writes a result: into a device, a pipe or a standard stream, or atomically to the file at the end of all links.

    Raises:
        UserError: As `check_outputs`.
        OSError: If it cannot be written, naming `path`.
    """
    target = _target(path)
    info = _status(path)
    stream = _standard_stream(info)
    if stream is None and (info is None or stat.S_ISREG(info.st_mode)):
        write_bytes_atomically(target, content)
        return
    try:
        if stream is not None:
            (sys.stdout if stream == 1 else sys.stderr).flush()
            handle = os.dup(stream)
        elif info is not None and stat.S_ISFIFO(info.st_mode):
            handle = _pipes.pop(target, None) or _open_pipe(path)
        else:
            handle = os.open(path, os.O_WRONLY | os.O_NOCTTY)
        with open(handle, "wb") as file:
            file.write(content)
    except OSError as error:
        error.filename = str(path)
        raise


def write_json_output(path: Path, content: Any) -> None:
    """Writes a result as JSON; see `write_output`."""
    write_output(path, json_bytes(content))


def _target(path: Path) -> Path:
    """The file at the end of all links.

    Raises:
        UserError: If it is one that a run needs.
    """
    target = Path(os.path.realpath(path))
    run = run_of(target)
    if run is not None:
        if target.exists():
            raise UserError(f"{path} is a file of the run {run}, which would be destroyed; name another one.")
        raise UserError(f"{path} has the name of a file of the run {run}; name another one.")
    return target


def _status(path: Path) -> os.stat_result | None:
    """What is there, behind all links; None for nothing."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path)
    return None


def _check(path: Path, target: Path) -> None:
    info = _status(path)
    if _standard_stream(info) is not None:
        return
    if info is None or stat.S_ISREG(info.st_mode):
        with tempfile.TemporaryFile(dir=target.parent):
            return
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISFIFO(info.st_mode):
        _pipes[target] = _open_pipe(path)
    elif not stat.S_ISCHR(info.st_mode):
        raise UserError(f"{path} is a disk or a socket; name a file.")
    elif not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _standard_stream(info: os.stat_result | None) -> int | None:
    """The standard stream that this is, under whatever name: replacing its file would lose what else goes there."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if info is not None and os.path.samestat(info, os.fstat(number)):
                return number
    return None


def _open_pipe(path: Path) -> int:
    """Opens a pipe for writing, if somebody has opened it for reading."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise UserError(f"{path} is a pipe that nobody reads; start its reader first, or name a file.") from None
    os.set_blocking(handle, True)
    return handle
