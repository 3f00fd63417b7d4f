"""scikit-learn's handwritten digits: the smallest real data, for trying things out."""

from __future__ import annotations

import numpy as np

from metarl.fewshot.data.images import ImageClasses

_TRAIN_DIGITS, _TEST_DIGITS = range(5), range(5, 10)
_HELD_OUT = 0.25


def load_digits() -> ImageClasses:
    """1797 images of 8 x 8: digits 0 to 4 for training, 5 to 9 for testing.

    Validation has other images of the digits 0 to 4: the last quarter of each, as classes of their own. The last,
    because neighbours in this data come from one writer.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise ImportError(
            "The digits come with scikit-learn, which is not installed: pip install 'metarl-toolkit[digits]'."
        ) from None
    values, digits = (np.asarray(part) for part in datasets.load_digits(return_X_y=True))
    # Values run from 0 to 16.
    images = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    by_digit = [images[digits == digit] for digit in range(10)]
    kept = [len(by_digit[digit]) - round(_HELD_OUT * len(by_digit[digit])) for digit in _TRAIN_DIGITS]
    classes = {
        "train": [by_digit[digit][: kept[digit]] for digit in _TRAIN_DIGITS],
        "validation": [by_digit[digit][kept[digit] :] for digit in _TRAIN_DIGITS],
        "test": [by_digit[digit] for digit in _TEST_DIGITS],
    }
    in_order = [*classes["train"], *classes["validation"], *classes["test"]]
    labels = [*map(str, _TRAIN_DIGITS), *(f"{digit} (held out)" for digit in _TRAIN_DIGITS), *map(str, _TEST_DIGITS)]
    return ImageClasses(
        name="digits",
        images=np.concatenate(in_order),
        first=np.cumsum([0, *map(len, in_order)], dtype=np.int64),
        labels=tuple(labels),
        splits={"train": np.arange(5), "validation": np.arange(5, 10), "test": np.arange(10, 15)},
    )
