"""Valid entries only: whatever stands in padding, NaN included, changes nothing."""

from __future__ import annotations

from collections.abc import Callable

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


def valid_first(valid: Bool[Tensor, "task entry"], num: int) -> Callable[[Tensor], Tensor]:
    """A function that takes `num` entries of each task of a tensor `[task, entry, ...]`: valid ones first, in order.

    Args:
        valid: Which entries count.
        num: How many to take; where a task has fewer valid ones, others follow.
    """
    # A stable sort of "is padding" keeps the order of the rest.
    order = torch.argsort((~valid).to(torch.uint8), dim=1, stable=True)[:, :num]
    task = torch.arange(valid.shape[0], device=valid.device).unsqueeze(-1)
    return lambda value: value[task, order]
