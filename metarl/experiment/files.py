"""Files that are never half written: everything goes to a temporary neighbour first and is renamed into place."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

from metarl.experiment.errors import UserError

_TEMPORARY = ".metarl.tmp"
"""How the names of our temporary files end."""

LONGEST_WRITING = 3600.0
"""Seconds: more than any of our files takes to be written."""


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`, or leaves it as it was: at no moment is it partly written.

    What a writer of the same file that was killed has left is removed an hour later.

    Raises:
        OSError: If it cannot be written; the temporary file is gone then.
    """
    temporary = None
    with contextlib.suppress(OSError):
        remove_leftovers(path.parent, re.escape(path.name), LONGEST_WRITING)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            # Without it a power cut after the rename may leave an empty file under the final name.
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            # The person asked for `path`; the temporary name would only puzzle.
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _sync_directory(path: Path) -> None:
    """Brings a rename onto the disk, on file systems that can say so."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def append(path: Path, content: bytes) -> None:
    """Adds to the end of a file and sees it onto the disk.

    Raises:
        OSError: If it cannot, naming `path`; a part may have been written.
    """
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_regular(path: Path, most: int) -> bytes:
    """What a file holds.

    Args:
        path: The file.
        most: Bytes that it can honestly have.

    Raises:
        UserError: If it is no regular file, or larger.
        OSError: If it cannot be read.
    """
    handle = open_regular(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    # In pieces: room for all that is asked for would be made before a byte is read.
    pieces, left = [], most + 1
    with os.fdopen(handle, "rb") as file:
        try:
            while left and (piece := file.read(min(left, 2**20))):
                pieces.append(piece)
                left -= len(piece)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
    content = b"".join(pieces)
    if len(content) > most:
        raise UserError(f"{path} has more than {most:,} bytes, which no run writes: it was damaged or replaced.")
    return content


def open_regular(path: Path, flags: int) -> int:
    """Opens a file of a run, as `os.open`; a pipe in its place is not waited for.

    Raises:
        UserError: If it is no regular file.
        OSError: If it cannot be opened.
    """
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} is not a regular file, which it must be in a run.")
    return handle


def remove_leftovers(folder: Path, names: str, older_than: float = 0.0) -> None:
    """Removes the temporary files that a process which was killed in `write_bytes_atomically` has left.

    Args:
        folder: Where.
        names: Regular expression of the names of the files that were written.
        older_than: Seconds; younger ones stay. Needed where another process may be writing these files now.
    """
    # The middle is what mkstemp draws.
    pattern = re.compile(rf"\.({names})\.[a-z0-9_]{{8}}{re.escape(_TEMPORARY)}")
    for entry in folder.iterdir():
        if pattern.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime >= older_than:
                    entry.unlink()


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, atomically. Numbers that JSON has no word for become null."""
    write_bytes_atomically(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """Readable JSON. Numbers that JSON has no word for become null."""
    return (json.dumps(_plain(content), indent=2, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
