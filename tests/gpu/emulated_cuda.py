"""A CUDA device made of the processor, so that the code written for a GPU runs, and is checked, where there is none.

Inside `emulated_cuda()` torch has a device "cuda". Its tensors hold their numbers in host memory and are computed by
the CPU's kernels, but they keep a GPU's rules, and breaking one is a RuntimeError as it is there:

- a tensor of the device and one of the CPU do not meet in one operation;
- whatever the host must wait for (a number read back, a copy, a shape that depends on data) is refused while a graph is
  captured, and under `torch.cuda.set_sync_debug_mode("error")`;
- work on one stream does not rely on another's without having waited for it (`emulated_streams`);
- capturing computes nothing; a captured graph repeats its operations on the memory they saw, whatever Python has done
  since, what they made is its own, and it must not touch memory that has been freed (`emulated_graphs`).

Warp's arrays and launches take part, on Warp's own CPU device (`emulated_warp`). What cannot be seen here is anything
of the real thing: speed, memory, the order of sums, compilers and drivers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from emulated_graphs import CUDAGraph, tensors_in
from emulated_streams import Stream, all_streams, current, default_stream, host, ledger, merge, pooled_stream
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
INNER = torch.device("privateuseone", 0)
"""What the C++ side of torch takes the device for: the kind that torch keeps for devices it does not know."""

_sync_debug_mode = "default"

WAITING = {
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten._linalg_check_errors, aten.bincount,
}  # fmt: skip
"""Operations whose effect, or the shape of whose result, the host has to know."""
MOVING = {aten.copy_, aten._to_copy}
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm}
"""What tensor cores compute, from factors of 10 bits where TF32 is allowed."""


class DeviceTensor(torch.Tensor):
    """A tensor of the device; `host` holds its numbers."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> DeviceTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype, device=INNER
        )
        tensor.host = host
        return tensor

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {CUDA} device type tensor to numpy. Use Tensor.cpu() first.")

    def __repr__(self, **_: Any) -> str:
        return f"{self.host!r} on {CUDA}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return _run(func, args, kwargs or {})


class Traits(NamedTuple):
    """What an operation's schema says of it."""

    changes: tuple[bool, ...]
    """Of each positional argument, whether it is written."""
    changes_by_name: frozenset[str]
    is_view: bool
    answers: bool
    """Whether it returns something to the host that is not a tensor."""


