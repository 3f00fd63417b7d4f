"""Published few-shot results, to stand beside ours. Accuracies in per cent, errors as mean squared errors."""

from __future__ import annotations

from dataclasses import dataclass

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
