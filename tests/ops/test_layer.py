"""Layers of every task: values and derivatives of three orders are autograd's of the plain formula."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from metarl.ops import layer as module
from metarl.ops.layer import Activation, layer

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"identity": lambda z: z, "relu": torch.relu, "tanh": torch.tanh}
Layer = Callable[[Tensor, Tensor, Tensor, Activation], Tensor]
every_activation = pytest.mark.parametrize("activation", get_args(Activation))


def plain(x: Tensor, weight: Tensor, bias: Tensor, activation: Activation) -> Tensor:
    return PLAIN[activation](x @ weight.mT + bias.unsqueeze(1))


def draw(tasks: int, rows: int, n_in: int, n_out: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n_in + 100 * n_out)
    shapes = ((tasks, rows, n_in), (tasks, n_out, n_in), (tasks, n_out))
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def network(f: Layer, x: Tensor, params: list[Tensor], activation: Activation) -> Tensor:
    """Two layers, so that the first one's derivatives pass through the second's."""
    w1, b1, w2, b2 = params
    return f(f(x, w1, b1, activation), w2, b2, "identity").square().mean((1, 2)).sin().sum()


def orders(f: Layer, x: Tensor, params: list[Tensor], directions: list[Tensor], activation: Activation) -> list[Tensor]:
    """Gradient, and the second and third derivative along fixed directions."""
    leaves = [value.clone().requires_grad_() for value in params]
    value, found = network(f, x, leaves, activation), []
    for _ in range(3):
        gradient = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        found += [part.detach() for part in gradient]
        value = sum(((part * d).sum() for part, d in zip(gradient, directions, strict=True)), torch.zeros(()))
    return found


@every_activation
@pytest.mark.parametrize(("n_in", "width", "n_out"), [(2, 5, 3), (3, 20, 2), (20, 17, 18), (18, 3, 20)])
def test_three_orders_of_derivatives(activation: Activation, n_in: int, width: int, n_out: int) -> None:
    x, w1, b1 = draw(3, 7, n_in, width)
    _, w2, b2 = draw(3, 7, width, n_out)
    params = [w1 / n_in**0.5, b1, w2 / width**0.5, b2]
    directions = [torch.randn_like(value) for value in params]
    for ours, reference in zip(
        orders(layer, x, params, directions, activation), orders(plain, x, params, directions, activation), strict=True
    ):
        assert_close(ours, reference, rtol=1e-9, atol=1e-12)


@every_activation
def test_finite_differences(activation: Activation) -> None:
    inputs = [value.requires_grad_() for value in draw(2, 3, 3, 4)]
    assert torch.autograd.gradcheck(lambda *args: layer(*args, activation), inputs)
    assert torch.autograd.gradgradcheck(lambda *args: layer(*args, activation), inputs)


@every_activation
@pytest.mark.parametrize("needed", list(itertools.product([True, False], repeat=3))[:-1])
def test_only_what_is_asked_for(activation: Activation, needed: tuple[bool, ...]) -> None:
    def derivatives(f: Layer) -> list[Tensor]:
        inputs = [v.requires_grad_(wanted) for v, wanted in zip(draw(2, 5, 3, 4), needed, strict=True)]
        leaves = [value for value in inputs if value.requires_grad]
        first = torch.autograd.grad(f(*inputs, activation).square().sum(), leaves, create_graph=True)
        # Through one of the gradients at a time, so that the other cotangents are absent.
        return [
            value
            for part in first
            if part.requires_grad
            for value in torch.autograd.grad(part.square().sum(), leaves, retain_graph=True, materialize_grads=True)
        ]

    for ours, reference in zip(derivatives(layer), derivatives(plain), strict=True):
        assert_close(ours, reference)


@every_activation
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("tasks", [1, 3])
def test_large_layers_in_float32(
    activation: Activation, onednn: bool, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not onednn:
        monkeypatch.setattr(module, "_onednn", None)
    elif module._onednn is None:
        pytest.skip("this build of torch has no oneDNN")
    x, w1, b1 = draw(tasks, 300, 40, 32)
    _, w2, b2 = draw(tasks, 300, 32, 2)
    params = [w1 / 40**0.5, b1, w2 / 32**0.5, b2]
    directions = [torch.randn_like(value) for value in params]
    exact = orders(plain, x, params, directions, activation)
    single = [[value.float() for value in values] for values in ([x], params, directions)]
    ours = orders(layer, single[0][0], single[1], single[2], activation)
    for value, reference in zip(ours, exact, strict=True):
        assert value.dtype == torch.float32
        # 80 units in the last place; 1 - tanh^2 loses some of them where tanh is near 1.
        assert float((value - reference).norm()) <= 1e-5 * float(reference.norm()) + 1e-12


def test_the_fast_product_is_used_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    if module._onednn is None:
        pytest.skip("this build of torch has no oneDNN")
    calls, original = [], module._onednn
    monkeypatch.setattr(module, "_onednn", lambda *args: calls.append(args[0].shape) or original(*args))
    with torch.no_grad():
        layer(*draw(2, 300, 40, 32, torch.float32))
        assert calls == [(300, 40)] * 2
        for inputs in (draw(2, 300, 40, 32), draw(2, 20, 40, 32, torch.float32), draw(2, 300, 40, 2, torch.float32)):
            layer(*inputs)
    assert len(calls) == 2


def test_no_graph_is_kept_where_nothing_needs_one() -> None:
    inputs = draw(2, 5, 3, 4)
    assert not layer(*inputs).requires_grad
    with torch.no_grad():
        assert not layer(inputs[0], inputs[1].requires_grad_(), inputs[2]).requires_grad
