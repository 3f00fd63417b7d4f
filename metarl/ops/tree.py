"""Parameters as dictionaries of tensors: flattening, task axes, sums."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarl.types import Params

T = TypeVar("T")


def flatten(params: Params) -> tuple[Tensor, Callable[[Tensor], Params]]:
    """Concatenates all entries into one vector; the returned function undoes it (views, same dtype as given to it)."""
    shapes = {name: value.shape for name, value in params.items()}

    def unflatten(vector: Tensor) -> Params:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    return torch.cat([value.reshape(-1) for value in params.values()]), unflatten


def expand_tasks(params: Params, num_tasks: int) -> Params:
    """Adds a leading task axis of views: every task starts from the same parameters."""
    return {name: value.expand(num_tasks, *value.shape) for name, value in params.items()}


def sum_tasks(params: Params) -> Params:
    """Sums over the leading task axis: the transpose of `expand_tasks`."""
    return {name: value.sum(0) for name, value in params.items()}


def add_all(terms: Sequence[Params], scale: float = 1.0) -> Params:
    """`scale` times the sum of several sets of parameters, added in the given order."""
    return {name: scale * functools.reduce(torch.add, (term[name] for term in terms)) for name in terms[0]}


def select_tasks(tree: T, tasks: slice) -> T:
    """The given tasks of every tensor in a tree whose tensors all lead with the task axis."""
    return tree_map(lambda value: value[tasks], tree)


def concatenate_tasks(trees: list[Any]) -> Any:
    """Joins trees along the task axis: the inverse of slicing with `select_tasks`."""
    return tree_map(lambda *values: torch.cat(values), *trees)


def all_finite(params: Params) -> bool:
    """Whether no entry holds NaN or infinity."""
    return all(bool(torch.isfinite(value).all()) for value in params.values())
