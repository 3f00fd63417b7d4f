"""Modules as functions of their parameters, one set per task.

What is learnt of a module are its parameters that require a gradient; they are passed to every call. Everything else,
its buffers (the statistics of a running normaliser, say) and its frozen parameters, are *constants*: a call reads them
from the module as they are at that moment, so that what acts, what is trained and what is saved are the same function.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from types import MethodType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_leaves, tree_map

from metarl.types import Params


class HasParameters(Protocol):
    """What a `torch.nn.Module` is to this module."""

    def named_parameters(self) -> Any: ...


def trainable_params(module: HasParameters) -> Params:
    """The module's own parameters that require a gradient, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def initial_params(module: HasParameters) -> Params:
    """A detached copy of the module's parameters that require a gradient, by name: what learning starts from."""
    return {name: value.detach().clone() for name, value in trainable_params(module).items()}


def initial_buffers(module: HasParameters) -> Params:
    """A copy of the module's buffers by name, such as the running statistics of batch normalisation."""
    return {name: value.detach().clone() for name, value in cast(nn.Module, module).named_buffers()}


def constants(module: HasParameters) -> Params:
    """The module's own tensors that are not learnt, by name: buffers, and parameters without `requires_grad`."""
    frozen = {name: value.detach() for name, value in module.named_parameters() if not value.requires_grad}
    return dict(cast(nn.Module, module).named_buffers()) | frozen


def load_constants(module: HasParameters, saved: Params) -> None:
    """Gives the module's constants the values that `constants` had."""
    for name, value in constants(module).items():
        value.copy_(saved[name])


def call(module: HasParameters, params: Params, inputs: Tensor) -> Any:
    """The module's outputs under other parameters; whatever `params` lacks is the module's own.

    Tensors of `params` that the call changes in place (running statistics) are changed. The module itself is not: safe
    to call from several threads, and on a module that somebody else is using.
    """
    return functional_call(_twin(module), params, (inputs,))


def per_task(module: HasParameters) -> Callable[[Params, Tensor], Any]:
    """The module as a function `(params [task, ...], inputs [task, ...]) -> outputs [task, ...]`, as `call` is for one.

    All tasks at once: by the module itself if it says that it takes a leading task axis, else by `vmap`; one after
    another where `vmap` does not know what the module does (torch's recurrent modules, branches on values). A single
    task is the plain call of a module without a task axis: vmapped convolutions run at half their speed on a CPU.
    """

    def of_one(params: Params, inputs: Tensor) -> Any:
        return call(module, params, inputs)

    def with_task_axis(params: Params, inputs: Tensor) -> Any:
        return functional_call(_twin(module, frozen_for=len(inputs)), params, (inputs,))

    def without_task_axis(params: Params, inputs: Tensor) -> Any:
        if len(inputs) > 1 and module not in _one_by_one:
            try:
                return vmap(of_one)(params, inputs)
            # A warning that vmap is slow here is an error where warnings are.
            except (RuntimeError, UserWarning) as error:
                if "random" in str(error):
                    raise ValueError(f"{type(module).__name__} draws random numbers; {_MUST_BE_PURE}") from None
                outputs = _in_turn(of_one, params, inputs)  # what is the module's own fault fails here too
                _one_by_one.add(cast(nn.Module, module))
                return outputs
        return _in_turn(of_one, params, inputs)

    return with_task_axis if getattr(module, "takes_task_axis", False) else without_task_axis


