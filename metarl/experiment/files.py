"""Files that are never half written: everything goes to a temporary neighbour first and is renamed into place."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from metarl.experiment.errors import UserError


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`, or leaves it as it was: at no moment is it partly written.

    Raises:
        OSError: If it cannot be written; the temporary file is gone then.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
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


def check_writable(path: Path) -> None:
    """Makes sure, before long work, that its result can be written to `path`.

    Raises:
        OSError: If it cannot, naming `path`.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, atomically. Numbers that JSON has no word for become null."""
    write_bytes_atomically(path, (json.dumps(_plain(content), indent=2, allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves tensors, numbers, strings and containers of those, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Loads what `save_checkpoint` wrote. Runs no code from the file, whatever is in it.

    Raises:
        UserError: If it is missing, damaged, or holds anything but tensors and plain data.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint {path}.") from None
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises RuntimeError, UnpicklingError, EOFError, OSError ... depending on where the damage is.
        looks_whole = content[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
        if looks_whole and ("weights_only" in str(error).lower() or "unsupported" in str(error).lower()):
            reason = "it holds something other than tensors and plain data, and was not loaded"
        else:
            reason = "it is damaged or cut off"
        raise UserError(
            f"{path} is not a usable checkpoint: {reason}. Look at another one with --checkpoint; to resume, put a "
            "copy of another one in its place."
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint of metarl: it holds a {type(state).__name__}.")
    return state
