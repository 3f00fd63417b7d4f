"""Losses and measures of predictions, one number per task."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def prediction_loss(predictions: Float[Tensor, "task example output"], y: Tensor) -> Float[Tensor, " task"]:
    """Mean cross-entropy of each task's logits with its class numbers, or mean squared error of its regressions.

    Args:
        predictions: Logits, or predicted targets.
        y: Class numbers `[task, example]` (int64), or targets `[task, example, output]`.

    Raises:
        ValueError: If the shapes do not belong together; they would be broadcast otherwise.
    """
    wanted = y.shape if y.is_floating_point() else (*y.shape, *predictions.shape[2:3])
    if predictions.shape != wanted or predictions.ndim != 3:
        raise ValueError(
            f"The network predicts {tuple(predictions.shape)} (task, example, ...) where the tasks have "
            f"{tuple(wanted)}; it must map [example, *input] to [example, output]."
        )
    if y.is_floating_point():
        return (predictions - y).square().flatten(1).mean(1)
    return F.cross_entropy(predictions.flatten(0, 1), y.flatten(), reduction="none").reshape(y.shape).mean(1)


def score(predictions: Float[Tensor, "task example output"], y: Tensor) -> Float[Tensor, " task"]:
    """What a task is judged by: the share of right classes (higher is better), or the mean squared error (lower is).

    Logits that are not finite are not right, whatever the class; an error is not finite then.
    """
    if y.is_floating_point():
        return prediction_loss(predictions, y)
    right = (predictions.argmax(-1) == y) & predictions.isfinite().all(-1)
    return right.to(torch.get_default_dtype()).mean(1)
