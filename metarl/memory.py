"""How much memory an autograd graph keeps, and how much it may."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

KEPT_LAYERS = 8
"""Activations, counted in hidden layers, that one task's graphs keep per inner step and hidden layer: 6.2 were measured
for the metric (2000 x 64, tanh), rounded up for what a pass holds for a moment."""


def graph_budget(device: torch.device) -> int:
    """Bytes that an update's graphs may keep: 1500 MiB on the CPU, half of what is free on a GPU."""
    if device.type != "cuda":
        return 1500 * 2**20
    # What torch has taken from the device but does not use is free to it.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + unused) // 2


@final
class SavedBytes:
    """Context manager that counts the bytes of distinct storages autograd saves inside it, on this thread.

    Attributes:
        total: Bytes so far.
    """

    def __init__(self) -> None:
        self.total = 0
        self._seen: set[int] = set()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        # The tensor itself would hold the graph that holds it: a cycle that Python's collector cannot see.
        return tensor.detach()

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._hooks.__exit__(*exc)
