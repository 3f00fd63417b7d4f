"""Published results stand beside results on the published data alone."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.episodes import Episodes
from metarl.fewshot.published import departure, published_scores
from metarl.fewshot.sinusoid import Sinusoid
from metarl.fewshot.tasks import SPLITS, Split

MINI_IMAGENET: dict[Split, str] = {
    "train": """
    n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831 n02101006
    n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408 n02606052 n02687172
    n02747177 n02795169 n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140 n03347037
    n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472
    n04243546 n04251144 n04258138 n04275548 n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742
    n04604644 n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613
    """,
    "validation": """
    n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780
    n03584254 n03770439 n03773504 n03980874 n09256479
    """,
    "test": """
    n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925
    n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480
    """,
}
"""WordNet numbers of the classes of Ravi and Larochelle 2017."""

ALPHABETS = """
    Alphabet_of_the_Magi:20 Angelic:20 Anglo-Saxon_Futhorc:29 Arcadian:26 Armenian:41 Asomtavruli_(Georgian):40
    Atemayar_Qelisayer:26 Atlantean:26 Aurek-Besh:26 Avesta:26 Balinese:24 Bengali:46
    Blackfoot_(Canadian_Aboriginal_Syllabics):14 Braille:26 Burmese_(Myanmar):34 Cyrillic:33 Early_Aramaic:22
    Futurama:26 Ge_ez:26 Glagolitic:45 Grantha:43 Greek:24 Gujarati:48 Gurmukhi:45 Hebrew:22
    Inuktitut_(Canadian_Aboriginal_Syllabics):16 Japanese_(hiragana):52 Japanese_(katakana):47 Kannada:41 Keble:26
    Korean:40 Latin:26 Malay_(Jawi_-_Arabic):40 Malayalam:47 Manipuri:40 Mkhedruli_(Georgian):41 Mongolian:30
    N_Ko:33 Ojibwe_(Canadian_Aboriginal_Syllabics):14 Old_Church_Slavonic_(Cyrillic):45 Oriya:46 Sanskrit:42
    Sylheti:28 Syriac_(Estrangelo):23 Syriac_(Serto):23 Tagalog:17 Tengwar:25 Tibetan:42 Tifinagh:55 ULOG:26
"""
"""The alphabets of Omniglot and how many characters each has."""


def images_of(name: str, labels: dict[Split, list[str]], per_class: int) -> ImageClasses:
    """All black, and one place in memory."""
    counts = [len(labels[split]) for split in SPLITS]
    ends = np.cumsum(counts)
    splits = {s: np.arange(end - n, end) for s, n, end in zip(SPLITS, counts, ends, strict=True)}
    images = np.broadcast_to(np.zeros(1, np.uint8), (ends[-1] * per_class, 1, 4, 4))
    first = np.arange(ends[-1] + 1) * per_class
    return ImageClasses(name, images, first, tuple(label for split in SPLITS for label in labels[split]), splits)


def mini_imagenet() -> ImageClasses:
    return images_of("mini-imagenet", {split: MINI_IMAGENET[split].split() for split in SPLITS}, 600)


def omniglot(split: str = "vinyals") -> ImageClasses:
    pairs = [entry.rsplit(":", 1) for entry in ALPHABETS.split()]
    characters = [f"{alphabet}/character{i:02}" for alphabet, count in pairs for i in range(1, int(count) + 1)]
    drawn = np.random.default_rng(0).permutation(characters).tolist()
    labels: dict[Split, list[str]] = {"train": drawn[:1028], "validation": drawn[1028:1200], "test": drawn[1200:]}
    return images_of(f"omniglot ({split})", labels, 20)


def changed(data: ImageClasses, **changes: Any) -> ImageClasses:
    return dataclasses.replace(data, **changes)


def fewer_images(data: ImageClasses) -> ImageClasses:
    return changed(data, first=np.array([0, *(data.first[1:-1] - 1), data.first[-1]]))


def other_name(data: ImageClasses) -> ImageClasses:
    return changed(data, labels=("my_cat", *data.labels[1:]))


def swapped_splits(data: ImageClasses) -> ImageClasses:
    """Two classes change places."""
    train, test = (data.splits[split].copy() for split in ("train", "test"))
    train[0], test[0] = test[0], train[0]
    return changed(data, splits={**data.splits, "train": train, "test": test})


def moved_class(data: ImageClasses) -> ImageClasses:
    train, test = data.splits["train"], data.splits["test"]
    return changed(data, splits={**data.splits, "train": train[1:], "test": np.array([*test, train[0]])})


@pytest.mark.parametrize(
    ("dataset", "data", "other", "said"),
    [
        ("mini-imagenet", mini_imagenet, fewer_images, "599 to 601 images of a class instead of 600"),
        ("mini-imagenet", mini_imagenet, other_name, "classes of other names"),
        ("mini-imagenet", mini_imagenet, swapped_splits, "classes of other names"),
        ("mini-imagenet", mini_imagenet, moved_class, "63 / 16 / 21 classes .* instead of 64 / 16 / 20"),
        ("omniglot", omniglot, fewer_images, "19 to 21 images of a class instead of 20"),
        ("omniglot", omniglot, other_name, "classes of other names"),
        ("omniglot", omniglot, moved_class, "1027 / 172 / 424 classes .* instead of 1028 / 172 / 423"),
    ],
)
def test_published_numbers_stand_beside_published_data_alone(dataset: str, data: Any, other: Any, said: str) -> None:
    real, setting = data(), "5-way 1-shot"
    scores, nothing = published_scores(dataset, setting, Episodes(real, 5, 1, 3))
    assert len(scores) >= 6 and nothing == "" == departure(real)
    scores, why = published_scores(dataset, setting, Episodes(other(real), 5, 1, 3))
    assert scores == ()
    assert re.search(f"published numbers are left out: .*{said}", why)


def test_omniglot_split_by_alphabets_is_not_what_was_published() -> None:
    scores, why = published_scores("omniglot", "5-way 1-shot", Episodes(omniglot("lake"), 5, 1, 3))
    assert scores == () and "omniglot (lake)" in why


def test_sinusoids_are_what_they_are() -> None:
    scores, why = published_scores("sinusoid", "5-shot", Sinusoid(5, 5))
    assert [score.label for score in scores] == ["MAML", "pretraining"] and why == ""
