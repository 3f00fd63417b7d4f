r"""Outer optimisers: how the meta-parameters move after an iteration's rollouts.

`TrustRegion` is in `metarl.algorithms.trust_region`; here are the interface and the others:

    GradientAscent   meta <- Adam(meta, grad J(meta)), `outer_epochs` times on the same rollouts
    Reptile          meta <- meta + eps (1/M sum_i theta_iK - meta)
    NoUpdate         meta <- meta

| symbol    | here                     | meaning                                                      |
|-----------|--------------------------|--------------------------------------------------------------|
| J         | `mean_objective`         | meta-objective of the recorded rollouts, clipped if asked     |
| theta_iK  | `data.trajectory[-1]`    | task i's parameters after the inner steps                     |
| eps       | config.outer_lr          | step size                                                     |

Departures: PPO's mini-batches are whole iterations here (an adaptation needs all its support data); Reptile's inner
optimiser is gradient ascent on fresh rollouts.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, final

import torch

from metarl.adam import Adam
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.objective import MetaBatch, mean_objective, meta_gradient
from metarl.learner_state import check_no_moments
from metarl.ops.tree import all_finite
from metarl.parallel import TaskChunks
from metarl.policy_gradient import PolicyInnerLoop
from metarl.rollout_adaptation import RolloutAdaptation
from metarl.types import Params


class Update(NamedTuple):
    """Outcome of an outer step.

    Attributes:
        meta: New meta-parameters; None if they would not be finite. The optimiser's state is then as before.
        metrics: What it did, by the names of docs/learners.md.
    """

    meta: Params | None
    metrics: dict[str, float]


class OuterOptimizer(Protocol):
    """What moves the meta-parameters.

    Attributes:
        reads: The fields of `LearnerConfig` that are read by some outer optimisers only, and by this one.
        needs_query: Whether rollouts of the policies after the last inner step are wanted.
        metric_names: What `update` reports; zeros are logged for one that was skipped.
    """

    reads: ClassVar[tuple[str, ...]]
    needs_query: ClassVar[bool]

    @property
    def metric_names(self) -> tuple[str, ...]: ...

    def __init__(self, inner: PolicyInnerLoop, meta: Params, config: LearnerConfig, chunks: TaskChunks) -> None: ...

    def update(self, meta: Params, data: RolloutAdaptation) -> Update:
        """Where `meta`, which is only read, moves to after these rollouts."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What training continues from: tensors, numbers, and dictionaries of them."""
        ...

    def load_state_dict(self, state: dict[str, Any], meta: Params) -> None:
        """Continues from what `state_dict` returned.

        Raises:
            ValueError: If it does not fit the meta-parameters.
        """
        ...


def squared_norm(params: Params) -> float:
    """Sum of squares of all entries, in float64."""
    return float(torch.stack([value.double().square().sum() for value in params.values()]).sum())


OBJECTIVE_SETTINGS = (
    *("inner_estimator", "first_order", "learned_lr", "step_weights", "exploration_credit", "inner_kl_penalty"),
)
"""What an outer optimiser reads that takes the gradient of the meta-objective."""


def objective_metrics(config: LearnerConfig) -> tuple[str, ...]:
    """Metrics of a step on the meta-objective; `inner_kl` is there where the objective has it at hand."""
    measured = config.exploration_credit or config.inner_kl_penalty
    return ("kl", "expected_gain", "actual_gain", "gradient_norm", *(("inner_kl",) if measured else ()))


@final
class GradientAscent:
    """`outer_epochs` Adam steps on the meta-objective of one iteration's rollouts (Kingma and Ba 2015).

    One step without clipping is the meta-policy gradient (VPG); several with `clip_range` are MAML-PPO and, with the
    likelihood ratio as inner objective and the inner KL penalty, ProMP (Rothfuss et al. 2019, algorithm 1).
    """

    reads: ClassVar[tuple[str, ...]] = (*OBJECTIVE_SETTINGS, "outer_lr", "outer_epochs", "clip_range")
    needs_query: ClassVar[bool] = True

    def __init__(self, inner: PolicyInnerLoop, meta: Params, config: LearnerConfig, chunks: TaskChunks) -> None:
        self.metric_names = objective_metrics(config)
        self._inner, self._config, self._chunks = inner, config, chunks
        self._adam = Adam(meta, config.outer_lr, maximize=True)

    def update(self, meta: Params, data: RolloutAdaptation) -> Update:
        batch = MetaBatch.of(data, self._config)
        problem = (batch, self._config, self._chunks)
        before = self._adam.state_dict()
        first, value = meta_gradient(self._inner, meta, *problem)
        gradient, moved = first, meta
        for epoch in range(self._config.outer_epochs):
            if epoch:
                gradient, _ = meta_gradient(self._inner, moved, *problem)
            stepped = self._adam.step(moved, gradient)
            if stepped is None or not all_finite(stepped):
                self._adam.load_state_dict(before)
                return Update(None, {"gradient_norm": squared_norm(gradient) ** 0.5})
            moved = stepped
        after, kl, inner_kl = mean_objective(self._inner, moved, *problem)
        expected = sum(float((first[name] * (moved[name] - meta[name])).double().sum()) for name in meta)
        metrics = {
            "kl": kl,
            "inner_kl": inner_kl,
            "expected_gain": expected,
            "actual_gain": after - value,
            "gradient_norm": squared_norm(first) ** 0.5,
        }
        return Update(moved, {name: metrics[name] for name in self.metric_names})

    def state_dict(self) -> dict[str, Any]:
        return self._adam.state_dict()

    def load_state_dict(self, state: dict[str, Any], meta: Params) -> None:
        self._adam.load_state_dict(state)


@final
class Reptile:
    """meta <- meta + outer_lr * (1/M sum_i theta_iK - meta) (Nichol, Achiam and Schulman 2018, eq. 5).

    It needs no gradient through the inner loop and no rollouts after it.
    """

    reads: ClassVar[tuple[str, ...]] = ("outer_lr",)
    needs_query: ClassVar[bool] = False
    metric_names = ("gradient_norm",)

    def __init__(self, inner: PolicyInnerLoop, meta: Params, config: LearnerConfig, chunks: TaskChunks) -> None:
        self._lr = config.outer_lr

    def update(self, meta: Params, data: RolloutAdaptation) -> Update:
        last = data.trajectory[-1]
        direction = {name: last[name].mean(0) - value for name, value in meta.items()}
        moved = {name: value + self._lr * direction[name] for name, value in meta.items()}
        metrics = {"gradient_norm": squared_norm(direction) ** 0.5}
        return Update(moved if all_finite(moved) else None, metrics)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], meta: Params) -> None:
        check_no_moments(state)


@final
class NoUpdate:
    """The meta-parameters stay as they are: a reference that only adapts."""

    reads: ClassVar[tuple[str, ...]] = ()
    needs_query: ClassVar[bool] = True
    metric_names = ()

    def __init__(self, inner: PolicyInnerLoop, meta: Params, config: LearnerConfig, chunks: TaskChunks) -> None:
        """There is nothing to set up."""

    def update(self, meta: Params, data: RolloutAdaptation) -> Update:
        return Update(meta, {})

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], meta: Params) -> None:
        check_no_moments(state)
