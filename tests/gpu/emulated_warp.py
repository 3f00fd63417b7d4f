"""Warp beside the emulated device: its arrays are the device's tensors, its launches belong to streams and to graphs.

Warp's kernels run on its own CPU device. A launch counts as work on every array that torch shares with Warp. A graph of
Warp's CPU device keeps the arrays it was captured on, as one of CUDA does not: that is not checked here.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import emulated_cuda
import emulated_streams
import torch
import warp as wp
from emulated_streams import Stream, warp_stream

_current: list[Stream] = [warp_stream]
"""The stream that Warp puts its work on."""
_shared: weakref.WeakSet[emulated_cuda.DeviceTensor] = weakref.WeakSet()
_originals = {
    name: getattr(wp, name)
    for name in (
        "to_torch", "from_torch", "launch", "launch_tiled", "capture_launch", "capture_begin", "capture_end",
    )
}  # fmt: skip


def _to_torch(array: Any, **options: Any) -> torch.Tensor:
    tensor = emulated_cuda.DeviceTensor(_originals["to_torch"](array, **options))
    emulated_streams.ledger.born([tensor.host])
    emulated_streams.ledger.access(_current[0], [], [tensor.host], "Warp's making of an array")
    _shared.add(tensor)
    return tensor


def _from_torch(tensor: torch.Tensor, **options: Any) -> Any:
    if not isinstance(tensor, emulated_cuda.DeviceTensor):
        raise RuntimeError("Warp on the device was given a tensor of the CPU.")
    _shared.add(tensor)
    return _originals["from_torch"](tensor.host, **options)


def _touch_everything(stream: Stream, what: str) -> None:
    """Work of Warp on a stream: nobody knows on which arrays, so on all that torch can see."""
    touched = [tensor.host for tensor in _shared]
    emulated_streams.ledger.access(stream, touched, touched, what)


def _work(what: str) -> None:
    """Notes work of Warp on its current stream."""
    capture = emulated_streams.current[0].capture
    if capture is None:
        _touch_everything(_current[0], what)
    elif capture.warp is None or _current[0].capture is not capture:
        raise RuntimeError(f"{what} is not part of the graph that torch is capturing: Warp is on another stream.")
    else:
        capture.warp.launched = True


def _noting(launch: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        _work("a Warp kernel")
        return launch(*args, **kwargs)

    return noted


def _capture_launch(graph: Any, stream: Stream | None = None) -> None:
    if emulated_streams.current[0].capture is not None:
        raise RuntimeError("CUDA error: a graph cannot be launched while a stream is capturing.")
    with _ScopedStream(stream, sync_enter=False):
        _work("a Warp graph")
    _originals["capture_launch"](graph)


class _ScopedStream:
    def __init__(self, stream: Stream | None, sync_enter: bool = True, sync_exit: bool = False) -> None:
        self._stream, self._sync_enter, self._sync_exit = stream, sync_enter, sync_exit

    def __enter__(self) -> None:
        self._before = _current[0]
        if self._stream is not None:
            if self._sync_enter:
                self._stream.wait_stream(self._before)
            _current[0] = self._stream

    def __exit__(self, *exc: object) -> None:
        if self._stream is not None and self._sync_exit:
            self._before.wait_stream(self._stream)
        _current[0] = self._before


class _ScopedCapture:
    """A capture of Warp's own. It is told its stream, but kernels go to the current one, as on the device."""

    def __init__(self, device: Any = None, stream: Stream | None = None, **_: Any) -> None:
        self._stream = stream or _current[0]
        self.graph: Any = None

    def __enter__(self) -> _ScopedCapture:
        if self._stream is not _current[0]:
            raise RuntimeError("Warp captures one stream and launches on another.")
        _originals["capture_begin"](device="cpu")
        return self

    def __exit__(self, *exc: Any) -> None:
        self.graph = _originals["capture_end"]()


class _Segments:
    """Warp's part of a graph that torch captures: its launches between one operation of torch and the next."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        _originals["capture_begin"](device="cpu")
        self.launched = False

    def cut(self, steps: list[Callable[[], None]]) -> None:
        """Appends what has been launched since the last cut, and records on."""
        if self.launched:
            self.end(steps)
            self._begin()

    def end(self, steps: list[Callable[[], None]]) -> None:
        """Appends what is left."""
        graph = _originals["capture_end"]()

        def repeat() -> None:
            _touch_everything(emulated_streams.current[0], "a Warp kernel of a graph")
            _originals["capture_launch"](graph)

        steps.append(repeat)


def _capture_begin(stream: Stream, external: bool = False, **_: Any) -> None:
    if not external or stream.capture is None:
        raise RuntimeError("External capture reported, but the stream is not capturing")
    stream.capture.warp = _Segments()


def _capture_end(stream: Stream) -> None:
    stream.capture.warp.end(stream.capture._steps)
    stream.capture.warp = None


@contextlib.contextmanager
def emulated_warp() -> Iterator[None]:
    """Puts Warp on the emulated device."""
    _shared.clear()
    replaced = {
        "to_torch": _to_torch,
        "from_torch": _from_torch,
        "launch": _noting(_originals["launch"]),
        "launch_tiled": _noting(_originals["launch_tiled"]),
        "capture_launch": _capture_launch,
        "capture_begin": _capture_begin,
        "capture_end": _capture_end,
        "ScopedCapture": _ScopedCapture,
        "ScopedStream": _ScopedStream,
        "stream_from_torch": lambda stream: stream,
        "device_from_torch": lambda device: wp.get_device("cpu"),
    }
    with mock.patch.multiple(wp, **replaced):
        yield
