"""Published few-shot results, to stand beside ours on the same data. Accuracies in per cent, mean squared errors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.episodes import Episodes
from metarl.fewshot.tasks import SPLITS, Split, TaskSource

_MAML = "Finn, Abbeel and Levine 2017"
_REPTILE = "Nichol, Achiam and Schulman 2018, table 2"
_SNELL = "Snell, Swersky and Zemel 2017"


@dataclass(frozen=True)
class PublishedScores:
    """Published scores of a method.

    Attributes:
        label: The method.
        returns: Scores after 0, 1, ... steps; None where a step was not reported.
        source: Where they stand.
    """

    label: str
    returns: tuple[float | None, ...]
    source: str


def _after(steps: dict[int, float]) -> tuple[float | None, ...]:
    return tuple(steps.get(k) for k in range(max(steps) + 1))


def _single(label: str, value: float, source: str) -> PublishedScores:
    return PublishedScores(label, (value,), source)


_TABLE_1 = f"{_MAML}, table 1"

PUBLISHED: dict[tuple[str, str], tuple[PublishedScores, ...]] = {
    ("sinusoid", "5-shot"): (
        PublishedScores("MAML", _after({1: 0.67, 5: 0.38, 10: 0.35}), f"{_MAML}, table 2"),
        PublishedScores("pretraining", _after({1: 2.41, 5: 2.23, 10: 2.19}), f"{_MAML}, table 2"),
    ),
    ("omniglot", "5-way 1-shot"): (
        PublishedScores("MAML", _after({3: 98.7}), _TABLE_1),
        _single("Reptile, transductive", 97.68, _REPTILE),
        _single("Siamese", 97.3, _TABLE_1),
        _single("Matching", 98.1, _TABLE_1),
        _single("prototypical", 98.8, f"{_SNELL}, table 1"),
        _single("SNAIL", 99.07, "Mishra et al. 2018, table 1"),
    ),
    ("omniglot", "20-way 1-shot"): (
        PublishedScores("MAML", _after({5: 95.8}), _TABLE_1),
        _single("Reptile, transductive", 89.43, _REPTILE),
        _single("Siamese", 88.2, _TABLE_1),
        _single("Matching", 93.8, _TABLE_1),
        _single("prototypical", 96.0, f"{_SNELL}, table 1"),
        _single("SNAIL", 97.64, "Mishra et al. 2018, table 1"),
    ),
    ("mini-imagenet", "5-way 1-shot"): (
        PublishedScores("MAML", _after({10: 48.70}), _TABLE_1),
        _single("Reptile, transductive", 49.97, f"{_REPTILE.replace('table 2', 'table 1')}"),
        _single("Matching", 43.56, _TABLE_1),
        _single("Meta-LSTM", 43.44, _TABLE_1),
        _single("prototypical", 49.42, f"{_SNELL}, table 2"),
        _single("SNAIL", 55.71, "Mishra et al. 2018, table 2"),
    ),
}
"""By (data set, setting); a single value is a method's final one, whatever its number of steps."""


@dataclass(frozen=True)
class _Published:
    """What can be known of a published data set without its images.

    Attributes:
        classes: Number of classes of each split.
        images: Of each class.
        names: First digits of the SHA-256 of the classes' names, sorted, a line each.
        by_split: Whether a name has its split before it (`train/...`), as which classes are in which is published too.
    """

    classes: Mapping[Split, int]
    images: int
    names: str
    by_split: bool


_DATA: dict[str, _Published] = {
    # The lists of Ravi and Larochelle 2017, by WordNet number.
    "mini-imagenet": _Published({"train": 64, "validation": 16, "test": 20}, 600, "0636e462a938b83d", True),
    # The characters of Lake et al. 2015, as Alphabet/characterNN.
    "omniglot (vinyals)": _Published({"train": 1028, "validation": 172, "test": 423}, 20, "2f1d1d148e5ac8e1", False),
}


def departure(data: ImageClasses) -> str:
    """What tells images from those of the published results, in words; empty if nothing does."""
    known = _DATA.get(data.name)
    if known is None:
        return f"{data.name} is another choice of classes"
    found, wanted = (
        " / ".join(str(number_of[split]) for split in SPLITS)
        for number_of in ({split: len(data.splits[split]) for split in SPLITS}, known.classes)
    )
    if found != wanted:
        return f"{found} classes to train, validate and test on instead of {wanted}"
    images = [int(np.diff(data.first)[number]) for split in SPLITS for number in data.splits[split]]
    if {*images} != {known.images}:
        return f"{min(images)} to {max(images)} images of a class instead of {known.images}"
    names = [
        f"{split}/{data.labels[number]}" if known.by_split else data.labels[number]
        for split in SPLITS
        for number in data.splits[split]
    ]
    digest = hashlib.sha256("\n".join(sorted(names)).encode(errors="replace")).hexdigest()
    return "" if digest.startswith(known.names) else "classes of other names"


def published_scores(dataset: str, setting: str, source: TaskSource) -> tuple[tuple[PublishedScores, ...], str]:
    """Published scores that may stand beside scores on these tasks, and why others are left out.

    Args:
        dataset: Name of the data set.
        setting: What a task is: "5-way 1-shot".
        source: The tasks.
    """
    scores = PUBLISHED.get((dataset, setting), ())
    if not scores or not isinstance(source, Episodes):
        return scores, ""
    different = departure(source.data)
    if not different:
        return scores, ""
    return (), f"published numbers are left out: these are other data than those of {dataset} there ({different})"
