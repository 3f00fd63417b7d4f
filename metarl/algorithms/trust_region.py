r"""The trust-region outer step: maximise the meta-objective within 1/M sum_i KL(pi_old,i' || pi(theta_i')) <= max_kl.

The metric is the Fisher information of the adapted policies pulled back through the adaptation,
F = 1/M sum_i sum_k w_k J_ik^T F_ik J_ik with J_ik = d theta_ik / d meta: at the old meta-parameters the Hessian of that
mean KL divergence, exactly (`metarl.fisher`). The direction comes from conjugate gradient, its length from the bound
and a backtracking line search (Schulman et al. 2015, appendix C).

Departure from Finn et al. 2017: their code takes finite differences of gradients for the Hessian's products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, final

from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.objective import MetaBatch, mean_objective, meta_gradient
from metarl.algorithms.outer import OBJECTIVE_SETTINGS, Update, objective_metrics, squared_norm
from metarl.fisher import AdaptedFisher, PolicyFisher
from metarl.inner_loop import InnerLoop, MetaJacobian
from metarl.memory import SavedBytes, graph_budget
from metarl.ops.tree import add_all, all_finite, select_tasks
from metarl.ops.trust_region import TrustRegionStep, trust_region_step
from metarl.parallel import TaskChunks
from metarl.policies import per_task
from metarl.rollout_adaptation import RolloutAdaptation
from metarl.types import Params


def fisher_metric(
    inner: InnerLoop, meta: Params, batch: MetaBatch, config: LearnerConfig, chunks: TaskChunks
) -> Callable[[Params], Params]:
    """`v -> F v`, the Hessian at `meta` of the mean KL divergence after adaptation.

    The graphs of as many chunks as fit `memory_budget_mb` are built once; the others are rebuilt for every product.
    """
    num_tasks = batch.metric_samples[0].valid.shape[0]
    apply, distribution = per_task(inner.policy), inner.policy.distribution

    def build(tasks: slice) -> AdaptedFisher:
        points, samples = select_tasks((batch.trajectory, batch.metric_samples), tasks)
        fishers = {
            k: (weight, PolicyFisher(apply, distribution, points[k], samples[k]))
            for k, weight in config.objective_weights().items()
        }
        return AdaptedFisher(MetaJacobian(inner, meta, points, samples[:-1]), fishers)

    slices = chunks.slices(num_tasks)
    with SavedBytes() as saved:
        first = build(slices[0])
    device = batch.metric_samples[0].valid.device
    budget = config.memory_budget_mb * 2**20 or graph_budget(device)
    num_kept = min(max(budget // max(saved.total, 1), 1), len(slices))
    blocks: list[AdaptedFisher | slice] = [first, *chunks.map_items(build, slices[1:num_kept]), *slices[num_kept:]]

    def product(vector: Params) -> Params:
        def of_block(block: AdaptedFisher | slice) -> Params:
            return (build(block) if isinstance(block, slice) else block).product(vector)

        return add_all(chunks.map_items(of_block, blocks), 1 / num_tasks)

    return product


def trust_region_update(
    inner: InnerLoop, meta: Params, batch: MetaBatch, config: LearnerConfig, chunks: TaskChunks
) -> tuple[TrustRegionStep, float, float]:
    """One trust-region step: the step, the gradient's norm, and the inner KL divergence of what was tried last."""
    inner_kl = 0.0

    def evaluate(candidate: Params) -> tuple[float, float]:
        nonlocal inner_kl
        value, kl, inner_kl = mean_objective(inner, candidate, batch, config, chunks)
        return value, kl

    gradient, value = meta_gradient(inner, meta, batch, config, chunks)
    step = trust_region_step(
        meta,
        gradient,
        fisher_metric(inner, meta, batch, config, chunks),
        evaluate,
        value,
        max_kl=config.max_kl,
        cg_iters=config.cg_iters,
        cg_damping=config.cg_damping,
        cg_tolerance=config.cg_tolerance,
        line_search_steps=config.line_search_steps,
        line_search_decay=config.line_search_decay,
    )
    return step, squared_norm(gradient) ** 0.5, inner_kl if step.accepted else 0.0


@final
class TrustRegion:
    """One natural-gradient step per iteration, within a KL divergence of `max_kl`."""

    reads: ClassVar[tuple[str, ...]] = (
        *(*OBJECTIVE_SETTINGS, "max_kl", "cg_iters", "cg_damping", "cg_tolerance", "fvp_fraction"),
        *("line_search_steps", "line_search_decay"),
    )
    needs_query: ClassVar[bool] = True

    def __init__(self, inner: InnerLoop, meta: Params, config: LearnerConfig, chunks: TaskChunks) -> None:
        self._inner, self._config, self._chunks = inner, config, chunks
        self.metric_names = (
            *("line_search/accepted", "line_search/fraction", "line_search/evaluations", "cg_residual"),
            *objective_metrics(config),
        )

    def update(self, meta: Params, data: RolloutAdaptation) -> Update:
        batch = MetaBatch.of(data, self._config)
        step, gradient_norm, inner_kl = trust_region_update(self._inner, meta, batch, self._config, self._chunks)
        if not (math.isfinite(gradient_norm) and math.isfinite(step.cg_residual) and all_finite(step.params)):
            return Update(None, {"gradient_norm": gradient_norm, "cg_residual": step.cg_residual})
        values = (
            *(float(step.accepted), step.step_fraction, float(step.line_search_steps), step.cg_residual),
            *(step.kl, step.expected_gain, step.actual_gain, gradient_norm, inner_kl),
        )
        return Update(step.params, dict(zip(self.metric_names, values, strict=False)))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], meta: Params) -> None:
        """There is no state."""
