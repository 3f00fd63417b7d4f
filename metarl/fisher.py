r"""Fisher information of adapted policies, pulled back through the adaptation: products with $J^T F J$.

At the old parameters the expected Hessian of the KL divergence is $\sum_i J_i^T F_i J_i$, with $J_i$ the Jacobian of
task i's adaptation and $F_i = \frac1N \sum_s D_s^T G_s D_s$ the Fisher information of its adapted policy over its
query states: $D_s$ the Jacobian of the distribution parameters at state s, $G_s$ the information matrix in those
parameters. Second derivatives of the network and of the adaptation drop out exactly, as the KL divergence is at its
minimum (Schraudolph 2002; Schulman et al. 2015, appendix C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from metarl.adaptation import AdaptationJacobian
from metarl.ops.tree import expand_tasks, sum_tasks
from metarl.types import Distribution, DistParams, Params, Samples


@final
class AdaptedFisher:
    """$v \\mapsto \\sum_i J_i^T F_i J_i v$ over a block of tasks.

    The policy is traced once, its graph kept; every product is then a handful of backward passes.

    Args:
        apply: `(params [task, ...], observations [task, row, obs_dim]) -> DistParams [task, row, ...]`.
        distribution: Which distribution those parameters belong to.
        adapted: theta_K, `[task, ...]`.
        query: Post-adaptation samples of the block.
        jacobian: The block's d theta_K / d theta_0.
    """

    def __init__(
        self,
        apply: Callable[[Params, Tensor], DistParams],
        distribution: Distribution,
        adapted: Params,
        query: Samples,
        jacobian: AdaptationJacobian,
    ) -> None:
        self._jacobian = jacobian
        self._distribution = distribution
        self._num_tasks = query.valid.shape[0]
        self._leaves = {name: value.detach().requires_grad_() for name, value in adapted.items()}
        with torch.enable_grad():
            outputs = apply(self._leaves, query.observations)
            self._outputs, self._structure = tree_flatten(outputs)
            # D v by differentiating D^T u, which is linear in u, with respect to u: both directions from one graph.
            self._cotangents = [torch.zeros_like(output, requires_grad=True) for output in self._outputs]
            self._pullback = self._transposed_policy_jacobian(self._cotangents, create_graph=True)
        self._dist_params = tree_map(torch.Tensor.detach, outputs)
        weights = query.valid / query.valid.sum(-1, keepdim=True).clamp(min=1)
        self._row_weights = weights.to(query.observations.dtype).unsqueeze(-1)

    def product(self, vector: Params) -> Params:
        """The product for shared parameters `vector`, summed over the block's tasks."""
        tangent = self._jacobian.product(expand_tasks(vector, self._num_tasks))
        outputs = tree_unflatten(self._policy_jacobian(tangent), self._structure)
        weighted = self._distribution.fisher_product(self._dist_params, outputs)
        cotangents = [self._row_weights * value for value in tree_flatten(weighted)[0]]
        pulled_back = self._transposed_policy_jacobian(cotangents, create_graph=False)
        cotangent = dict(zip(self._leaves, pulled_back, strict=True))
        return sum_tasks(self._jacobian.transposed_product(cotangent))

    def _policy_jacobian(self, tangent: Params) -> list[Tensor]:
        return list(
            torch.autograd.grad(
                self._pullback, self._cotangents, list(tangent.values()), retain_graph=True, materialize_grads=True
            )
        )

    def _transposed_policy_jacobian(self, cotangents: list[Tensor], create_graph: bool) -> list[Tensor]:
        return list(
            torch.autograd.grad(
                self._outputs,
                list(self._leaves.values()),
                cotangents,
                create_graph=create_graph,
                retain_graph=True,
                materialize_grads=True,
            )
        )
