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

_handles = itertools.count(1)
all_streams: weakref.WeakSet[Stream] = weakref.WeakSet()


class Stream:
    """A queue of work. `torch.cuda.Stream()` makes one that nothing orders against the others.

    Args:
        legacy: Whether it orders itself against the default stream, as streams not made by torch do.
    """

    def __init__(self, legacy: bool = False) -> None:
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


def merge(seen: defaultdict[Stream, int], stream: Stream) -> None:
    """Whoever has `seen` may from now on rely on everything that is in the stream, and on what that relies on."""
    for other, time in [*stream.seen.items(), (stream, stream.now)]:
        seen[other] = max(seen[other], time)


class Ledger:
    """When each piece of memory was last written and read, and by which stream. Memory goes by its address."""

    def __init__(self) -> None:
        self._written: dict[int, tuple[Stream, int]] = {}
        self._read: defaultdict[int, dict[Stream, int]] = defaultdict(dict)

    def born(self, tensors: list[Tensor]) -> None:
        """Forgets what was at the address of new memory before it."""
        for address in map(_address, tensors):
            self._written.pop(address, None)
            self._read.pop(address, None)

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
        reads, writes = set(map(_address, read)), set(map(_address, written))
        for address in reads | writes:
            if address in self._written:
                self._check(stream, *self._written[address], what, "reads what")
        for address in writes:
            for other, time in self._read[address].items():
                self._check(stream, other, time, what, "overwrites what")
            self._written[address] = (stream, stream.now)
            self._read[address].clear()
        for address in reads - writes:
            self._read[address][stream] = stream.now

    @staticmethod
    def _check(stream: Stream, other: Stream, time: int, what: object, does: str) -> None:
        if other is not stream and max(stream.seen[other], host.seen[other]) < time:
            raise RuntimeError(f"Race: {what} on one stream {does} another stream is still busy with.")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


ledger = Ledger()
_pool = itertools.cycle([Stream() for _ in range(32)])


def pooled_stream(device: Any = None, priority: int = 0) -> Stream:
    """What `torch.cuda.Stream()` gives: one of the same few, over and over."""
    return next(_pool)


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
