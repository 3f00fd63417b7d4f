"""tanh: torch's values and derivatives of every order the inner loop needs, under autograd and torch.func alike."""

import pytest
import torch
from torch.func import grad, jvp, vmap

from metarl.ops.activations import tanh

EXTREMES = torch.tensor([-torch.inf, -40.0, -1.0, -1e-20, -0.0, 0.0, 1e-20, 1e-4, 1.0, 40.0, torch.inf])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.float64, 4e-16)])
def test_values_are_accurate_relative_to_their_size(dtype, tolerance):
    x = torch.cat([EXTREMES, torch.linspace(-9, 9, 10001), torch.logspace(-12, 1, 1000)]).to(dtype)
    torch.testing.assert_close(tanh(x).double(), torch.tanh(x.double()), rtol=tolerance, atol=0)
    assert tanh(x).dtype == dtype and torch.isnan(tanh(torch.tensor(torch.nan)))


@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3, 5)])
def test_shapes_and_strides(shape):
    x = torch.randn(shape).mT if len(shape) > 1 else torch.randn(shape)
    torch.testing.assert_close(tanh(x), torch.tanh(x))


def test_first_and_second_derivatives_by_finite_differences():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tanh, x)
    assert torch.autograd.gradgradcheck(tanh, x)


def test_third_derivative_is_torch_s():
    x = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(grad(grad(grad(tanh)))(x), grad(grad(grad(torch.tanh)))(x), rtol=1e-13, atol=0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, in jvp
def test_vmap_and_forward_mode():
    x, v = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(vmap(tanh)(x), torch.tanh(x))
    torch.testing.assert_close(vmap(tanh, in_dims=1, out_dims=1)(x), torch.tanh(x))
    for ours, reference in zip(jvp(tanh, (x,), (v,)), jvp(torch.tanh, (x,), (v,)), strict=True):
        torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(vmap(vmap(grad(tanh)))(x), 1 - torch.tanh(x) ** 2)
