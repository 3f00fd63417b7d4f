r"""Fully connected layers with parameters of their own for every task, and their derivatives written out.

    z = x W^T + b,     y = f(z),     f the identity, ReLU or tanh

A trust-region update spends its time on second derivatives of such layers, hundreds of times through the same graph.
autograd's own are right, and half their time is no matrix product: views, zeros, sums of two products, and dozens of
calls for each layer. Here each order is one node, and f' and f'' are read from y. For g, the gradient at y:

    gz = g * f',     dx = gz W,     dW = gz^T x,     db = sum over rows of gz                                  (first)

and for the cotangents (u_x, u_W, u_b, u_z) of these results (dx, dW, db, gz):

    c = u_x W^T + x u_W^T + u_b + u_z,     of g: c * f',     of y: c * g * df'/dy,
    of x: gz u_W,     of W: gz^T u_x                                                                           (second)

Higher orders are autograd's, as all of this is differentiable again. Forward mode, `torch.func` and whatever records
operators (torch.export, torch.compile, torch.jit.trace) take the plain formula.

| symbol | here   | shape             | meaning                     |
|--------|--------|-------------------|-----------------------------|
| x      | x      | [task, row, in]   | rows of every task          |
| W      | weight | [task, out, in]   | weights of every task       |
| b      | bias   | [task, out]       | biases of every task        |
| y      | y      | [task, row, out]  | activations                 |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function, forward_ad

from metarl.ops.activations import is_recorded, tanh

LayerActivation = Literal["identity", "relu", "tanh"]

ACTIVATIONS: dict[LayerActivation, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": torch.relu,
    "tanh": tanh,
}
"""f by its name."""

# Below, the order of the factors of a product decides its time.
_NARROW = 16
# Below, a call of oneDNN costs more than it saves.
_SHORT = 256


def _find_onednn() -> Callable[..., Tensor] | None:
    """oneDNN's x W^T + b, `(x, W, b or None, "none", [], "")`, which torch.compile calls; None if torch lacks it."""
    try:
        product = torch.ops.mkldnn._linear_pointwise.default
        one = torch.zeros(1, 1, dtype=torch.float32, device="cpu")
        product(one, one, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return product


_onednn = _find_onednn()


def layer(
    x: Float[Tensor, "task row n_in"],
    weight: Float[Tensor, "task n_out n_in"],
    bias: Float[Tensor, "task n_out"],
    activation: LayerActivation = "identity",
) -> Float[Tensor, "task row n_out"]:
    """f(x W^T + b) of every task, differentiable any number of times. Not to be changed in place."""
    wanted = torch.is_grad_enabled() and any(value.requires_grad for value in (x, weight, bias))
    if wanted and not _is_transformed():
        return cast(Tensor, _Layer.apply(x, weight, bias, activation))
    return _forward(x, weight, bias, activation)


def _is_transformed() -> bool:
    """Whether forward mode, a transform of `torch.func` or a recorder is at work, for which the plain formula is."""
    return is_recorded() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _forward(x: Tensor, weight: Tensor, bias: Tensor, activation: LayerActivation) -> Tensor:
    return ACTIVATIONS[activation](_rows_times(x, weight.mT, bias))


@final
class _Layer(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, activation: LayerActivation) -> Tensor:
        ctx.activation = activation
        y = _forward(x, weight, bias, activation)
        ctx.save_for_backward(x, weight, None if activation == "identity" else y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        needed = ctx.needs_input_grad[:3]
        return (*_Gradient.apply(g, *ctx.saved_tensors, ctx.activation, needed)[:3], None)


@final
class _Gradient(Function):
    """(dx, dW, db, gz); gz is a result so that what is computed from it in `backward` can be differentiated."""

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        y: Tensor | None,
        activation: LayerActivation,
        needed: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.activation = activation
        gz = _times_slope(g, y, activation)
        ctx.save_for_backward(g if activation == "tanh" else None, x, weight, y, gz)
        return (
            _rows_times(gz, weight) if needed[0] else None,
            _over_rows(gz, x) if needed[1] else None,
            gz.sum(1) if needed[2] else None,
            gz,
        )

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, u_x: Tensor | None, u_weight: Tensor | None, u_bias: Tensor | None, u_z: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        g, x, weight, y, gz = ctx.saved_tensors
        needs_g, needs_x, needs_weight, needs_y, *_ = ctx.needs_input_grad
        c = u_z
        if needs_g or needs_y:
            if u_weight is not None:
                c = _add_to(_rows_times(x, u_weight.mT, u_bias), c)
            elif u_bias is not None:
                c = u_bias.unsqueeze(1).expand_as(gz) if c is None else c + u_bias.unsqueeze(1)
            if u_x is not None:
                c = _add_to(_rows_times(u_x, weight.mT), c)
        of_y = None if c is None or not needs_y or g is None else -2 * c * g * y
        # A product made here is nobody else's.
        spent = (u_weight is not None or u_x is not None) and not torch.is_grad_enabled()
        return (
            None if c is None or not needs_g else _times_slope(c, y, ctx.activation, out=c if spent else None),
            None if u_weight is None or not needs_x else _rows_times(gz, u_weight),
            None if u_x is None or not needs_weight else _over_rows(gz, u_x),
            of_y,
            None,
            None,
        )


def _times_slope(g: Tensor, y: Tensor | None, activation: LayerActivation, out: Tensor | None = None) -> Tensor:
    """g * f', with f' as a function of y; written to `out` if that is given."""
    if activation == "identity":
        return g
    aten = torch.ops.aten
    if activation == "relu":
        if out is None:
            return aten.threshold_backward(g, y, 0)
        return aten.threshold_backward.grad_input(g, y, 0, grad_input=out)
    return aten.tanh_backward(g, y) if out is None else aten.tanh_backward.grad_input(g, y, grad_input=out)


def _add_to(product: Tensor, other: Tensor | None) -> Tensor:
    """A product that nothing else has seen yet, plus something or nothing."""
    return product if other is None else product.add_(other)


def _over_rows(a: Tensor, b: Tensor) -> Tensor:
    """a^T b: `[task, n, m]` of `[task, row, n]` and `[task, row, m]`."""
    # The narrow side first: 2 x 2000 by 2000 x 64 takes a quarter of the time of its transpose.
    return torch.bmm(a.mT, b) if a.shape[2] <= b.shape[2] else torch.bmm(b.mT, a).mT


def _rows_times(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows M + bias: `[task, row, m]` of `[task, row, n]`, `[task, n, m]` and `[task, m]`.

    A large product that nothing differentiates goes to oneDNN, which torch carries beside MKL: MKL runs AVX2 code on
    AMD processors and is half as fast there (docs/performance.md).
    """
    _, num_rows, n = rows.shape
    m = matrix.shape[2]
    plain = is_recorded()  # a recorded graph holds no choice by size
    if not plain and m < n and m < _NARROW:
        # The narrow side first, as above.
        if bias is None:
            return torch.bmm(matrix.mT, rows.mT).mT
        return torch.baddbmm(bias.unsqueeze(2), matrix.mT, rows.mT).mT
    large = not plain and min(n, m) >= _NARROW and num_rows >= _SHORT and len(rows) > 0
    if large and _onednn is not None and _is_fit(rows, matrix, bias):
        # It would read a bias with gaps as if there were none.
        biases = [None] * len(rows) if bias is None else bias.contiguous()
        products = [_onednn(r, w.mT, b, "none", [], "") for r, w, b in zip(rows, matrix, biases, strict=True)]
        return products[0].unsqueeze(0) if len(products) == 1 else torch.stack(products)
    if bias is None:
        return torch.bmm(rows, matrix)
    return torch.baddbmm(bias.unsqueeze(1), rows, matrix)


def _is_fit(*values: Tensor | None) -> bool:
    """Whether oneDNN's product takes them: it has no derivatives of its own."""
    wanted = torch.is_grad_enabled()
    return not _is_transformed() and all(
        value is None
        or (value.device.type == "cpu" and value.dtype == torch.float32 and not (wanted and value.requires_grad))
        for value in values
    )
