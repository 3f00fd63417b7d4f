"""Modules as functions of their parameters, one set per task."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any, Protocol, cast

from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from metarl.types import Params


class HasParameters(Protocol):
    """What a `torch.nn.Module` is to this module."""

    def named_parameters(self) -> Any: ...


@functools.lru_cache(maxsize=32)
def per_task(module: HasParameters) -> Callable[[Params, Tensor], Any]:
    """The module as a function `(params [task, ...], inputs [task, ...]) -> outputs [task, ...]`.

    All tasks at once: by the module itself if it says that it takes a leading task axis, else by `vmap`. A single task
    is the plain call of a module without a task axis: vmapped convolutions run at half their speed on a CPU.

    `params` may hold the module's buffers too; those that the call changes (running statistics) are changed in place.

    Safe to call from several threads: `functional_call` swaps a module's parameters while it runs, so each thread gets
    its own copy of the module to swap them in.
    """
    local = threading.local()

    def call(params: Params, inputs: Tensor) -> Any:
        if not hasattr(local, "module"):
            local.module = copy.deepcopy(cast(nn.Module, module))
        return functional_call(local.module, params, (inputs,))

    def without_task_axis(params: Params, inputs: Tensor) -> Any:
        if len(inputs) > 1:
            return vmap(call)(params, inputs)
        return tree_map(
            lambda out: out.unsqueeze(0), call({name: v.squeeze(0) for name, v in params.items()}, inputs[0])
        )

    return call if getattr(module, "takes_task_axis", False) else without_task_axis


def initial_params(module: HasParameters) -> Params:
    """A detached copy of the module's parameters by name."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def initial_buffers(module: HasParameters) -> Params:
    """A copy of the module's buffers by name, such as the running statistics of batch normalisation."""
    return {name: value.detach().clone() for name, value in cast(nn.Module, module).named_buffers()}
