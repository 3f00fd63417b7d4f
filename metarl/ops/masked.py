"""Statistics over valid entries only: whatever stands in padding, NaN included, changes nothing."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(values: Float[Tensor, "task *rows"], valid: Bool[Tensor, "task *rows"]) -> Float[Tensor, " task"]:
    """Mean over each task's valid entries; 0 for a task without any.

    `torch.where` rather than a product with the mask: 0 * NaN is NaN, and so is its gradient.
    """
    total = torch.where(valid, values, 0.0).flatten(1).sum(-1)
    return total / valid.flatten(1).sum(-1).clamp(min=1)


def normalise(
    values: Float[Tensor, "task *rows"], valid: Bool[Tensor, "task *rows"], eps: float = 1e-8
) -> Float[Tensor, "task *rows"]:
    """Shifts and scales each task's valid entries to mean 0 and standard deviation 1; padding becomes 0.

    Args:
        values: Entries, e.g. advantages.
        valid: Which of them count.
        eps: Added to the standard deviation, so that a task whose entries are all equal gets zeros rather than a
            division by zero.
    """
    shape = (-1, *[1] * (values.ndim - 1))
    centred = torch.where(valid, values - masked_mean(values, valid).reshape(shape), 0.0)
    std = masked_mean(centred.square(), valid).sqrt().reshape(shape)
    return centred / (std + eps)
