"""Characters of many scripts, rendered from the fonts that matplotlib carries: a stand-in for Omniglot, not downloaded.

As in Omniglot a class is a character and has 20 images of 28 x 28, bright on dark. What varies within a class is the
face (sans, serif and monospaced; bold and oblique) and a small affine map; a character always has about the same size,
so that large and small letters of one shape are one class. Being drawn at random, not written by people, they are no
replacement for Omniglot's figures.

Characters: the letters and digits (categories Lu, Ll, Lt, Lo and Nd) of the DejaVu and STIX text faces that have no
decomposition (an accented A is an A) and are in two faces or more. Of those that look alike (the A of Latin, Greek and
Cyrillic) the first keeps the class and gives the images; the others join it and give none. So a class shows one
character, and no chain of small differences can bring distinct characters together, as a transitive union would.

Two characters look alike if any two of their bitmaps do, in whichever faces: cropped, scaled to one size and blurred,
no pixel of the one differs from the other's by `_ALIKE` of full ink or more. A largest difference sees one stroke or
dot more or less, where a mean over all pixels would not.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from metarl.fewshot.data.files import cached, fingerprint
from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.tasks import Split

IMAGES_PER_CLASS = 20
SIZE = 28
"""Images of a class, and height and width of an image."""

_RECIPE = 2
_DEJAVU = [f"Sans{mono}{style}" for mono in ("", "Mono") for style in ("", "-Bold", "-Oblique", "-BoldOblique")]
_DEJAVU += [f"Serif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")]
_FACES = [f"DejaVu{face}" for face in _DEJAVU] + [f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")]
_CATEGORIES = ("Lu", "Ll", "Lt", "Lo", "Nd")
# Ogham's ailm is a plus sign of another thickness than the Canadian one, which the comparison takes for a difference.
_LEFT_OUT = "\u1690"

# Glyphs are rendered at three times their size in the image (at most 22 pixels), which smooths their edges.
_OVERSAMPLING, _RENDERED = 3, 66
# Bitmaps to compare: the longer side, its margin, the blur's radius, and how much one pixel may differ (0 to 1).
_COMPARED, _MARGIN, _BLUR, _ALIKE = 20, 2, 1.0, 0.44
# Bitmaps less correlated than this at half the resolution are not compared further: next to none of them are alike.
_MIN_CORRELATION = 0.8
# Bitmaps compared with all others at once; more take memory and no less time.
_BLOCK = 512

# Ranges of the affine map. Sizes are those of the longer side in pixels; the glyph stays this far from the border.
_ROTATION, _SHEAR, _STRETCH, _SIZES, _SHIFT, _BORDER = math.radians(15), 0.25, 0.15, (15.0, 22.0), 3.0, 1.0
_SPLIT_SEED, _TRAIN, _VALIDATION = 5, 0.64, 0.12


class _Glyph(NamedTuple):
    """A character in a face: `mask` is its ink, cropped."""

    character: str
    face: str
    mask: Image.Image


def load_glyphs(cache_dir: Path | None = None) -> ImageClasses:
    """About a thousand characters, 20 images each; 64 % of the classes for training, 12 % validation, 24 % test.

    Every image is a function of its character, its number within the class and the fonts alone. The classes are built
    in seconds and cached.

    Args:
        cache_dir: Folder of the cache; by default `$XDG_CACHE_HOME/metarl` or `~/.cache/metarl`.
    """
    sizes = [_font_path(face).stat().st_size for face in _FACES]
    made_from = fingerprint(_RECIPE, matplotlib.__version__, sizes, unicodedata.unidata_version)
    return cached(cache_dir, f"glyphs-{made_from}", _build)


def group_characters(glyphs: Mapping[str, Sequence[_Glyph]] | None = None) -> dict[str, list[str]]:
    """The classes: each character that has one, with itself and all that look like it.

    Args:
        glyphs: What `_render_all` gives, if it is there already.
    """
    glyphs = glyphs if glyphs is not None else _render_all()
    alike = _look_alikes([glyph for drawn in glyphs.values() for glyph in drawn])
    groups: dict[str, list[str]] = {}
    for character in glyphs:
        like = next((first for first in groups if first in alike[character]), character)
        groups.setdefault(like, []).append(character)
    return groups


def _build() -> ImageClasses:
    glyphs = _render_all()
    classes = list(group_characters(glyphs))
    images = np.stack([_draw(glyph, motion) for name in classes for glyph, motion in _variants(name, glyphs[name])])
    first = np.arange(len(classes) + 1, dtype=np.int64) * IMAGES_PER_CLASS
    labels = tuple(unicodedata.name(character) for character in classes)
    return ImageClasses("glyphs", images[:, None], first, labels, _split(len(classes)))


def _split(num_classes: int) -> dict[Split, np.ndarray]:
    order = np.random.default_rng(_SPLIT_SEED).permutation(num_classes)
    train = round(_TRAIN * num_classes)
    test = train + round(_VALIDATION * num_classes)
    return {
        "train": np.sort(order[:train]),
        "validation": np.sort(order[train:test]),
        "test": np.sort(order[test:]),
    }


def _font_path(face: str) -> Path:
    return Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")


@functools.cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    # The basic layout: the other one is not in every Pillow, and one character needs none.
    return ImageFont.truetype(_font_path(face), size, layout_engine=ImageFont.Layout.BASIC)


def _render_all() -> dict[str, list[_Glyph]]:
    """Every character, letters first, in every face that has it."""
    # A font's own table says which characters it has; for others Pillow would draw a box.
    tables = {face: FT2Font(_font_path(face)).get_charmap() for face in _FACES}
    characters = sorted({chr(code) for table in tables.values() for code in table})
    # Of two that look alike the first gives its name to both: rather the letter O than the digit 0.
    characters.sort(key=str.isdecimal)
    glyphs: dict[str, list[_Glyph]] = {}
    for character in characters:
        if _is_candidate(character):
            faces = [face for face, table in tables.items() if ord(character) in table]
            masks = [(face, _render(character, face)) for face in faces]
            drawn = [_Glyph(character, face, mask) for face, mask in masks if mask is not None]
            if len(drawn) > 1:
                glyphs[character] = drawn
    _font.cache_clear()
    return glyphs


def _is_candidate(character: str) -> bool:
    decomposes = unicodedata.decomposition(character) != ""
    return unicodedata.category(character) in _CATEGORIES and not decomposes and character not in _LEFT_OUT


def _render(character: str, face: str) -> Image.Image | None:
    """Its ink, about `_RENDERED` pixels on the longer side, or None where it has none."""
    left, top, right, bottom = _font(face, _RENDERED).getbbox(character)
    longer = max(right - left, bottom - top)
    if longer <= 0:
        return None
    # Rounded, because every size is a font of its own to open.
    font = _font(face, max(8, 4 * round(_RENDERED**2 / longer / 4)))
    left, top, right, bottom = font.getbbox(character)
    # One pixel of room for ink beyond the box that the font states.
    canvas = Image.new("L", (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), character, fill=255, font=font)
    box = canvas.getbbox()
    return canvas.crop(box) if box else None


def _look_alikes(glyphs: Sequence[_Glyph]) -> dict[str, set[str]]:
    """For each character those that look like it, in any two faces."""
    looks = np.stack([_comparable(glyph.mask) for glyph in glyphs])
    half = looks.shape[-1] // 2
    coarse = looks.reshape(len(looks), half, 2, half, 2).mean((2, 4)).reshape(len(looks), -1)
    looks = looks.reshape(len(looks), -1)
    centred = coarse - coarse.mean(1, keepdims=True)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    # A character's place, not its code: letters come before digits.
    order = {character: i for i, character in enumerate(dict.fromkeys(glyph.character for glyph in glyphs))}
    places = np.array([order[glyph.character] for glyph in glyphs])
    alike: dict[str, set[str]] = {glyph.character: set() for glyph in glyphs}
    for start in range(0, len(glyphs), _BLOCK):
        rows, columns = np.nonzero(centred[start : start + _BLOCK] @ centred[start:].T > _MIN_CORRELATION)
        pairs = np.stack([rows, columns]) + start
        pairs = pairs[:, places[pairs[0]] < places[pairs[1]]]
        for part in np.array_split(pairs, pairs.shape[1] // 4096 + 1, axis=1):
            differ = np.abs(looks[part[0]] - looks[part[1]]).max(1)
            for row, column in part[:, differ < _ALIKE].T:
                one, other = glyphs[row].character, glyphs[column].character
                alike[one].add(other)
                alike[other].add(one)
    return alike


def _comparable(mask: Image.Image) -> np.ndarray:
    """Ink from 0 to 1 `[height, width]`, brought to one size and blurred."""
    scale = _COMPARED / max(mask.size)
    width, height = (max(1, round(side * scale)) for side in mask.size)
    side = _COMPARED + 2 * _MARGIN
    canvas = Image.new("L", (side, side))
    canvas.paste(mask.resize((width, height), Image.Resampling.BOX), ((side - width) // 2, (side - height) // 2))
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(_BLUR)), dtype=np.float32) / 255


def _variants(character: str, glyphs: Sequence[_Glyph]) -> Iterator[tuple[_Glyph, np.ndarray]]:
    """The glyph and the six numbers from -1 to 1 that make each image of a class; its faces take turns."""
    random = np.random.default_rng([_RECIPE, ord(character)])
    order = random.permutation(len(glyphs))
    motions = random.uniform(-1, 1, (IMAGES_PER_CLASS, 6))
    for number, motion in enumerate(motions):
        yield glyphs[order[number % len(order)]], motion


def _draw(glyph: _Glyph, motion: np.ndarray) -> np.ndarray:
    """An image `[SIZE, SIZE]`, uint8: the glyph turned, sheared, stretched, scaled and shifted, whole in any case."""
    mask = glyph.mask
    turn, shear, stretch, scale, *shift = motion
    cos, sin = math.cos(_ROTATION * turn), math.sin(_ROTATION * turn)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, _SHEAR * shear], [0, 1]])
    matrix = matrix @ np.diag([1 + _STRETCH * stretch, 1 / (1 + _STRETCH * stretch)])
    small, large = _SIZES
    matrix *= (small + (large - small) * (scale + 1) / 2) / max(mask.size)
    # Half of its width and height in the image, and the room there is.
    reach, room = np.abs(matrix) @ np.array(mask.size) / 2, SIZE / 2 - _BORDER
    fit = min(1.0, room / reach.max())
    matrix, reach = matrix * fit, reach * fit
    centre = SIZE / 2 + np.array(shift) * np.minimum(_SHIFT, room - reach)
    # Pillow wants the map back, from the image to the glyph.
    back = np.linalg.inv(matrix * _OVERSAMPLING)
    offset = np.array(mask.size) / 2 - back @ (centre * _OVERSAMPLING)
    side = SIZE * _OVERSAMPLING
    data = (*back[0], offset[0], *back[1], offset[1])
    drawn = mask.transform((side, side), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return np.asarray(drawn.reduce(_OVERSAMPLING))
