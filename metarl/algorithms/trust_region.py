r"""The trust-region outer step: maximise the meta-objective within 1/M sum_i KL(pi_old,i' || pi(theta_i')) <= max_kl.

The metric is the Fisher information of the adapted policies pulled back through the adaptation,
F = 1/M sum_i sum_k w_k J_ik^T F_ik J_ik with J_ik = d theta_ik / d meta: at the old meta-parameters the Hessian of that
mean KL divergence, exactly (`metarl.fisher`). The direction comes from conjugate gradient, its length from the bound
and a backtracking line search (Schulman et al. 2015, appendix C).

| symbol  | here                                    | meaning                                              |
|---------|-----------------------------------------|------------------------------------------------------|
| F       | `LinearizedBatch.fisher_product`        | the metric                                           |
| J_ik    | `metarl.inner_loop.MetaJacobian`        | task i's parameters after k steps, differentiated    |
| w_k     | config.objective_weights()              | weight of the policies after k steps                 |
| g       | `LinearizedBatch.gradient`              | gradient of the meta-objective, from the same graphs |

Departure from Finn et al. 2017: their code takes finite differences of gradients for the Hessian's products.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, ClassVar, NamedTuple, final

from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.objective import MetaBatch, mean_gradient, mean_objective, pulled_back_gradient
from metarl.algorithms.outer import OBJECTIVE_SETTINGS, Update, objective_metrics, squared_norm
from metarl.fisher import AdaptedFisher, PolicyFisher
from metarl.functional import per_task
from metarl.inner_loop import MetaJacobian
from metarl.learner_state import check_no_moments
from metarl.memory import SavedBytes, graph_budget
from metarl.ops.tree import add_all, all_finite, select_tasks
from metarl.ops.trust_region import TrustRegionStep, trust_region_step
from metarl.parallel import TaskChunks
from metarl.policy_gradient import PolicyInnerLoop
from metarl.rollout_adaptation import RolloutAdaptation
from metarl.types import Params


def num_metric_tasks(num_tasks: int, config: LearnerConfig) -> int:
    """How many tasks, the first ones, enter the metric.

    Whole tasks, not a share of every task's episodes: fewer episodes make each Hessian H in J = I - alpha H noisier,
    and J^T F J keeps the variance of that noise as spurious curvature (docs/performance.md).
    """
    return max(1, round(config.fvp_fraction * num_tasks))


class _Block(NamedTuple):
    """Some tasks of a batch, linearised."""

    jacobian: MetaJacobian
    fisher: AdaptedFisher


@final
class LinearizedBatch:
    """A batch adapted at `meta`, its graphs built once for the gradient and for all products with the metric.

    The graphs of as many chunks as fit `memory_budget_mb` are kept; the others are built anew for every use.

    Args:
        inner: The inner loop.
        meta: Meta-parameters.
        batch: What was collected.
        config: Settings.
        chunks: How tasks are split.
    """

    def __init__(
        self, inner: PolicyInnerLoop, meta: Params, batch: MetaBatch, config: LearnerConfig, chunks: TaskChunks
    ) -> None:
        self._inner, self._meta, self._batch, self._config, self._chunks = inner, meta, batch, config, chunks
        self._num_metric_tasks = num_metric_tasks(batch.num_tasks, config)
        slices = chunks.slices(self._num_metric_tasks)
        with SavedBytes() as saved:
            first = self._build(slices[0])
        budget = config.memory_budget_mb * 2**20 or graph_budget(batch.credit.device)
        num_kept = min(max(budget // max(saved.total, 1), 1), len(slices))
        kept = [first, *chunks.map_items(self._build, slices[1:num_kept])]
        self._blocks: list[tuple[slice, _Block | None]] = list(itertools.zip_longest(slices, kept))

    def gradient(self) -> tuple[Params, float]:
        """Exact gradient of the mean meta-objective over all tasks, and its value."""
        start = self._num_metric_tasks
        others = self._chunks.slices(self._batch.num_tasks - start)
        outside = [(slice(start + tasks.start, start + tasks.stop), None) for tasks in others]

        def of_block(item: tuple[slice, _Block | None]) -> tuple[Params, float]:
            tasks, block = item
            part = select_tasks(self._batch, tasks)
            jacobian = self._jacobian(part) if block is None else block.jacobian
            return pulled_back_gradient(self._inner, jacobian, part, self._config)

        return mean_gradient(self._chunks.map_items(of_block, [*self._blocks, *outside]), self._batch.num_tasks)

    def fisher_product(self, vector: Params) -> Params:
        """F v: the Hessian at `meta` of the mean KL divergence after adaptation, times a vector."""

        def of_block(item: tuple[slice, _Block | None]) -> Params:
            tasks, block = item
            return (block or self._build(tasks)).fisher.product(vector)

        return add_all(self._chunks.map_items(of_block, self._blocks), 1 / self._num_metric_tasks)

    def _jacobian(self, part: MetaBatch) -> MetaJacobian:
        return MetaJacobian(self._inner, self._meta, part.num_tasks, part.samples[:-1])

    def _build(self, tasks: slice) -> _Block:
        part = select_tasks(self._batch, tasks)
        jacobian, policy = self._jacobian(part), self._inner.module
        fishers = {
            k: (weight, PolicyFisher(per_task(policy), policy.distribution, jacobian.points[k], part.samples[k]))
            for k, weight in self._config.objective_weights().items()
        }
        return _Block(jacobian, AdaptedFisher(jacobian, fishers))


def trust_region_update(
    inner: PolicyInnerLoop, meta: Params, batch: MetaBatch, config: LearnerConfig, chunks: TaskChunks
) -> tuple[TrustRegionStep, float, float]:
    """One trust-region step: the step, the gradient's norm, and the inner KL divergence of what was tried last."""
    inner_kl = 0.0

    def evaluate(candidate: Params) -> tuple[float, float]:
        nonlocal inner_kl
        value, kl, inner_kl = mean_objective(inner, candidate, batch, config, chunks)
        return value, kl

    linearized = LinearizedBatch(inner, meta, batch, config, chunks)
    gradient, value = linearized.gradient()
    step = trust_region_step(
        meta,
        gradient,
        linearized.fisher_product,
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

    def __init__(self, inner: PolicyInnerLoop, meta: Params, config: LearnerConfig, chunks: TaskChunks) -> None:
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
        metrics = {
            "line_search/accepted": float(step.accepted),
            "line_search/fraction": step.step_fraction,
            "line_search/evaluations": float(step.line_search_steps),
            "cg_residual": step.cg_residual,
            "kl": step.kl,
            "inner_kl": inner_kl,
            "expected_gain": step.expected_gain,
            "actual_gain": step.actual_gain,
            "gradient_norm": gradient_norm,
        }
        return Update(step.params, {name: metrics[name] for name in self.metric_names})

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], meta: Params) -> None:
        check_no_moments(state)
