"""mini-ImageNet (Vinyals et al. 2016, with the split of Ravi and Larochelle 2017) from a folder or an archive of it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from metarl.fewshot.data.files import FileTree, cached, read_classes
from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.tasks import SPLITS, Split

SIZE = 84
"""Height and width of the images."""

_FOLDERS: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}
_LISTS: dict[Split, str] = {split: f"{folder}.csv" for split, folder in _FOLDERS.items()}
_IMAGE = re.compile(r".*\.(jpe?g|png)", re.IGNORECASE)
_LAYOUTS = (
    "train/<wnid>/*.jpg, val/<wnid>/*.jpg and test/<wnid>/*.jpg, or train.csv, val.csv and test.csv with images/ (or "
    "images.zip); the lists are at https://github.com/twitter-research/meta-learning-lstm in data/miniImagenet, the "
    "images are those of ILSVRC 2012 at https://image-net.org"
)


def load_mini_imagenet(folder: str | Path, cache_dir: Path | None = None) -> ImageClasses:
    """100 classes (64 for training, 16 validation, 20 test), 600 images of 3 x 84 x 84 each, in red, green and blue.

    An image that is not square is squeezed to one, as is usual with this data set. The first call reads all images,
    which takes minutes and about 1.3 GB of memory; later ones map the cache.

    Args:
        folder: The folder, in one of both usual layouts, or the one above it; or an archive of it.
        cache_dir: Folder of the cache; by default `$XDG_CACHE_HOME/metarl` or `~/.cache/metarl`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If its layout is another one, or a file is damaged.
    """
    _refuse_pickles(Path(folder).expanduser())
    parts = [*_FOLDERS.values(), *_LISTS.values(), "images"]
    with FileTree.open(folder, parts, f"mini-ImageNet: {_LAYOUTS}") as tree:
        return cached(cache_dir, f"mini-imagenet-{tree.fingerprint()}", lambda: _build(tree), mapped=True)


def _refuse_pickles(folder: Path) -> None:
    inside = [*folder.glob("*.pkl"), *folder.glob("*.pickle"), *folder.glob("*/*.pkl"), *folder.glob("*/*.pickle")]
    pickles = [folder] if folder.suffix in (".pkl", ".pickle") else inside
    usable = any((folder / name).exists() for name in ("train", "train.zip", "train.csv"))
    if pickles and not usable:
        raise ValueError(
            f"{pickles[0]} is a pickle and is not read, because loading one can run any code that its maker put into "
            f"it; mini-ImageNet is expected as image files: {_LAYOUTS}."
        )


def _build(tree: FileTree) -> ImageClasses:
    listed = _from_lists(tree) if set(_LISTS.values()) & set(tree.names) else _from_folders(tree)
    splits: dict[str, Split] = {}
    for split in SPLITS:
        if not listed[split]:
            raise ValueError(f"{tree.root} has no {_FOLDERS[split]} images of mini-ImageNet; expected are {_LAYOUTS}.")
        for label in listed[split]:
            if splits.setdefault(label, split) != split:
                raise ValueError(f"{tree.root} has the class {label} both for {splits[label]} and for {split}.")
    files = {label: names for split in SPLITS for label, names in listed[split].items()}
    return read_classes(tree, "mini-imagenet", files, splits, mode="RGB", size=SIZE)


def _from_folders(tree: FileTree) -> Mapping[Split, dict[str, list[str]]]:
    """For each split, the image files of each class by the folders they are in."""
    splits: dict[str, Split] = {folder: split for split, folder in _FOLDERS.items()}
    listed: dict[Split, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for name in tree.names:
        parts = name.split("/")
        if len(parts) == 3 and parts[0] in splits and _IMAGE.fullmatch(name):
            listed[splits[parts[0]]].setdefault(parts[1], []).append(name)
    return listed


def _from_lists(tree: FileTree) -> Mapping[Split, dict[str, list[str]]]:
    """For each split, the image files of each class by its list."""
    images = {PurePosixPath(name).name: name for name in tree.names if name.startswith("images/")}
    listed: dict[Split, dict[str, list[str]]] = {split: {} for split in SPLITS}
    used: set[str] = set()
    for split, name in _LISTS.items():
        if name not in tree.names:
            raise ValueError(f"{tree.root} lacks {name}; expected are {_LAYOUTS}.")
        for line, row in _rows(tree, name):
            said = f"{tree.describe(name)}, line {line}, lists {','.join(row)[:100]}"
            if len(row) != 2 or row[0] not in images:
                raise ValueError(f"{said}, which is not among the images.")
            if row[0] in used:
                raise ValueError(f"{said}, which is listed before.")
            used.add(row[0])
            listed[split].setdefault(row[1], []).append(images[row[0]])
    return listed


def _rows(tree: FileTree, name: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a list that are not empty, with their line numbers."""
    rows = csv.reader(io.StringIO(tree.read(name).decode(errors="replace")), strict=True)
    try:
        if next(rows, None) != ["filename", "label"]:
            raise ValueError(f"{tree.describe(name)} does not begin with the line filename,label.")
        yield from ((rows.line_num, row) for row in rows if row)
    except csv.Error as error:
        raise ValueError(f"{tree.describe(name)}, line {rows.line_num}, is not filename,label: {error}.") from None
