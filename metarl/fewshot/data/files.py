"""Data sets on disk: a folder and a zip archive read through one interface, and a cache for what was made of them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple

import numpy as np
import PIL
from PIL import Image

from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.tasks import SPLITS, Split

# Raised whenever the same files would give other images, so that no cache made before is used.
_RECIPE = 2
# No picture of these data sets comes near; an archive that claims more is broken, or meant to fill the memory.
_MAX_FILE_BYTES = 64 * 2**20


class _Entry(NamedTuple):
    """Where a file lies: by itself at `path`, or as `member` of the archive at `path`."""

    path: Path
    member: str | None
    size: int
    stamp: int


class FileTree:
    """The files of a data set, by name relative to its top, whether they are unpacked or in a zip archive.

    Nothing is ever unpacked to disk. Close it, or use it in a `with` statement.
    """

    def __init__(self, root: Path, parts: Sequence[str]) -> None:
        self.root = root
        self._archives: dict[Path, zipfile.ZipFile] = {}
        try:
            self._entries = self._list_archive(root, parts) if root.is_file() else self._list_folder(root, parts)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, root: str | Path, parts: Sequence[str], expected: str) -> FileTree:
        """Looks for a data set at a place, or one folder below.

        Args:
            root: A folder, or a zip archive of one.
            parts: What it may have at its top: folders, each possibly packed as `part.zip`, or files. Nothing else is
                looked at.
            expected: Name of the data set, what it looks like and where to get it, for messages.

        Raises:
            FileNotFoundError: If there is nothing at that place.
            ValueError: If there is something else, or an archive is damaged.
        """
        root = Path(root).expanduser()
        if not root.exists():
            raise FileNotFoundError(f"There is no folder {root}; it should be the one of {expected}.")
        if not root.is_dir() and not (root.is_file() and root.suffix.lower() == ".zip"):
            raise ValueError(f"{root} is neither a folder nor a .zip archive; it should be one of {expected}.")
        try:
            tree = cls(root, parts)
        except OSError as error:
            raise ValueError(f"{error.filename or root} cannot be read ({error.strerror or error}).") from None
        if not tree._entries:
            tree.close()
            raise ValueError(f"{root} does not look like {expected}.")
        return tree

    @property
    def names(self) -> list[str]:
        """Names of all files, with "/" between folders, in order."""
        return sorted(self._entries)

    def read(self, name: str) -> bytes:
        """What a file holds.

        Raises:
            ValueError: If it cannot be read, naming it.
        """
        entry = self._entries[name]
        if entry.size > _MAX_FILE_BYTES:
            raise ValueError(f"{self.describe(name)} has {entry.size} bytes, which no file of this data set has.")
        if not entry.path.is_file():
            raise ValueError(f"{self.describe(name)} is no file (any more).")
        try:
            return self._archive(entry.path).read(entry.member) if entry.member else entry.path.read_bytes()
        except Exception as error:
            # zipfile raises BadZipFile, zlib.error, EOFError, RuntimeError (a password) or NotImplementedError.
            raise ValueError(f"{self.describe(name)} cannot be read ({error}); get this file anew.") from None

    def read_image(self, name: str, mode: str, size: int) -> Image.Image:
        """A PNG or JPEG image, converted and scaled to `size` x `size`; its sides need not have been equal.

        Raises:
            ValueError: If it cannot be read, naming it.
        """
        content = self.read(name)
        try:
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                return image.convert(mode).resize((size, size), Image.Resampling.LANCZOS)
        except Exception as error:
            # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError ... depending on the damage.
            reason = "is not a PNG or JPEG image" if isinstance(error, PIL.UnidentifiedImageError) else "is damaged"
            raise ValueError(f"{self.describe(name)} {reason}; get this file anew.") from None

    def describe(self, name: str) -> str:
        """Where a file lies, for messages."""
        entry = self._entries[name]
        return f"{entry.member} in {entry.path}" if entry.member else str(entry.path)

    def fingerprint(self) -> str:
        """A hash of the place and of the names, sizes and times (in an archive: checksums) of all files."""
        files = [(name, self._entries[name].size, self._entries[name].stamp) for name in self.names]
        return fingerprint(str(self.root.resolve()), files)

    def close(self) -> None:
        """Closes the archives."""
        for archive in self._archives.values():
            archive.close()

    def __enter__(self) -> FileTree:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _archive(self, path: Path) -> zipfile.ZipFile:
        if path not in self._archives:
            try:
                self._archives[path] = zipfile.ZipFile(path)
            except OSError:
                raise
            except Exception:
                # Of damage, zipfile also raises NotImplementedError, UnicodeDecodeError, struct.error ...
                raise ValueError(f"{path} is not a zip archive, or damaged; get it anew.") from None
        return self._archives[path]

    def _members(self, path: Path) -> dict[str, _Entry]:
        return {
            info.filename: _Entry(path, info.filename, info.file_size, info.CRC)
            for info in self._archive(path).infolist()
            if not info.is_dir() and not _is_hidden(info.filename)
        }

    def _list_archive(self, root: Path, parts: Sequence[str]) -> dict[str, _Entry]:
        members = self._members(root)
        tops = ["", *sorted({f"{name.split('/')[0]}/" for name in members if "/" in name})]
        below = [{name.removeprefix(top): members[name] for name in members if name.startswith(top)} for top in tops]
        found = [{name: entry for name, entry in names.items() if name.split("/")[0] in parts} for names in below]
        return max(found, key=lambda names: len({name.split("/")[0] for name in names}))

    def _list_folder(self, root: Path, parts: Sequence[str]) -> dict[str, _Entry]:
        tops = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        top = max(tops, key=lambda path: sum(_has_part(path, part) for part in parts))
        entries: dict[str, _Entry] = {}
        for part in parts:
            path, packed = top / part, top / f"{part}.zip"
            if path.is_file():
                entries[part] = _on_disk(path)
            elif path.is_dir():
                entries |= _walk(top, path)
            elif packed.is_file():
                # Packed with the folder itself or only with what is in it.
                members = self._members(packed)
                entries |= {f"{part}/{name.removeprefix(f'{part}/')}": entry for name, entry in members.items()}
        return entries


def _has_part(folder: Path, part: str) -> bool:
    with contextlib.suppress(PermissionError):
        return (folder / part).exists() or (folder / f"{part}.zip").is_file()
    return False


def _walk(top: Path, folder: Path) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        # A link to a folder above would go round for ever.
        seen.add(os.path.realpath(place))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in seen]
        for path in (Path(place, name) for name in names):
            name = path.relative_to(top).as_posix()
            if not _is_hidden(name):
                found[name] = _on_disk(path)
    return found


def _on_disk(path: Path) -> _Entry:
    status = path.stat()
    return _Entry(path, None, status.st_size, status.st_mtime_ns)


def _is_hidden(name: str) -> bool:
    # A Mac packs a second file "._name" with every file, some under __MACOSX.
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def read_classes(
    tree: FileTree,
    name: str,
    files: Mapping[str, Sequence[str]],
    splits: Mapping[str, Split],
    *,
    mode: Literal["L", "RGB"],
    size: int,
    dark_on_light: bool = False,
    rotations: int = 1,
) -> ImageClasses:
    """Reads the images of a data set.

    Args:
        tree: Where they are.
        name: Name of the data set.
        files: The image files of each class, by its label.
        splits: The split of each class, by its label; a class without one is left out.
        mode: Grey or coloured.
        size: Height and width to bring them to.
        dark_on_light: Whether to invert them.
        rotations: Into how many classes each is made by turning.

    Raises:
        ValueError: If an image cannot be read, naming it.
    """
    labels = [label for label in files if label in splits]
    first = np.cumsum([0, *(len(files[label]) for label in labels)], dtype=np.int64)
    # Allocated at once: there may be more than a gigabyte of it.
    images = np.empty((first[-1], len(mode), size, size), np.uint8)
    for number, file in enumerate(file for label in labels for file in files[label]):
        image = np.asarray(tree.read_image(file, mode, size)).reshape(size, size, len(mode)).transpose(2, 0, 1)
        images[number] = 255 - image if dark_on_light else image
    split_of = np.array([splits[label] for label in labels])
    members: dict[Split, np.ndarray] = {split: np.flatnonzero(split_of == split) for split in SPLITS}
    return ImageClasses(name, images, first, tuple(labels), members, rotations)


def fingerprint(*content: object) -> str:
    """A short hash of what a cached data set depends on, to name its file by."""
    described = json.dumps([_RECIPE, PIL.__version__, *content])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def cached(
    cache_dir: Path | None, name: str, build: Callable[[], ImageClasses], *, mapped: bool = False
) -> ImageClasses:
    """A data set out of its cache file, or, where there is none or a damaged one, built and put there.

    A cache that cannot be written is done without.

    Args:
        cache_dir: Folder of the cache; by default `$XDG_CACHE_HOME/metarl` or `~/.cache/metarl`.
        name: Name of its file, with a fingerprint of all it depends on.
        build: Builds it.
        mapped: Whether the images are too many to be read at once: they get a file of their own, mapped into memory.
    """
    load, save = (_load_mapped, _save_mapped) if mapped else (_load, _save)
    try:
        stem = _cache_folder(cache_dir) / name
    except RuntimeError:  # nobody's home
        return build()
    with contextlib.suppress(OSError):
        _remove_leftovers(stem)
    # A damaged file makes zipfile, zlib, json and NumPy raise nearly anything.
    with contextlib.suppress(Exception):
        return load(stem)
    data = build()
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        save(stem, data)
        return load(stem) if mapped else data
    except (OSError, ValueError):
        return data


def _cache_folder(cache_dir: Path | None) -> Path:
    if cache_dir is not None:
        return cache_dir
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "metarl"


def _save(stem: Path, data: ImageClasses) -> None:
    with _replacing(Path(f"{stem}.npz")) as file:
        np.savez(file, images=data.images, index=np.array(_index(data, stem.name)))


def _load(stem: Path) -> ImageClasses:
    # Opened here: given a name, NumPy leaves a damaged file open.
    with open(_regular(f"{stem}.npz"), "rb") as file, np.load(file, allow_pickle=False) as arrays:
        return _assemble(arrays["images"], str(arrays["index"]), stem.name)


def _save_mapped(stem: Path, data: ImageClasses) -> None:
    with _replacing(Path(f"{stem}.npy")) as file:
        np.lib.format.write_array(file, data.images, allow_pickle=False)
    # Last, because it is the index that says the images are there.
    with _replacing(Path(f"{stem}.json")) as file:
        file.write(_index(data, stem.name).encode())


def _load_mapped(stem: Path) -> ImageClasses:
    index = _regular(f"{stem}.json").read_text()
    # Not np.load, which would look for other formats in a damaged file, and leave it open.
    return _assemble(np.lib.format.open_memmap(_regular(f"{stem}.npy"), mode="r"), index, stem.name)


def _regular(path: str) -> Path:
    """The path of a file that can be opened without waiting for anybody, as for a pipe."""
    if not os.path.isfile(path):
        raise FileNotFoundError(path)
    return Path(path)


def _index(data: ImageClasses, name: str) -> str:
    """All but the images, with a checksum of everything."""
    known = {
        "cache": name,
        "name": data.name,
        "first": data.first.tolist(),
        "labels": list(data.labels),
        "splits": {split: data.splits[split].tolist() for split in SPLITS},
        "rotations": data.rotations,
    }
    return json.dumps({**known, "digest": _digest(data.images, known)})


def _digest(images: np.ndarray, known: Mapping[str, object]) -> str:
    digest = hashlib.sha256(json.dumps([images.shape, known]).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def _assemble(images: np.ndarray, index: str, name: str) -> ImageClasses:
    known = json.loads(index)
    digest = known.pop("digest")
    if known["cache"] != name or digest != _digest(images, known):
        raise ValueError("This is not what was put into the cache.")
    splits: dict[Split, np.ndarray] = {split: np.array(known["splits"][split], dtype=np.int64) for split in SPLITS}
    first = np.array(known["first"], dtype=np.int64)
    return ImageClasses(known["name"], images, first, tuple(known["labels"]), splits, known["rotations"])


def _remove_leftovers(stem: Path) -> None:
    """Removes what writers that were killed left behind; an hour is more than any writer takes."""
    for path in stem.parent.glob(f".{stem.name}.*.tmp"):
        if time.time() - path.stat().st_mtime > 3600:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when all went well, and leaves no trace otherwise."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            # Without it a power cut after the rename may leave an empty file under the final name.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
