"""Streams of the emulated device: who may rely on whose work, kept as vector clocks.

A real device runs streams side by side. What one reads of another's work without having been told to wait is a matter
of luck there, and an error here (the idea is that of torch's own CUDA sanitizer).
"""

from __future__ import annotations

import itertools
import weakref
from collections import defaultdict
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_handles = itertools.count(1)
all_streams: weakref.WeakSet[Stream] = weakref.WeakSet()


class Stream:
    """A queue of work. `torch.cuda.Stream()` makes one that nothing orders against the others.

    Args:
        device: Not read; there is one device.
        legacy: Whether it orders itself against the default stream, as streams not made by torch do.
    """

    def __init__(self, device: Any = None, priority: int = 0, *, legacy: bool = False) -> None:
        self.cuda_stream = next(_handles)
        self.legacy = legacy
        self.now = 0
        self.seen: defaultdict[Stream, int] = defaultdict(int)
        self.capture: Any = None
        """The CUDA graph that is being captured on it."""
        all_streams.add(self)

    def wait_stream(self, other: Stream) -> None:
        if self.capture is not other.capture:
            raise RuntimeError("CUDA error: dependency created on uncaptured work in another stream")
        merge(self.seen, other)

    def synchronize(self) -> None:
        merge(host.seen, self)


def merge(seen: defaultdict[Stream, int], stream: Stream) -> None:
    """Whoever has `seen` may from now on rely on everything that is in the stream, and on what that relies on."""
    for other, time in [*stream.seen.items(), (stream, stream.now)]:
        seen[other] = max(seen[other], time)


class Ledger:
    """When each piece of memory was last written and read, and by which stream."""

    def __init__(self) -> None:
        self._written: dict[int, tuple[Stream, int]] = {}
        self._read: defaultdict[int, dict[Stream, int]] = defaultdict(dict)
        self._known: dict[int, StorageWeakRef] = {}

    def access(self, stream: Stream, read: list[Tensor], written: list[Tensor], what: object) -> None:
        """Notes work of `stream`; RuntimeError where it runs beside work that it needs, or that needs what it changes.

        Args:
            stream: The stream it is queued on.
            read: Host tensors it reads.
            written: Host tensors it changes.
            what: Its name, for the message.
        """
        for other in order_against(stream):
            merge(stream.seen, other)
        stream.now += 1
        for tensor in (*read, *written):
            key = self._key(tensor)
            if key in self._written:
                self._check(stream, *self._written[key], what, "reads what")
        for tensor in written:
            for other, time in self._read[self._key(tensor)].items():
                self._check(stream, other, time, what, "overwrites what")
        for tensor in read:
            self._read[self._key(tensor)][stream] = stream.now
        for tensor in written:
            key = self._key(tensor)
            self._written[key] = (stream, stream.now)
            self._read[key].clear()

    @staticmethod
    def _check(stream: Stream, other: Stream, time: int, what: object, does: str) -> None:
        if other is not stream and max(stream.seen[other], host.seen[other]) < time:
            raise RuntimeError(f"Race: {what} on one stream {does} another stream is still busy with.")

    def _key(self, tensor: Tensor) -> int:
        """Names the tensor's storage; never the name of one that is gone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            if len(self._known) > 20_000:
                for dead in [k for k, reference in self._known.items() if reference.expired()]:
                    for table in (self._known, self._written, self._read):
                        table.pop(dead, None)
            self._known[key] = StorageWeakRef(storage)  # as long as it is held the name is not given to another
        return key


default_stream = Stream(legacy=True)
warp_stream = Stream(legacy=True)
"""The stream that Warp makes for itself."""
host = Stream()
"""The host: whatever it has waited for is over for everybody."""
current: list[Stream] = [default_stream]


def order_against(stream: Stream) -> list[Stream]:
    """Streams that the driver orders before new work of this one without being told."""
    if stream is default_stream:
        return [warp_stream]
    return [default_stream] if stream.legacy else []
