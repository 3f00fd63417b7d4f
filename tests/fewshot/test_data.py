"""Image data sets: what is rendered, and what is read from folders and archives of the layouts that people have."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import sys
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image

from metarl.fewshot.data.digits import load_digits
from metarl.fewshot.data.files import cached
from metarl.fewshot.data.glyphs import group_characters, load_glyphs
from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.data.mini_imagenet import load_mini_imagenet
from metarl.fewshot.data.omniglot import load_omniglot
from metarl.fewshot.tasks import SPLITS, Split

Files = Mapping[str, bytes]


@pytest.fixture(scope="module")
def glyph_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def glyphs(glyph_cache: Path) -> ImageClasses:
    return load_glyphs(glyph_cache)


def same(one: ImageClasses, other: ImageClasses) -> bool:
    arrays = [(one.images, other.images), (one.first, other.first)]
    arrays += [(one.splits[split], other.splits[split]) for split in SPLITS]
    facts = (one.name, one.labels, one.rotations) == (other.name, other.labels, other.rotations)
    return facts and all(np.array_equal(a, b) for a, b in arrays)


def labels_of(data: ImageClasses, split: Split) -> list[str]:
    return [data.labels[number] for number in data.splits[split]]


# Glyphs


def test_there_are_a_thousand_glyphs_of_twenty_images(glyphs: ImageClasses) -> None:
    classes = len(glyphs.labels)
    assert classes >= 1000 and len(set(glyphs.labels)) == classes
    assert glyphs.images.shape == (20 * classes, 1, 28, 28) and glyphs.images.dtype == np.uint8
    assert np.array_equal(glyphs.first, np.arange(classes + 1) * 20)
    shares = [len(glyphs.splits[split]) / classes for split in SPLITS]
    assert shares == pytest.approx([0.64, 0.12, 0.24], abs=0.001)
    assert sorted(np.concatenate([glyphs.splits[split] for split in SPLITS])) == list(range(classes))


def test_every_glyph_is_bright_on_dark_and_whole(glyphs: ImageClasses) -> None:
    images = glyphs.images[:, 0]
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    assert border.max() == 0
    ink = images.reshape(len(images), -1) > 127
    assert ink.sum(1).min() >= 5 and ink.mean(1).max() < 0.6


def test_images_of_a_class_differ(glyphs: ImageClasses) -> None:
    images = glyphs.images.reshape(-1, 20, 28 * 28)
    assert all(len({image.tobytes() for image in of_class}) == 20 for of_class in images)


def test_a_damaged_glyph_cache_is_rebuilt_to_the_same_images(
    glyphs: ImageClasses, glyph_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = glyph_cache.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    assert same(load_glyphs(glyph_cache), glyphs)
    monkeypatch.setattr("metarl.fewshot.data.glyphs._build", lambda: pytest.fail("the cache is not used"))
    assert same(load_glyphs(glyph_cache), glyphs)


def test_letters_that_look_alike_are_one_class(glyphs: ImageClasses) -> None:
    groups = group_characters()
    assert tuple(unicodedata.name(character) for character in groups) == glyphs.labels
    # Latin, Greek and Cyrillic; large and small letters of one shape.
    assert {"A", "\u0391", "\u0410"} <= set(groups["A"])
    assert {"O", "o", "\u039f", "\u03bf", "\u041e", "\u043e"} <= set(groups["O"])
    for first, other in ("AB", "bd", "pq", "MW", "EF", "\u0414\u0416", "\u05d0\u05d1"):
        assert not any({first, other} <= set(group) for group in groups.values())


def silhouette(character: str) -> np.ndarray | None:
    """Its ink in DejaVu Sans by matplotlib's own renderer, cropped and brought to 24 pixels; None where it has none."""
    font = FT2Font(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")))
    if ord(character) not in font.get_charmap():
        return None
    font.set_size(72, 72)
    font.set_text(character, 0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = np.asarray(font.get_image()) > 127
    rows, columns = np.nonzero(ink)
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = (max(1, round(24 * side / max(ink.shape))) for side in ink.shape)
    picked = ink[np.arange(height) * ink.shape[0] // height][:, np.arange(width) * ink.shape[1] // width]
    top, left = (24 - height) // 2, (24 - width) // 2
    return np.pad(picked, ((top, 24 - height - top), (left, 24 - width - left)))


def nearly_identical(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of silhouettes `[a, 24, 24]` and `[b, 24, 24]`, which pairs have about one shape and differ by lines at most."""
    flat, other_flat = (drawn.reshape(len(drawn), -1).astype(np.float32) for drawn in (one, other))
    both = flat @ other_flat.T
    rows, columns = np.nonzero(both / (flat.sum(1)[:, None] + other_flat.sum(1)[None] - both) > 0.85)
    differ = one[rows] ^ other[columns]
    squares = differ[:, 1:, 1:] & differ[:, 1:, :-1] & differ[:, :-1, 1:] & differ[:, :-1, :-1]
    thin = ~squares.any((1, 2))
    return np.stack([rows[thin], columns[thin]], axis=1)


def test_letters_and_digits_that_look_alike_are_one_class(glyphs: ImageClasses) -> None:
    """And it is called by the letter."""
    groups = group_characters()
    assert "0" in groups["O"] and "1" not in groups and "5" not in groups
    assert "DIGIT ZERO" not in glyphs.labels


def test_nothing_in_one_split_looks_like_something_in_another(glyphs: ImageClasses) -> None:
    def silhouettes(labels: list[str]) -> tuple[list[str], np.ndarray]:
        drawn = {label: silhouette(unicodedata.lookup(label)) for label in labels}
        there = {label: bitmap for label, bitmap in drawn.items() if bitmap is not None}
        return list(there), np.stack(list(there.values()))

    # It finds what it should: one shape in two scripts, but not two letters that differ by a dot.
    _, letters = silhouettes([unicodedata.name(character) for character in "A\u0391O\u041e\u062c\u062dH"])
    assert nearly_identical(letters, letters).tolist() == [
        [a, b] for a in range(7) for b in range(7) if a == b or {a, b} in ({0, 1}, {2, 3})
    ]
    splits = [silhouettes(labels_of(glyphs, split)) for split in SPLITS]
    assert len(splits[2][0]) > 200
    for (names, drawn), (other_names, other_drawn) in itertools.combinations(splits, 2):
        alike = [(names[a], other_names[b]) for a, b in nearly_identical(drawn, other_drawn)]
        assert not alike


def test_pixels_do_not_solve_the_glyphs(glyphs: ImageClasses) -> None:
    random, right = np.random.default_rng(0), []
    images = glyphs.images.reshape(-1, 20, 28 * 28).astype(np.float32)
    for _ in range(300):
        classes = random.choice(glyphs.splits["test"], 5, replace=False)
        support, query = images[classes, 0], images[classes, random.integers(1, 20)]
        nearest = np.square(query[:, None] - support).sum(-1).argmin(1)
        right.append((nearest == np.arange(5)).mean())
    assert 0.3 < np.mean(right) < 0.6


# The cache


def tiny(value: int = 7) -> ImageClasses:
    images = np.full((6, 1, 2, 2), value, np.uint8)
    splits: dict[Split, np.ndarray] = {"train": np.array([0]), "validation": np.array([2]), "test": np.array([1])}
    return ImageClasses("tiny", images, np.array([0, 2, 4, 6]), ("a", "b", "c"), splits, 4)


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_cached_comes_back_as_it_was(tmp_path: Path, mapped: bool) -> None:
    built = cached(tmp_path / "new", "tiny", tiny, mapped=mapped)
    again = cached(tmp_path / "new", "tiny", lambda: pytest.fail("the cache is not used"), mapped=mapped)
    assert same(built, tiny()) and same(again, tiny())
    assert isinstance(again.images, np.memmap) == mapped
    assert not list((tmp_path / "new").glob(".*"))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"{}", b"\x93NUMPY"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, mapped: bool, damage: bytes) -> None:
    cached(tmp_path, "tiny", tiny, mapped=mapped)
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        (tmp_path / name).write_bytes(damage)
        assert same(cached(tmp_path, "tiny", lambda: tiny(8), mapped=mapped), tiny(8))
    assert same(cached(tmp_path, "tiny", lambda: pytest.fail("not mended"), mapped=mapped), tiny(8))
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("mapped", [False, True])
def test_no_damage_to_a_cache_is_loaded(tmp_path: Path, mapped: bool) -> None:
    """Every byte in turn with some bits flipped, and every length cut off: the same data come back, built anew."""
    cached(tmp_path, "tiny", tiny, mapped=mapped)
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    built: list[int] = []

    def build() -> ImageClasses:
        built.append(1)
        return tiny()

    for path, content in whole.items():
        positions = range(0, len(content), 7)
        damaged = [content[:i] + bytes([content[i] ^ (1 << i % 8)]) + content[i + 1 :] for i in positions]
        damaged += [content[:i] for i in positions] + [bytes(len(content))]
        for number, bad in enumerate(damaged):
            path.write_bytes(bad)
            assert same(cached(tmp_path, "tiny", build, mapped=mapped), tiny()), (path, number)
            # A letter of a zip's date may be another one without harm.
            assert path.read_bytes() == content or not mapped
    assert len(built) > 0.8 * sum(len(content) // 7 for content in whole.values())


@pytest.mark.parametrize("mapped", [False, True])
def test_a_cache_of_other_data_is_not_taken_for_this_one(tmp_path: Path, mapped: bool) -> None:
    cached(tmp_path, "other", lambda: tiny(9), mapped=mapped)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_stem("tiny"))
    assert same(cached(tmp_path, "tiny", tiny, mapped=mapped), tiny())


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_no_file_in_the_cache_is_done_without(tmp_path: Path, mapped: bool) -> None:
    for ending in ("npz", "npy", "json"):
        os.mkfifo(tmp_path / f"tiny.{ending}")
    assert same(cached(tmp_path, "tiny", tiny, mapped=mapped), tiny())


def test_what_killed_writers_left_in_the_cache_is_removed(tmp_path: Path) -> None:
    old, new, others = (tmp_path / f".{name}.tmp" for name in ("tiny.npz.aaa", "tiny.npz.bbb", "large.npy.ccc"))
    for path in (old, new, others):
        path.touch()
    for path in (old, others):
        os.utime(path, (0, 0))
    cached(tmp_path, "tiny", tiny)
    assert not old.exists() and new.exists() and others.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"splits": {"train": np.array([3]), "validation": np.array([2]), "test": np.array([1])}},
            "a split names a class",
        ),
        (
            {"splits": {"train": np.array([-1]), "validation": np.array([2]), "test": np.array([1])}},
            "a split names a c",
        ),
        ({"first": np.array([0, 2, 4, 7])}, "first must rise from 0 to the 6 images"),
        ({"first": np.array([0, 4, 2, 6])}, "first must rise"),
        ({"images": np.zeros((6, 1, 2, 2))}, "images must be uint8"),
    ],
)
def test_image_classes_that_do_not_belong_together_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"tiny: {message}"):
        dataclasses.replace(tiny(), **change)


def test_a_pickle_in_the_cache_is_not_loaded(tmp_path: Path) -> None:
    with open(tmp_path / "tiny.npz", "wb") as file:
        np.savez(file, images=np.array([{}], dtype=object), index=np.array(["{}"], dtype=object))
    assert same(cached(tmp_path, "tiny", tiny), tiny())


@pytest.mark.parametrize("mapped", [False, True])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, mapped: bool) -> None:
    (tmp_path / "file").touch()
    assert same(cached(tmp_path / "file" / "below", "tiny", tiny, mapped=mapped), tiny())


def test_the_cache_is_where_the_desktop_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cached(None, "tiny", tiny)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cached(None, "tiny", tiny)
    assert (tmp_path / "xdg/metarl/tiny.npz").exists() and (tmp_path / "home/.cache/metarl/tiny.npz").exists()


# Digits


def test_digits_are_split_by_digit_and_validation_by_image() -> None:
    pytest.importorskip("sklearn")
    data = load_digits()
    assert data.images.shape == (1797, 1, 8, 8) and data.images.max() == 255 and data.images.min() == 0
    assert labels_of(data, "train") == list("01234") and labels_of(data, "test") == list("56789")
    counts = np.diff(data.first)
    assert counts[5:10] / (counts[:5] + counts[5:10]) == pytest.approx([0.25] * 5, abs=0.005)
    # Published numbers of images per digit.
    assert [*(counts[:5] + counts[5:10]), *counts[10:]] == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_missing_scikit_learn_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'metarl-toolkit\[digits\]'"):
        load_digits()


# Folders and archives


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def unpack(files: Files, folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pack(files: Files, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return archive


def stroke(top: int) -> bytes:
    """A page of Omniglot: black on white, one bit, 105 x 105; a bar in 15 rows."""
    page = np.ones((105, 105), bool)
    page[top : top + 15, 30:75] = False
    return encoded(Image.fromarray(page))


@pytest.fixture(scope="module")
def omniglot() -> Files:
    """Seven alphabets of background and two of evaluation, with two characters of three images each."""
    alphabets = [("background", f"Old_{number}") for number in range(7)]
    alphabets += [("evaluation", f"New_{number}") for number in range(2)]
    return {
        f"images_{part}/{alphabet}/character{character:02}/{row:02}{character:02}_{drawer:02}.png": stroke(
            10 * row + drawer
        )
        for row, (part, alphabet) in enumerate(alphabets)
        for character in (1, 2)
        for drawer in (1, 2, 3)
    }


def test_omniglot_by_lake_keeps_alphabets_apart(omniglot: Files, tmp_path: Path) -> None:
    data = load_omniglot(unpack(omniglot, tmp_path / "data"), "lake", tmp_path / "cache")
    assert data.rotations == 4 and data.images.shape == (54, 1, 28, 28)
    assert np.array_equal(np.diff(data.first), [3] * 18)
    alphabets = {split: {label.split("/")[0] for label in labels_of(data, split)} for split in SPLITS}
    assert alphabets["test"] == {"New_0", "New_1"}
    assert len(alphabets["train"]) == 5 and len(alphabets["validation"]) == 2
    assert not alphabets["train"] & alphabets["validation"]
    assert sum(len(data.splits[split]) for split in SPLITS) == 18


def test_omniglot_is_bright_on_dark_and_upright(omniglot: Files, tmp_path: Path) -> None:
    data = load_omniglot(unpack(omniglot, tmp_path / "data"), "lake", tmp_path / "cache")
    # The first drawing of Old_3: rows 31 to 45, columns 30 to 74 of 105.
    image = data.images[data.first[data.labels.index("Old_3/character01")], 0]
    rows, columns = np.nonzero(image > 127)
    assert image[0, 0] == 0 and image.max() == 255
    assert (rows.min(), rows.max() + 1) == pytest.approx((31 * 28 / 105, 46 * 28 / 105), abs=1)
    assert (columns.min(), columns.max() + 1) == pytest.approx((30 * 28 / 105, 75 * 28 / 105), abs=1)


def as_both_archives(files: Files, folder: Path) -> Path:
    for part in ("background", "evaluation"):
        inside = {name: content for name, content in files.items() if name.startswith(f"images_{part}/")}
        pack(inside | {f"__MACOSX/images_{part}/._x.png": b"no image"}, folder / f"images_{part}.zip")
    return folder


def as_torchvision_has_it(files: Files, folder: Path) -> Path:
    unpack(files, folder / "omniglot-py")
    as_both_archives(files, folder / "omniglot-py")
    return folder


def as_one_archive(files: Files, folder: Path) -> Path:
    return pack({f"omniglot/{name}": content for name, content in files.items()}, folder / "all.zip")


@pytest.mark.parametrize("arrange", [as_both_archives, as_torchvision_has_it, as_one_archive])
def test_omniglot_is_the_same_however_it_is_kept(
    omniglot: Files, tmp_path: Path, arrange: Callable[[Files, Path], Path]
) -> None:
    plain = load_omniglot(unpack(omniglot, tmp_path / "plain"), "lake", tmp_path / "cache")
    assert same(load_omniglot(arrange(omniglot, tmp_path / "other"), "lake", tmp_path / "cache"), plain)


def test_changed_files_are_read_again(omniglot: Files, tmp_path: Path) -> None:
    folder = unpack(omniglot, tmp_path / "data")
    before = load_omniglot(folder, "lake", tmp_path / "cache")
    unpack({next(iter(omniglot)): stroke(80)}, folder)
    after = load_omniglot(folder, "lake", tmp_path / "cache")
    assert (before.images != after.images).any(axis=(1, 2, 3)).sum() == 1


def test_omniglot_by_vinyals_has_1200_characters_to_train_on(tmp_path: Path) -> None:
    page = stroke(40)
    numbered = [(number, "background" if number < 964 else "evaluation") for number in range(1623)]
    files = {
        f"images_{part}/Alphabet_{number // 40}/character{number % 40 + 1:02}/{number:04}_01.png": page
        for number, part in numbered
    }
    data = load_omniglot(as_both_archives(files, tmp_path), cache_dir=tmp_path / "cache")
    assert [len(data.splits[split]) for split in SPLITS] == [1028, 172, 423]
    old = {label for label in data.labels if int(label.split("/")[0].removeprefix("Alphabet_")) < 24}
    assert set(labels_of(data, "test")) & old and set(labels_of(data, "train")) - old


def test_published_lists_of_omniglot_are_followed(omniglot: Files, tmp_path: Path) -> None:
    chosen = {"train": ["Old_1/character01", "New_0/character02"], "val": ["Old_5/character02"]}
    chosen["test"] = ["New_1/character01"]
    turned = {
        f"splits/vinyals/{name}.txt": "".join(f"{c}/rot{turn:03}\n" for c in listed for turn in (0, 90, 180, 270))
        for name, listed in chosen.items()
    }
    lists = {name: text.encode() for name, text in turned.items()}
    data = load_omniglot(unpack({**omniglot, **lists}, tmp_path / "data"), cache_dir=tmp_path / "cache")
    assert [sorted(labels_of(data, split)) for split in SPLITS] == [sorted(listed) for listed in chosen.values()]
    assert len(data.images) == 12

    twice = lists | {"splits/vinyals/val.txt": b"New_1/character01/rot090\n"}
    with pytest.raises(ValueError, match=r"test\.txt lists New_1/character01/rot000, which is in the validation list"):
        load_omniglot(unpack({**omniglot, **twice}, tmp_path / "twice"))
    unknown = lists | {"splits/vinyals/val.txt": b"Klingon/character01/rot090\n"}
    with pytest.raises(ValueError, match=r"val\.txt lists Klingon/character01/rot090, of which there are no images"):
        load_omniglot(unpack({**omniglot, **unknown}, tmp_path / "unknown"))


def test_omniglot_that_is_not_there_says_where_to_get_it(omniglot: Files, tmp_path: Path) -> None:
    source = r"https://github\.com/brendenlake/omniglot"
    with pytest.raises(FileNotFoundError, match=rf"no folder .*nowhere; .*images_background.*{source}"):
        load_omniglot(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"empty does not look like Omniglot: .*{source}"):
        load_omniglot(tmp_path / "empty")
    half = {name: content for name, content in omniglot.items() if "background" in name}
    with pytest.raises(ValueError, match=rf"no images of Omniglot in images_evaluation; .*{source}"):
        load_omniglot(unpack(half, tmp_path / "half"))
    twice = {name.replace("background/Old_3", "evaluation/Old_3"): content for name, content in omniglot.items()}
    with pytest.raises(ValueError, match=r"has Old_3/character0. in both images_background and images_evaluation"):
        load_omniglot(unpack({**omniglot, **twice}, tmp_path / "twice"))
    with pytest.raises(ValueError, match=r"has 18 characters, .* choose the Lake split"):
        load_omniglot(unpack(omniglot, tmp_path / "small"), "vinyals")


@pytest.mark.parametrize("damage", [b"", b"no image", stroke(3)[:60]])
def test_a_broken_image_is_named(omniglot: Files, tmp_path: Path, damage: bytes) -> None:
    name = "images_background/Old_2/character01/0201_02.png"
    folder = unpack({**omniglot, name: damage}, tmp_path / "data")
    with pytest.raises(ValueError, match=r"0201_02\.png is .*; get this file anew"):
        load_omniglot(folder, "lake", tmp_path / "cache")
    archive = pack({**omniglot, name: damage}, tmp_path / "data.zip")
    with pytest.raises(ValueError, match=r"0201_02\.png in .*data\.zip is .*; get this file anew"):
        load_omniglot(archive, "lake", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_broken_archive_is_named(omniglot: Files, tmp_path: Path) -> None:
    archive = as_one_archive(omniglot, tmp_path)
    content = archive.read_bytes()
    archive.write_bytes(content[:-300])
    with pytest.raises(ValueError, match=r"all\.zip is not a zip archive, or damaged"):
        load_omniglot(archive)
    archive.write_bytes(content.replace(omniglot["images_background/Old_2/character01/0201_02.png"], b"\0" * 20))
    with pytest.raises(ValueError, match=r"all\.zip"):
        load_omniglot(archive, "lake", tmp_path / "cache")
    (tmp_path / "plain.txt").touch()
    with pytest.raises(ValueError, match=r"plain\.txt is neither a folder nor a \.zip archive"):
        load_omniglot(tmp_path / "plain.txt")


@pytest.mark.parametrize("name", ["images_background", "images_background/Old_2/character01/0201_02.png"])
def test_what_is_no_file_is_not_waited_for(omniglot: Files, tmp_path: Path, name: str) -> None:
    folder = unpack({n: content for n, content in omniglot.items() if not n.startswith(name)}, tmp_path / "data")
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=r"0201_02\.png is no file|no images of Omniglot in images_background"):
        load_omniglot(folder, "lake")
    with pytest.raises(ValueError, match="neither a folder nor a"):
        load_omniglot(folder / name)


def test_links_in_a_circle_and_to_nothing(omniglot: Files, tmp_path: Path) -> None:
    folder = unpack(omniglot, tmp_path / "data")
    (folder / "images_background/Old_1/again").symlink_to(folder / "images_background")
    assert len(load_omniglot(folder, "lake", tmp_path / "cache").labels) == 18
    (folder / "images_background/Old_1/lost.png").symlink_to(folder / "nowhere")
    with pytest.raises(ValueError, match=r"lost\.png cannot be read \(No such file"):
        load_omniglot(folder, "lake")


COLOURS = {"train": (250, 20, 20), "val": (20, 250, 20), "test": (20, 20, 250)}


@pytest.fixture(scope="module")
def photographs() -> dict[str, bytes]:
    """`split/class/file.jpg` for two classes of each split and three images of each class, wider than high."""
    return {
        f"{split}/n{number}{split}/n{number}{split}{image:04}.jpg": encoded(Image.new("RGB", (120, 90), colour), "JPEG")
        for split, colour in COLOURS.items()
        for number in (1, 2)
        for image in range(3)
    }


def listed(photographs: Files) -> Files:
    """The same in the other layout."""
    files = {f"images/{Path(name).name}": content for name, content in photographs.items()}
    for split in COLOURS:
        names = [Path(name) for name in photographs if name.startswith(split)]
        rows = ["filename,label", *(f"{name.name},{name.parent.name}" for name in names)]
        files[f"{split}.csv"] = "\r\n".join([*rows, ""]).encode()
    return files


def listed_with_images_packed(photographs: Files, folder: Path) -> Path:
    files = listed(photographs)
    pack({name: files[name] for name in files if name.startswith("images/")}, folder / "images.zip")
    return unpack({name: files[name] for name in files if name.endswith(".csv")}, folder)


def one_below(photographs: Files, folder: Path) -> Path:
    unpack(photographs, folder / "mini-imagenet")
    return folder


@pytest.mark.parametrize(
    "arrange",
    [
        unpack,
        one_below,
        lambda photographs, folder: pack(photographs, folder / "all.zip"),
        lambda photographs, folder: unpack(listed(photographs), folder),
        lambda photographs, folder: pack(listed(photographs), folder / "all.zip"),
        listed_with_images_packed,
    ],
)
def test_mini_imagenet_is_the_same_however_it_is_kept(
    photographs: Files, tmp_path: Path, arrange: Callable[[Files, Path], Path]
) -> None:
    place = arrange(photographs, tmp_path / "data")
    for _ in range(2):
        data = load_mini_imagenet(place, tmp_path / "cache")
        assert isinstance(data.images, np.memmap) and not data.images.flags.writeable
        assert data.images.shape == (18, 3, 84, 84) and data.images.dtype == np.uint8 and data.rotations == 1
        assert np.array_equal(np.diff(data.first), [3] * 6)
        for split, folder in zip(SPLITS, COLOURS, strict=True):
            assert labels_of(data, split) == [f"n1{folder}", f"n2{folder}"]
            for number in data.splits[split]:
                of_class = data.images[data.first[number] : data.first[number + 1]]
                assert of_class.mean((0, 2, 3)) == pytest.approx(COLOURS[folder], abs=4)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]


def test_pickles_of_mini_imagenet_are_refused(tmp_path: Path) -> None:
    unpack({"mini-imagenet-cache-train.pkl": b"\x80\x04."}, tmp_path)
    for place in (tmp_path, tmp_path / "mini-imagenet-cache-train.pkl"):
        with pytest.raises(ValueError, match=r"cache-train\.pkl is a pickle .* run any code .*train/<wnid>"):
            load_mini_imagenet(place)


def test_mini_imagenet_that_is_not_there_says_where_to_get_it(photographs: Files, tmp_path: Path) -> None:
    source = r"https://github\.com/twitter-research/meta-learning-lstm.*https://image-net\.org"
    with pytest.raises(FileNotFoundError, match=rf"no folder .*nowhere; .*train/<wnid>.*{source}"):
        load_mini_imagenet(tmp_path / "nowhere")
    without = {name: content for name, content in photographs.items() if not name.startswith("val")}
    with pytest.raises(ValueError, match=rf"no val images of mini-ImageNet; .*{source}"):
        load_mini_imagenet(unpack(without, tmp_path / "without"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "val.csv",
            b"filename,label\r\nlost.jpg,n1val\r\n",
            r"val\.csv, line 2, lists lost\.jpg,n1val, which is not among",
        ),
        ("val.csv", b"lost.jpg,n1val\r\n", r"val\.csv does not begin with the line filename,label"),
        ("val.csv", b"filename,label\r\nn1val0000.jpg,n1train\r\n", r"class n1train both for train and for validation"),
        ("images/n1val0000.jpg", b"no image", r"n1val0000\.jpg is not a PNG or JPEG image"),
        ("val.csv", b"filename,label\r\n" + 2 * b"n1val0000.jpg,n1val\r\n", r"line 3, lists n1val0000\.jpg.* before"),
        ("val.csv", b'filename,label\n"n1val0000.jpg,n1val\n', r"val\.csv, line 2, is not filename,label: unexpected"),
        ("val.csv", b"filename,label\n" + 140_000 * b"x" + b",y", r"val\.csv, line 2, is not .*field larger"),
        ("val.csv", b"filename,label\n" + 130_000 * b"x" + b",y", r"val\.csv, line 2, lists x{100}, which is not"),
        ("val.csv", b"filename,label\nn1val0000.jpg\n", r"line 2, lists n1val0000\.jpg, which is not"),
    ],
)
def test_mini_imagenet_lists_are_checked(
    photographs: Files, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    folder = unpack({**listed(photographs), name: content}, tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        load_mini_imagenet(folder, tmp_path / "cache")
