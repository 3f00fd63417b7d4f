"""What NumPy and torch spell differently, for families whose functions take arrays of both (`envs.family.TakesArrays`).

Results are the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Array = Any
"""A tensor or an array; what comes out is of the kind that went in."""


def concatenate(parts: Sequence[Array]) -> Array:
    """Puts parts `[lane, ...]` side by side along the last axis."""
    return np.concatenate(parts, axis=-1) if isinstance(parts[0], np.ndarray) else torch.cat(list(parts), dim=-1)


def sum_of_squares(values: Array) -> Array:
    """Over the last axis, left to right whatever the number of rows: torch's own sum has an order for each layout."""
    squares = values * values
    total = squares[..., 0]
    for i in range(1, squares.shape[-1]):
        total = total + squares[..., i]
    return total


def norm(values: Array) -> Array:
    """Euclidean length along the last axis."""
    if isinstance(values, np.ndarray):
        return norm(torch.from_numpy(values)).numpy()
    return torch.linalg.vector_norm(values, dim=-1)


def where(condition: Array, values: Array, other: float) -> Array:
    """`values` where the condition holds, `other` elsewhere."""
    return (
        np.where(condition, values, other) if isinstance(values, np.ndarray) else torch.where(condition, values, other)
    )


def never(rows: Array) -> Array:
    """False for every one of the rows."""
    if isinstance(rows, np.ndarray):
        return np.zeros(len(rows), dtype=bool)
    return torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
