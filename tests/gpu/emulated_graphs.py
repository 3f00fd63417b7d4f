"""CUDA graphs of the emulated device: operations recorded without effect, and repeated on the memory they saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from emulated_streams import current, ledger
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


def tensors_in(tree: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


@dataclass(frozen=True)
class _Outside:
    """Memory that a graph found when it was captured. It does not keep it alive."""

    storage: StorageWeakRef
    dtype: torch.dtype
    place: tuple[int, torch.Size, tuple[int, ...]]
    """Offset, shape and strides."""

    @staticmethod
    def of(tensor: torch.Tensor) -> _Outside:
        place = (tensor.storage_offset(), tensor.shape, tensor.stride())
        return _Outside(StorageWeakRef(tensor.untyped_storage()), tensor.dtype, place)

    def tensor(self) -> torch.Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise RuntimeError("CUDA error: the graph uses memory that has been freed since it was captured.")
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.place)


class CUDAGraph:
    """Records operations while it is captured, without their effects, and repeats them."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._steps: list[Callable[[], None]] = []
        self._owned: dict[int, torch.Tensor] = {}
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self.invalid = False
        self.warp: Any = None
        """What records Warp's launches, while Warp knows of the capture."""

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global", **_: Any) -> None:
        if current[0].legacy or current[0].capture is not None:
            raise RuntimeError("CUDA graphs must be captured on a stream of their own, one at a time.")
        self._stream = current[0]
        self._stream.capture = self

    def capture_end(self) -> None:
        self._stream.capture = None
        for storage, before in self._before.values():
            storage.copy_(before)
        self._before.clear()
        for made in self._owned.values():
            if made.is_floating_point():
                made.fill_(torch.nan)  # nothing has been computed yet
        if self.invalid:
            self._steps.clear()
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def own(self, made: torch.Tensor) -> None:
        self._owned[made.untyped_storage()._cdata] = made

    def before(self, changed: list[torch.Tensor]) -> None:
        """Keeps what an operation is about to overwrite: a capture has no effects."""
        for tensor in changed:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._owned:
                self._before.setdefault(storage._cdata, (storage, storage.clone()))

    def record(self, func: Any, args: Any, kwargs: Any, made: list[torch.Tensor], changed: list[torch.Tensor]) -> None:
        """Notes an operation, which either made new tensors or changed old ones."""
        if any(isinstance(x, torch.Generator) for x in tree_leaves((args, kwargs))):
            raise RuntimeError("A generator that is not registered with the graph must not be used during capture.")
        for tensor in made:
            self.own(tensor)
        leaves, structure = tree_flatten((args, kwargs))
        handles = [self._handle(x) if isinstance(x, torch.Tensor) else x for x in leaves]
        written = [i for i, x in enumerate(leaves) if any(x is y for y in changed)]

        def repeat() -> None:
            again = [x.tensor() if isinstance(x, _Outside) else x for x in handles]
            again_args, again_kwargs = tree_unflatten(again, structure)
            result = func(*again_args, **again_kwargs)
            if made:
                for target, value in zip(made, tensors_in(result), strict=True):
                    target.copy_(value)
            used = [x for x in again if isinstance(x, torch.Tensor)]
            ledger.access(current[0], used, made or [again[i] for i in written], func)

        self.add(repeat)

    def add(self, step: Callable[[], None]) -> None:
        """Notes anything that is to happen at this point of a replay."""
        if self.warp is not None:
            self.warp.cut(self._steps)
        self._steps.append(step)

    def _handle(self, tensor: torch.Tensor) -> torch.Tensor | _Outside:
        return tensor if tensor.untyped_storage()._cdata in self._owned else _Outside.of(tensor)

    def replay(self) -> None:
        if not self._steps:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        with torch._C.DisableTorchFunction():
            for step in self._steps:
                step()