_one_by_one: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Modules that `vmap` has failed on."""


def _in_turn(of_one: Callable[[Params, Tensor], Any], params: Params, inputs: Tensor) -> Any:
    outputs = [of_one({name: v[i] for name, v in params.items()}, inputs[i]) for i in range(len(inputs))]
    if len(outputs) == 1:
        return tree_map(lambda out: out.unsqueeze(0), outputs[0])
    return tree_map(lambda *of_tasks: torch.stack(of_tasks), *outputs)


def _twin(module: HasParameters, frozen_for: int = 0) -> nn.Module:
    """A module of the same settings and tensors whose parameters can be swapped without touching the original.

    `functional_call` swaps parameters in place while it runs, which two threads must not do to one module. What the
    module holds beside its registered parts (a list of layers, a method bound to itself) leads to the twin's parts.

    Args:
        module: The original.
        frozen_for: Number of tasks: frozen parameters then lead with a task axis; 0 leaves them as they are.
    """
    original = cast(nn.Module, module)
    parts = list(original.modules())
    twins = {id(part): type(part).__new__(type(part)) for part in parts}
    for part in parts:
        state = twins[id(part)].__dict__
        for name, value in part.__dict__.items():
            state[name] = value.copy() if name in ("_parameters", "_buffers") else _of_twins(value, twins)
        if frozen_for:
            for name, value in part._parameters.items():
                if value is not None and not value.requires_grad:
                    state["_parameters"][name] = value.expand(frozen_for, *value.shape)
    return twins[id(original)]


def _of_twins(value: Any, twins: dict[int, nn.Module]) -> Any:
    """An attribute of a module with the twins in the place of the originals; containers are new ones."""
    kind = type(value)
    if kind not in _HOLDERS:
        return twins.get(id(value), value)
    if kind in _CONTAINERS and not 0 < len(value) <= _MANY:
        return value if value or kind is tuple else value.copy()
    if kind in (dict, OrderedDict):
        return kind((key, _of_twins(item, twins)) for key, item in value.items())
    if kind in (list, tuple, set):
        return kind(_of_twins(item, twins) for item in value)
    if kind is MethodType:
        return MethodType(value.__func__, _of_twins(value.__self__, twins))
    return functools.partial(
        _of_twins(value.func, twins), *_of_twins(value.args, twins), **_of_twins(value.keywords, twins)
    )


_CONTAINERS = frozenset({dict, OrderedDict, list, tuple, set})
_HOLDERS = _CONTAINERS | {MethodType, functools.partial}
"""Plain things in an attribute that may lead to another part of the module."""

_MANY = 1000
"""Longer containers hold data: they are shared, and not looked through at every call."""


_MUST_BE_PURE = "a module that is adapted must compute the same outputs from the same parameters and inputs every time."


def check_pure(module: HasParameters, inputs: Tensor, what: str) -> Any:
    """Makes sure that a module is a function of its parameters, constants and inputs, and nothing else.

    It is called twice, on a copy; the global random states are as before afterwards.

    Args:
        module: The module.
        inputs: Inputs that it should take, on the CPU.
        what: What it is, for the sentence: "The policy".

    Returns:
        Its outputs.

    Raises:
        ValueError: If it cannot be copied, draws random numbers, keeps something from one call to the next, or changes
            a buffer or a parameter while it is called.
    """
    try:
        copied = copy.deepcopy(cast(nn.Module, module)).cpu()
    except (TypeError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{what} cannot be copied (copy.deepcopy), which trying it out takes: {reason}") from error
    tensors = dict([*copied.named_parameters(), *copied.named_buffers()])
    before = {name: value.detach().clone() for name, value in tensors.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        random_state = torch.get_rng_state()
        first, second = copied(inputs), copied(inputs)
        random = not torch.equal(torch.get_rng_state(), random_state)
    if random:
        raise ValueError(f"{what} draws random numbers when it is called (dropout, say); {_MUST_BE_PURE}")
    changed = [name for name, value in tensors.items() if not _same(value, before[name])]
    if changed:
        raise ValueError(
            f"{what} changes its {changed[0]} when it is called; {_MUST_BE_PURE} Update running statistics between "
            "iterations instead, and switch batch normalisation to eval()."
        )
    if not all(_same(a, b) for a, b in zip(tree_leaves(first), tree_leaves(second), strict=True)):
        raise ValueError(f"{what} gives other outputs when it is called again (hidden state, noise); {_MUST_BE_PURE}")
    return first


def check_follows(module: HasParameters, inputs: Tensor, what: str) -> None:
    """Makes sure that a `call` computes with the parameters that it is given, and can be differentiated by them.

    Args:
        module: The module, which is only read.
        inputs: Inputs that it takes.
        what: What it is, for the sentence: "The policy".

    Raises:
        ValueError: If gradients lead to the module's own parameters instead, or to none: learning would have no effect.
    """
    own = trainable_params(module)
    given = {name: value.detach().clone().requires_grad_() for name, value in own.items()}
    with torch.enable_grad():
        outputs = [leaf for leaf in tree_leaves(call(module, given, inputs)) if isinstance(leaf, Tensor)]
        moving = [leaf.sum() for leaf in outputs if leaf.requires_grad]
        leaves = [*own.values(), *given.values()]
        found = torch.autograd.grad(moving, leaves, allow_unused=True) if moving else [None] * len(leaves)
    if any(gradient is not None for gradient in found[: len(own)]):
        raise ValueError(
            f"{what} reaches its parameters past its own parts (a function that was made in __init__, a list of "
            "weights, a compiled module), so that it cannot be called with others; reach them through self in forward."
        )
    if all(gradient is None for gradient in found):
        raise ValueError(
            f"{what}'s outputs have no gradient with respect to its parameters (no_grad or detach in its forward), so "
            "that there is nothing to learn by."
        )


def _same(a: Any, b: Any) -> bool:
    """Whether two outputs are the same to rounding; NaN is NaN."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a == b
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6, equal_nan=True)
