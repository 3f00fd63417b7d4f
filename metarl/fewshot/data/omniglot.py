"""Omniglot (Lake, Salakhutdinov and Tenenbaum 2015) from the folder or the archives it is distributed in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from metarl.fewshot.data.files import FileTree, cached, read_classes
from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.tasks import SPLITS, Split

SIZE = 28
"""Height and width of the images."""

_BACKGROUND, _EVALUATION = "images_background", "images_evaluation"
_IMAGE = re.compile(rf"({_BACKGROUND}|{_EVALUATION})/([^/]+/character\d+)/[^/]+\.png", re.IGNORECASE)
_LISTS: dict[Split, str] = {
    "train": "splits/vinyals/train.txt",
    "validation": "splits/vinyals/val.txt",
    "test": "splits/vinyals/test.txt",
}
_EXPECTED = (
    f"{_BACKGROUND}/<Alphabet>/characterNN/*.png and {_EVALUATION}/<Alphabet>/characterNN/*.png, or both as .zip, from "
    "https://github.com/brendenlake/omniglot/tree/master/python"
)
# As in the published lists: 1028 characters to learn from, 172 to choose by, and the other 423 to test on.
_VINYALS_TRAIN, _VINYALS_VALIDATION = 1200, 172
# Of the background alphabets; 5 of the 30.
_LAKE_HELD_OUT = 6
_SEED = 5


def load_omniglot(
    folder: str | Path, split: Literal["vinyals", "lake"] = "vinyals", cache_dir: Path | None = None
) -> ImageClasses:
    """1623 characters, 20 images of 28 x 28 each, bright on dark; turned by 90 degrees each counts as four classes.

    Splits:
        vinyals: Those of the published lists where the folder has them as `splits/vinyals/{train,val,test}.txt`;
            otherwise 1200 characters regardless of alphabet, drawn with a fixed seed, for training (172 of these for
            validation) and the others for testing.
        lake: The evaluation alphabets are for testing, the background ones for training, every sixth of these, drawn
            with a fixed seed, for validation.

    Args:
        folder: The folder with both parts, unpacked or as archives, or the one above it; or an archive of it.
        split: Which split.
        cache_dir: Folder of the cache; by default `$XDG_CACHE_HOME/metarl` or `~/.cache/metarl`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If its layout is another one, or a file is damaged.
    """
    with FileTree.open(folder, (_BACKGROUND, _EVALUATION, "splits"), f"Omniglot: {_EXPECTED}") as tree:
        return cached(cache_dir, f"omniglot-{split}-{tree.fingerprint()}", lambda: _build(tree, split))


def _build(tree: FileTree, split: Literal["vinyals", "lake"]) -> ImageClasses:
    parts: dict[str, str] = {}
    files: dict[str, list[str]] = {}
    for name in tree.names:
        if found := _IMAGE.fullmatch(name):
            part, character = found.groups()
            if parts.setdefault(character, part) != part:
                raise ValueError(
                    f"{tree.root} has {character} in both {_BACKGROUND} and {_EVALUATION}, which share no alphabet; "
                    f"expected are {_EXPECTED}."
                )
            files.setdefault(character, []).append(name)
    for part in (_BACKGROUND, _EVALUATION):
        if part not in parts.values():
            raise ValueError(f"{tree.root} has no images of Omniglot in {part}; expected are {_EXPECTED}.")
    splits = _lake(parts) if split == "lake" else _published(tree, list(parts)) or _vinyals(tree, list(parts))
    name = f"omniglot ({split})"
    return read_classes(tree, name, files, splits, mode="L", size=SIZE, dark_on_light=True, rotations=4)


def _lake(parts: Mapping[str, str]) -> dict[str, Split]:
    """The split of each character, by the part it is in and its alphabet."""
    alphabets = sorted({_alphabet(character) for character, part in parts.items() if part == _BACKGROUND})
    order = np.random.default_rng(_SEED).permutation(alphabets)
    held_out = set(order[: -(-len(alphabets) // _LAKE_HELD_OUT)].tolist())

    def split_of(character: str, part: str) -> Split:
        if part == _EVALUATION:
            return "test"
        return "validation" if _alphabet(character) in held_out else "train"

    return {character: split_of(character, part) for character, part in parts.items()}


def _alphabet(character: str) -> str:
    return character.split("/")[0]


def _vinyals(tree: FileTree, characters: Sequence[str]) -> dict[str, Split]:
    """The split of each character, drawn."""
    if len(characters) <= _VINYALS_TRAIN:
        raise ValueError(
            f"{tree.root} has {len(characters)} characters, and the Vinyals split of Omniglot takes {_VINYALS_TRAIN} "
            "for training alone (there should be 1623); complete the folder or choose the Lake split."
        )
    order = np.random.default_rng(_SEED).permutation(sorted(characters)).tolist()
    train = _VINYALS_TRAIN - _VINYALS_VALIDATION
    chosen: dict[str, Split] = dict.fromkeys(order, "test")
    chosen.update(dict.fromkeys(order[:train], "train"))
    chosen.update(dict.fromkeys(order[train:_VINYALS_TRAIN], "validation"))
    return chosen


def _published(tree: FileTree, characters: Sequence[str]) -> dict[str, Split]:
    """The split of each character by the lists in the folder; empty where there are none."""
    if not any(name in tree.names for name in _LISTS.values()):
        return {}
    known = set(characters)
    chosen: dict[str, Split] = {}
    for split in SPLITS:
        name = _LISTS[split]
        if name not in tree.names:
            raise ValueError(f"{tree.root} lacks {name}: the published Vinyals split is three lists, or none.")
        for line in tree.read(name).decode(errors="replace").split():
            # Alphabet/characterNN/rotNNN: a character and its rotations stay together, so the last part says nothing.
            character = line.rpartition("/")[0]
            if character not in known:
                raise ValueError(f"{tree.describe(name)} lists {line}, of which there are no images in {tree.root}.")
            if chosen.setdefault(character, split) != split:
                raise ValueError(f"{tree.describe(name)} lists {line}, which is in the {chosen[character]} list too.")
    return chosen
