"""How much memory an autograd graph keeps."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor


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
        return tensor

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._hooks.__exit__(*exc)
