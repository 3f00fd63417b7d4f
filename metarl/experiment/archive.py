"""What `torch.save` wrote, read without trust: every byte is checked before torch sees it, and no code is run."""

from __future__ import annotations

import hashlib
import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Tensors of numbers and the dictionary that stands in for their hooks. torch's own list is longer: sparse, nested and
# quantised tensors, ones without data, byte arrays of any size.
_KNOWN = re.compile(r"torch\._utils _rebuild_tensor_v2|torch [A-Z]\w*Storage|collections OrderedDict")
_MEMBERS = re.compile(r"data\.pkl|byteorder|version|data/\d+")
_DEEPEST = 50
_DAMAGED = "it is damaged or cut off"
_FOREIGN = "it holds something other than tensors and plain data, and was not loaded"


def read_archive(content: bytes) -> Any:
    """The object in the bytes of a file by `torch.save`.

    torch itself compares no checksums; here it is given an archive made anew of members whose checksums are right.

    Raises:
        ValueError: If a byte that matters was changed, or it holds anything but tensors and plain data, saying which.
    """
    try:
        members = _members(content)
        operations = list(pickletools.genops(members["data.pkl"]))
    except Exception:
        # zipfile and pickletools raise BadZipFile, NotImplementedError, struct.error, EOFError, KeyError, ...
        raise ValueError(_DAMAGED) from None
    for operation, argument, _ in operations:
        is_name = operation.name.endswith("GLOBAL") or operation.name == "INST"
        if is_name and not (isinstance(argument, str) and _KNOWN.fullmatch(argument)):
            raise ValueError(_FOREIGN)
    rebuilt = io.BytesIO()
    with zipfile.ZipFile(rebuilt, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    rebuilt.seek(0)
    try:
        return torch.load(rebuilt, map_location="cpu", weights_only=True)
    except Exception as error:
        # RuntimeError, UnpicklingError, EOFError, ... depending on what is wrong.
        said = str(error).lower()
        raise ValueError(_FOREIGN if "weights_only" in said or "unsupported" in said else _DAMAGED) from None


def _members(content: bytes) -> dict[str, bytes]:
    """The parts of an archive that hold the object, by name, each with the checksum that the archive says it has."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        names = [info.filename.partition("/")[2] for info in infos]
        # torch compresses nothing: what a small file blows up to cannot be by it. Nor has it two parts of one name.
        whole = sum(info.file_size for info in infos) <= len(content) and len(set(names)) == len(names)
        if not whole or any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise ValueError(_DAMAGED)
        members = {name: archive.read(info) for name, info in zip(names, infos, strict=True)}
    if any(len(data) != info.file_size for data, info in zip(members.values(), infos, strict=True)):
        raise ValueError(_DAMAGED)
    return {name: data for name, data in members.items() if _MEMBERS.fullmatch(name)}


def digest(value: Any, size: float = float("inf")) -> str:
    """SHA-256 over kinds, names, shapes and bits of all that is in a nest of dictionaries, lists, tensors and values.

    Args:
        value: The nest.
        size: Bytes of the file it was read from, which bounds what can honestly be in it.

    Raises:
        ValueError: If it holds anything else, or more than fits into such a file (references make it look larger).
    """
    # Tensors may share memory, which is saved once.
    left = 16 * size + 2**20
    sha = hashlib.sha256()
    for piece in _pieces(value, 0):
        left -= 1 if isinstance(piece, str) else piece.numel() * piece.element_size()
        if left < 0:
            raise ValueError(_DAMAGED)
        sha.update(piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else _bits(piece))
    return sha.hexdigest()


def _pieces(value: Any, depth: int) -> Iterator[str | Tensor]:
    """The nest as a sequence of lines and tensors from which it could be put together again."""
    if depth > _DEEPEST:
        raise ValueError(_DAMAGED)
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}\n"
        yield value
    elif isinstance(value, dict):
        yield f"dict {len(value)}\n"
        for key, item in value.items():
            yield from _pieces(key, depth + 1)
            yield from _pieces(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        yield f"list {len(value)}\n"
        for item in value:
            yield from _pieces(item, depth + 1)
    elif value is None or type(value) in (bool, int, float, str):
        yield f"{type(value).__name__} {value!r}\n"
    else:
        raise ValueError(f"it holds a {type(value).__name__}, and can hold tensors and plain data only")


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
