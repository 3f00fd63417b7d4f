"""Layers of every task: values and derivatives of three orders are autograd's of the plain formula."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.func import jvp
from torch.testing import assert_close

from metarl.ops import layer as module
from metarl.ops.layer import LayerActivation, layer

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"identity": lambda z: z, "relu": torch.relu, "tanh": torch.tanh}
Layer = Callable[[Tensor, Tensor, Tensor, LayerActivation], Tensor]
every_activation = pytest.mark.parametrize("activation", get_args(LayerActivation))


def plain(x: Tensor, weight: Tensor, bias: Tensor, activation: LayerActivation) -> Tensor:
    return PLAIN[activation](x @ weight.mT + bias.unsqueeze(1))


def draw(tasks: int, rows: int, n_in: int, n_out: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n_in + 100 * n_out)
    shapes = ((tasks, rows, n_in), (tasks, n_out, n_in), (tasks, n_out))
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def network(f: Layer, values: list[Tensor], activation: LayerActivation) -> Tensor:
    """Two layers, so that each one's derivatives pass through the other's; partly linear in what they give."""
    x, w1, b1, w2, b2 = values
    y = f(f(x, w1, b1, activation), w2, b2, activation)
    return y.square().mean((1, 2)).sin().sum() + y.mean()


def orders(f: Layer, values: list[Tensor], directions: list[Tensor], activation: LayerActivation) -> list[Tensor]:
    """Gradient, and the second and third derivative along fixed directions, by everything there is."""
    leaves = [value.clone().requires_grad_() for value in values]
    value, found = network(f, leaves, activation), []
    for _ in range(3):
        gradient = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        found += [part.detach() for part in gradient]
        value = sum(((part * d).sum() for part, d in zip(gradient, directions, strict=True)), torch.zeros(()))
    return found


def two_layers(tasks: int, rows: int, n_in: int, width: int, n_out: int) -> tuple[list[Tensor], list[Tensor]]:
    """Rows and parameters, and a direction for each."""
    x, w1, b1 = draw(tasks, rows, n_in, width)
    _, w2, b2 = draw(tasks, rows, width, n_out)
    values = [x, w1 / n_in**0.5, b1, w2 / width**0.5, b2]
    generator = torch.Generator().manual_seed(0)
    return values, [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in values]


@every_activation
@pytest.mark.parametrize(("n_in", "width", "n_out"), [(2, 5, 3), (3, 20, 2), (20, 17, 18), (18, 3, 20)])
def test_three_orders_of_derivatives(activation: LayerActivation, n_in: int, width: int, n_out: int) -> None:
    values, directions = two_layers(3, 7, n_in, width, n_out)
    ours, reference = (orders(f, values, directions, activation) for f in (layer, plain))
    for value, expected in zip(ours, reference, strict=True):
        assert_close(value, expected, rtol=1e-9, atol=1e-12)


@every_activation
def test_finite_differences(activation: LayerActivation) -> None:
    inputs = [value.requires_grad_() for value in draw(2, 3, 3, 4)]
    assert torch.autograd.gradcheck(lambda *args: layer(*args, activation), inputs)
    assert torch.autograd.gradgradcheck(lambda *args: layer(*args, activation), inputs)


@every_activation
@pytest.mark.parametrize("needed", list(itertools.product([True, False], repeat=3))[:-1])
def test_only_what_is_asked_for(activation: LayerActivation, needed: tuple[bool, ...]) -> None:
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
    activation: LayerActivation, onednn: bool, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not onednn:
        monkeypatch.setattr(module, "_onednn", None)
    elif module._onednn is None:
        pytest.skip("this build of torch has no oneDNN")
    values, directions = two_layers(tasks, 300, 40, 32, 20)
    exact = orders(plain, values, directions, activation)
    ours = orders(layer, [v.float() for v in values], [v.float() for v in directions], activation)
    for value, reference in zip(ours, exact, strict=True):
        assert value.dtype == torch.float32
        # 80 units in the last place; 1 - tanh^2 loses some of them where tanh is near 1.
        assert float((value - reference).norm()) <= 1e-5 * float(reference.norm()) + 1e-12


@every_activation
@pytest.mark.parametrize("loss", [torch.sum, lambda y: y.square().sum()], ids=["linear", "square"])
def test_second_and_third_order_through_some_gradients_alone(
    activation: LayerActivation, loss: Callable[[Tensor], Tensor]
) -> None:
    def derivatives(f: Layer, chosen: tuple[int, ...]) -> list[Tensor]:
        leaves = [value.requires_grad_() for value in draw(2, 5, 3, 4)]
        first = torch.autograd.grad(loss(f(*leaves, activation)), [leaves[i] for i in chosen], create_graph=True)
        found: list[Tensor] = list(first)
        for _ in range(2):
            value = sum((part.sin().sum() for part in found[-3:]), torch.zeros(()))
            # One may have a graph with a derivative of 0 where the other has none.
            if value.requires_grad:
                found += torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
            else:
                found += [torch.zeros_like(leaf) for leaf in leaves]
        return found

    for chosen in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        for ours, reference in zip(derivatives(layer, chosen), derivatives(plain, chosen), strict=True):
            assert_close(ours, reference)


def test_values_with_gaps_in_memory() -> None:
    """Biases expanded or strided, in the first order and as cotangents, of products that oneDNN takes."""
    x, weight, _ = draw(2, 300, 40, 32, torch.float32)
    for bias in (torch.ones(1, 1).expand(2, 32), torch.randn(2, 64)[:, ::2], torch.randn(32, 2).mT):
        assert_close(layer(x, weight, bias), plain(x, weight, bias, "identity"))

    def second_order(f: Layer) -> Tensor:
        leaves = [value.clone().requires_grad_() for value in (weight, torch.zeros(2, 32))]
        by_weight, by_bias = torch.autograd.grad(f(x, *leaves, "tanh").square().mean(), leaves, create_graph=True)
        return torch.autograd.grad(by_weight.square().sum() + by_bias.sum(), leaves[0])[0]

    assert_close(second_order(layer), second_order(plain))


@every_activation
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, in jvp
def test_forward_mode_and_transforms(activation: LayerActivation) -> None:
    values = draw(2, 300, 40, 32, torch.float32)
    tangents = [torch.randn_like(value) for value in values]

    def transformed(f: Layer) -> list[Tensor]:
        by_weight = torch.func.grad(lambda w: f(values[0], w, values[2], activation).square().mean())(values[1])
        return [*jvp(lambda *v: f(*v, activation), tuple(values), tuple(tangents)), by_weight]

    for ours, reference in zip(transformed(layer), transformed(plain), strict=True):
        assert_close(ours, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tasks", "rows"), [(0, 300), (0, 3), (2, 0)])
def test_nothing_gives_nothing(tasks: int, rows: int) -> None:
    inputs = [value.requires_grad_() for value in draw(tasks, rows, 40, 32, torch.float32)]
    assert layer(*inputs).shape == (tasks, rows, 32)
    assert all(not value.any() for value in torch.autograd.grad(layer(*inputs).sum(), inputs))


def test_the_fast_product_is_used_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    if module._onednn is None:
        pytest.skip("this build of torch has no oneDNN")
    calls, original = [], module._onednn
    monkeypatch.setattr(module, "_onednn", lambda *args: calls.append(args[0].shape) or original(*args))
    with torch.no_grad():
        layer(*(values := draw(2, 300, 40, 32, torch.float32)))
        assert calls == [(300, 40)] * 2
    weight = draw(2, 300, 40, 32, torch.float32)[1].requires_grad_()
    by_weight = torch.autograd.grad(layer(values[0], weight, values[2]).square().sum(), weight, create_graph=True)[0]
    calls.clear()
    torch.autograd.grad(by_weight.sum(), weight)
    # x u_W^T in the way through the gradient, and what comes back through the layer's own.
    assert calls == [(300, 40)] * 2
    calls.clear()
    with torch.no_grad():
        for inputs in (draw(2, 300, 40, 32), draw(2, 20, 40, 32, torch.float32), draw(2, 300, 40, 2, torch.float32)):
            layer(*inputs)
    assert not calls


def test_no_graph_is_kept_where_nothing_needs_one() -> None:
    inputs = draw(2, 5, 3, 4)
    assert not layer(*inputs).requires_grad
    with torch.no_grad():
        assert not layer(inputs[0], inputs[1].requires_grad_(), inputs[2]).requires_grad
