"""Images by class, the form every image data set is brought into."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from metarl.fewshot.tasks import Split

_SAMPLED = 256
"""Images that enter the fingerprint: a data set may be larger than memory."""


@dataclass(frozen=True)
class ImageClasses:
    """A data set for few-shot classification: images sorted by class, and classes sorted into splits.

    Attributes:
        name: Name of the data set.
        images: uint8 `[image, channel, height, width]` (possibly a memory map), all images of a class together; what is
            drawn is bright on dark ground.
        first: int64 `[class + 1]`: class c is `images[first[c]:first[c + 1]]`.
        labels: What each class is called, for figures.
        splits: Class numbers of each split. No class is in two of them.
        rotations: Into how many classes each is made by turning its images by 0, 90, 180 and 270 degrees: 1 or 4.

    Raises:
        ValueError: If these do not belong together.
    """

    name: str
    images: np.ndarray
    first: np.ndarray
    labels: tuple[str, ...]
    splits: Mapping[Split, np.ndarray]
    rotations: int = 1

    @property
    def fingerprint(self) -> str:
        """A hash of the classes, the splits and some of the images: two data sets that share it give the same tasks."""
        shown = self.images[:: max(1, len(self.images) // _SAMPLED)]
        parts = [self.first, *(self.splits[split] for split in sorted(self.splits)), shown]
        digest = hashlib.sha256(repr((self.labels, self.images.shape, self.rotations)).encode())
        for part in parts:
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:16]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(f"{self.name}: images must be uint8 [image, channel, height, width].")
        first, classes = self.first, len(self.first) - 1
        if classes < 1 or first[0] != 0 or first[-1] != len(self.images) or (np.diff(first) < 0).any():
            raise ValueError(f"{self.name}: first must rise from 0 to the {len(self.images)} images, class by class.")
        members = np.concatenate([self.splits[split] for split in self.splits])
        if not np.isin(members, np.arange(classes)).all():
            raise ValueError(f"{self.name}: a split names a class that is not among the {classes}.")
        if len(np.unique(members)) != len(members):
            raise ValueError(f"{self.name}: a class is in two splits; what is tested must never have been trained on.")
