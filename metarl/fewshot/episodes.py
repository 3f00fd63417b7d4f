"""N-way K-shot tasks drawn from images by class (Vinyals et al. 2016, section 4.1; Lake et al. 2015)."""

from __future__ import annotations

from typing import final

import numpy as np
import torch

from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.tasks import SPLITS, Examples, Split, Tasks


@final
class Episodes:
    """Classification tasks: `ways` classes, `shots` images of each to learn from and `queries` to be judged on.

    Support and query share no image. Both come in rounds: every `ways` consecutive examples hold each class once, in a
    random order. A class's number in the task is random as well.

    Args:
        data: The images.
        ways: Classes of a task.
        shots: Support images of a class.
        queries: Query images of a class.

    Raises:
        ValueError: If a split has too few classes, or a class too few images.
    """

    is_classification = True

    def __init__(self, data: ImageClasses, ways: int, shots: int, queries: int) -> None:
        self.data, self.ways, self.shots, self.queries = data, ways, shots, queries
        for split in SPLITS:
            classes = data.splits[split]
            if len(classes) * data.rotations < ways:
                raise ValueError(
                    f"{data.name} has {len(classes) * data.rotations} classes in its {split} split, and a task needs "
                    f"{ways}."
                )
            fewest = int((data.first[classes + 1] - data.first[classes]).min())
            if fewest < shots + queries:
                raise ValueError(
                    f"{data.name} has a class of {fewest} images in its {split} split, and a task needs {shots} shots "
                    f"and {queries} queries of each."
                )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(channel, height, width)`."""
        return tuple(self.data.images.shape[1:])

    @property
    def num_outputs(self) -> int:
        """Classes of a task."""
        return self.ways

    @property
    def fingerprint(self) -> str:
        """Of the images and of their sorting into classes and splits."""
        return self.data.fingerprint

    @property
    def num_examples(self) -> int:
        """Images of a task."""
        return self.ways * (self.shots + self.queries)

    def sample(self, num_tasks: int, split: Split, seed: int, start: int = 0) -> Tasks:
        """See `TaskSource.sample`. Inputs are float32 in [0, 1]."""
        images, labels = zip(*(self._task(split, seed, start + i) for i in range(num_tasks)), strict=True)
        x = torch.from_numpy(np.stack(images)).float() / 255
        y = torch.from_numpy(np.stack(labels))
        num_support = self.ways * self.shots
        return Tasks(Examples(x[:, :num_support], y[:, :num_support]), Examples(x[:, num_support:], y[:, num_support:]))

    def _task(self, split: Split, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Images `[example, channel, height, width]` and class numbers `[example]`, support first."""
        rng = np.random.default_rng((SPLITS.index(split), seed, index))
        data, rounds = self.data, self.shots + self.queries
        classes = data.splits[split]
        # With rotations, entry c * rotations + r is class c turned r times.
        drawn = rng.choice(len(classes) * data.rotations, self.ways, replace=False)
        images = np.empty((rounds, self.ways, *data.images.shape[1:]), np.uint8)
        labels = np.stack([rng.permutation(self.ways) for _ in range(rounds)])
        for label, (entry, turns) in enumerate(zip(drawn // data.rotations, drawn % data.rotations, strict=True)):
            first, end = data.first[classes[entry] : classes[entry] + 2]
            chosen = data.images[first + rng.choice(end - first, rounds, replace=False)]
            images[labels == label] = np.rot90(chosen, turns, axes=(-2, -1))
        return images.reshape(-1, *images.shape[2:]), labels.reshape(-1).astype(np.int64)
