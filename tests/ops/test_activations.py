"""tanh: torch's values and derivatives of every order the inner loop needs, under autograd and torch.func alike."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from metarl.functional import per_task
from metarl.ops.activations import tanh
from metarl.policies import MLP, CategoricalMLPPolicy, GaussianMLPPolicy

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


class Tanh(nn.Module):
    """Ours, in a network of somebody's own."""

    def forward(self, x: Tensor) -> Tensor:
        return tanh(x)


def traced(module: nn.Module, x: Tensor) -> nn.Module:
    """By TorchScript without gradients, and by way of a file."""
    with torch.no_grad():
        script = torch.jit.trace(module, x)
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def exported(module: nn.Module, x: Tensor) -> nn.Module:
    rows = torch.export.Dim("rows", min=2)
    return torch.export.export(module, (x,), dynamic_shapes=({0: rows},)).module()


def compiled(module: nn.Module, x: Tensor) -> nn.Module:
    module = torch.compile(module, backend="eager", fullgraph=True)
    module(x)
    return module


RECORDERS = {
    "TorchScript": traced,
    "export": exported,
    "strict export": lambda module, x: torch.export.export(module, (x,), strict=True).module(),
    "symbols": lambda module, _: torch.fx.symbolic_trace(module),
    "operators": lambda module, x: make_fx(module)(x),
    "compile": compiled,
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("record", RECORDERS)
def test_what_is_recorded_of_a_network_is_its_function_not_its_numbers(record):
    def random():
        return torch.Generator().manual_seed(0)

    convolutions = nn.Sequential(nn.Conv2d(1, 4, 3), Tanh(), nn.Flatten(), nn.Linear(36, 2))
    networks = [
        (GaussianMLPPolicy(3, 2, (8, 8), "tanh", context_dim=1, generator=random()), (3,)),
        (CategoricalMLPPolicy(3, 2, (8,), "relu", generator=random()), (3,)),
        (convolutions, (1, 5, 5)),
    ]
    for network, shape in networks:
        seen, new = torch.randn(6, *shape), torch.randn(6, *shape)
        for ours, expected in zip(
            tree_leaves(RECORDERS[record](network, seen)(new)), tree_leaves(network(new)), strict=True
        ):
            torch.testing.assert_close(ours, expected)


def test_what_is_recorded_of_large_layers_of_many_tasks_is_made_of_torch_s_own_operators():
    """Also where NumPy and oneDNN would be faster."""
    params = {n: torch.randn(2, *v.shape) for n, v in MLP((20, 20, 20), "tanh", torch.Generator()).named_parameters()}
    network = per_task(MLP((20, 20, 20), "tanh", torch.Generator()))
    x, new = torch.randn(2, 300, 20), torch.randn(2, 300, 20)
    graph = make_fx(lambda x: network(params, x))(x)
    torch.testing.assert_close(graph(new), network(params, new))
    assert {str(node.target).split(".")[0] for node in graph.graph.nodes if node.op == "call_function"} == {"aten"}


def test_numpy_evaluates_what_nobody_records():
    x = torch.linspace(-3, 3, 1001)
    assert torch.equal(tanh(x), torch.from_numpy(np.tanh(x.numpy())))
