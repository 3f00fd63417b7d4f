r"""Fisher information of adapted policies, pulled back through the adaptation: products with $J^T F J$.

At the old parameters the expected Hessian of the KL divergence after k inner steps is $\sum_i J_i^T F_i J_i$, with
$J_i$ the Jacobian of task i's adaptation and $F_i = \frac1N \sum_s D_s^T G_s D_s$ the Fisher information of its
adapted policy over its states: $D_s$ the Jacobian of the distribution parameters at state s, $G_s$ the information
matrix in those parameters. Second derivatives of the network and of the adaptation drop out exactly, as the KL
divergence is at its minimum (Schraudolph 2002; Schulman et al. 2015, appendix C).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from metarl.inner_loop import MetaJacobian
from metarl.types import DistParams, Distribution, Params, Samples


@final
class PolicyFisher:
    """$v \\mapsto F_i v_i$ for every task i of a block: the policy's own Fisher information at given parameters.

    The policy is traced once, its graph kept; every product is then two backward passes.

    Args:
        apply: `(params [task, ...], observations [task, row, obs_dim]) -> DistParams [task, row, ...]`.
        distribution: Which distribution those parameters belong to.
        params: Per-task parameters.
        samples: The states to average over.
    """

    def __init__(
        self,
        apply: Callable[[Params, Tensor], DistParams],
        distribution: Distribution,
        params: Params,
        samples: Samples,
    ) -> None:
        self._distribution = distribution
        self._leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            outputs = apply(self._leaves, samples.observations)
            self._outputs, self._structure = tree_flatten(outputs)
            # Those that depend on no parameter (a frozen standard deviation) do not change: their rows of D are 0.
            self._moving = [output for output in self._outputs if output.requires_grad]
            # D v by differentiating D^T u, which is linear in u, with respect to u: both directions from one graph.
            self._cotangents = [torch.zeros_like(output, requires_grad=True) for output in self._moving]
            self._pullback = self._transposed_jacobian(self._cotangents, create_graph=True)
        self._dist_params = tree_map(torch.Tensor.detach, outputs)
        # Cast before dividing: a quotient of integers would be rounded to float32.
        valid = samples.valid.to(samples.observations.dtype)
        self._row_weights = (valid / valid.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(-1)

    def product(self, tangent: Params) -> Params:
        """The product for per-task `tangent`, `[task, ...]`."""
        moved = iter(
            torch.autograd.grad(
                self._pullback, self._cotangents, list(tangent.values()), retain_graph=True, materialize_grads=True
            )
        )
        outputs = [next(moved) if output.requires_grad else torch.zeros_like(output) for output in self._outputs]
        informed = self._distribution.fisher_product(self._dist_params, tree_unflatten(outputs, self._structure))
        cotangents = [
            self._row_weights * value
            for value, output in zip(tree_flatten(informed)[0], self._outputs, strict=True)
            if output.requires_grad
        ]
        return dict(zip(self._leaves, self._transposed_jacobian(cotangents, create_graph=False), strict=True))

    def _transposed_jacobian(self, cotangents: list[Tensor], create_graph: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            self._moving,
            list(self._leaves.values()),
            cotangents,
            create_graph=create_graph,
            retain_graph=True,
            materialize_grads=True,
        )


@final
class AdaptedFisher:
    """$v \\mapsto \\sum_k c_k \\sum_i J_{ik}^T F_{ik} J_{ik} v$ over a block of tasks; v a change of meta-parameters.

    Args:
        jacobian: The block's d theta_k / d meta.
        fishers: Inner step k -> (weight c_k, Fisher information of the policy at theta_k).
    """

    def __init__(self, jacobian: MetaJacobian, fishers: Mapping[int, tuple[float, PolicyFisher]]) -> None:
        self._jacobian = jacobian
        self._fishers = fishers

    def product(self, vector: Params) -> Params:
        """The product, summed over the block's tasks."""
        tangents = self._jacobian.products(vector)
        cotangents: list[Params | None] = [None] * len(tangents)
        for k, (weight, fisher) in self._fishers.items():
            cotangents[k] = {name: weight * value for name, value in fisher.product(tangents[k]).items()}
        return self._jacobian.transposed_product(cotangents)