@functools.cache
def _traits(func: Any) -> Traits:
    arguments = func._schema.arguments
    changes = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
    named = frozenset(a.name for a, written in zip(arguments, changes, strict=True) if written)
    aliased = any(a.alias_info is not None and not a.alias_info.is_write for a in arguments)
    answers = any("Tensor" not in str(returned.type) for returned in func._schema.returns)
    return Traits(tuple(changes), named, aliased, answers)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Any operation with a tensor of the device among its arguments."""
    packet, traits = func.overloadpacket, _traits(func)
    leaves = tree_leaves((args, kwargs))
    target = kwargs.get("device")
    to_host = target is not None and torch.device(target).type == "cpu"
    plain = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, DeviceTensor)]
    if packet in MOVING and (plain or to_host):
        _wait(f"{func}, a copy between host and device")
    elif any(x.ndim for x in plain) or (plain and any(traits.changes) and not isinstance(args[0], DeviceTensor)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got cuda:0 and cpu.")
    if packet in WAITING or traits.answers or _has_mask_index(packet, args) or _counts(func, kwargs):
        _wait(str(func))
    if any(isinstance(x, torch.Generator) and x.device.type != "cuda" for x in leaves):
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    owners = {id(x.host): x for x in leaves if isinstance(x, DeviceTensor)}
    inner_args, inner_kwargs = tree_map_only(DeviceTensor, lambda x: x.host, (args, kwargs))
    if target is not None:
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
    changed = [x for x, c in zip(inner_args, traits.changes, strict=False) if c]
    changed = tree_leaves([changed, [v for k, v in inner_kwargs.items() if k in traits.changes_by_name]])
    if packet in PRODUCTS and torch.backends.cuda.matmul.fp32_precision == "tf32":
        inner_args = (*inner_args[:-2], *(_tf32(x) for x in inner_args[-2:]))
    capture = current[0].capture
    if capture is not None:
        capture.before(changed)
    out = func(*inner_args, **inner_kwargs)
    made = tensors_in(out)
    if not traits.is_view:
        if not changed:
            ledger.born(made)
        if capture is not None:
            capture.record(func, inner_args, inner_kwargs, [] if changed else made, changed)
        else:
            ledger.access(current[0], tensors_in((inner_args, inner_kwargs)), changed or made, func)
    if to_host:
        return out
    return tree_map_only(torch.Tensor, lambda x: owners[id(x)] if id(x) in owners else DeviceTensor(x), out)


def _has_mask_index(packet: Any, args: Any) -> bool:
    if packet not in (aten.index, aten.index_put, aten.index_put_):
        return False
    return any(isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])


def _counts(func: Any, kwargs: Any) -> bool:
    """Whether the length of the result is a sum on the device."""
    return func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None


def _tf32(x: torch.Tensor) -> torch.Tensor:
    """Rounded to the nearest number with 10 bits behind the leading one, as float32 factors enter a TF32 product."""
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32) if x.dtype == torch.float32 else x


def _refuse_in_capture(what: str) -> None:
    if current[0].capture is not None:
        current[0].capture.invalid = True
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")


def _wait(what: str) -> None:
    """The host waits for the current stream."""
    _refuse_in_capture(what)
    if _sync_debug_mode == "error":
        raise RuntimeError(f"called a synchronizing CUDA operation ({what})")
    merge(host.seen, current[0])


def _empty(size: Any, dtype: Any = None, **_: Any) -> DeviceTensor:
    return _new(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> DeviceTensor:
    return _new(torch.empty_strided(size, stride, dtype=dtype))


def _new(made: torch.Tensor) -> DeviceTensor:
    ledger.born([made])
    if current[0].capture is not None:
        current[0].capture.own(made)
    return DeviceTensor(made)


class _Placement(TorchFunctionMode):
    """Sends what asks for the device "cuda" to the emulated one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)  # a name, or a copy of one, places nothing
        generator = kwargs.get("generator")
        asked = kwargs.get("device")
        if generator is not None and asked is not None and torch.device(asked).type != generator.device.type:
            raise RuntimeError(f"Expected a {asked} device type for generator but found {generator.device}")
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _is_cuda(asked):
            return func(*args, **{**kwargs, "device": "cpu"}).to(INNER)
        if func is torch.Tensor.cuda:
            return args[0].to(INNER)
        if func is torch.Tensor.to:
            args = tuple(INNER if _is_cuda(x) else x for x in args)
        if _is_cuda(asked):
            kwargs["device"] = INNER
        args, kwargs = tree_map_only(torch.device, lambda x: INNER if _is_cuda(x) else x, (args, kwargs))
        return func(*args, **kwargs)


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.split(":")[0] == "cuda"
    return isinstance(device, torch.device) and device.type == "cuda"


class Generator(torch.Generator):
    """The CPU's generator, on whichever device it is said to be."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self._device = CUDA if _is_cuda(device) else torch.device("cpu")

    device = property(lambda self: self._device)


@contextlib.contextmanager
def _stream(stream: Stream | None) -> Iterator[None]:
    before = current[0]
    current[0] = stream or before
    try:
        yield
    finally:
        current[0] = before


def _set_stream(stream: Stream) -> None:
    current[0] = stream


def _synchronize(device: Any = None) -> None:
    _refuse_in_capture("synchronize")
    for stream in list(all_streams):
        merge(host.seen, stream)


def _set_sync_debug_mode(mode: str) -> None:
    global _sync_debug_mode
    _sync_debug_mode = mode


def _save(state: Any, *args: Any, save: Any = torch.save, **kwargs: Any) -> None:
    save(tree_map_only(DeviceTensor, lambda x: x.cpu(), state), *args, **kwargs)


@functools.cache
def register() -> None:
    """Makes torch's C++ side accept tensors of the device, for the rest of the process.

    Before the first backward pass: the autograd engine looks for devices only once.
    """
    _setup_privateuseone_for_python_backend("emulated")
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    register.library = library  # its registrations go with it


@contextlib.contextmanager
def emulated_cuda() -> Iterator[None]:
    """Gives torch, and Warp where it is installed, a CUDA device of the processor's making."""
    register()
    replaced = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: "emulated",
        "Stream": pooled_stream,
        "CUDAGraph": CUDAGraph,
        "current_stream": lambda device=None: current[0],
        "default_stream": lambda device=None: default_stream,
        "stream": _stream,
        "set_stream": _set_stream,
        "synchronize": _synchronize,
        "is_current_stream_capturing": lambda: current[0].capture is not None,
        "mem_get_info": lambda device=None: (2**30, 2**31),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "empty_cache": lambda: None,
        "set_sync_debug_mode": _set_sync_debug_mode,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **replaced))
        stack.enter_context(mock.patch.multiple(torch, Generator=Generator, save=_save))
        stack.enter_context(mock.patch.object(torch._C, "_host_emptyCache", create=True))
        try:
            from emulated_warp import emulated_warp
        except ImportError:
            pass
        else:
            stack.enter_context(emulated_warp())
        stack.enter_context(_Placement())
        yield
