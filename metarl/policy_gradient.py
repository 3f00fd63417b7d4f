r"""The inner loop of a policy-gradient learner: gradient ascent on an estimate of a task's expected return.

L(theta; samples) = -J_inner(theta; samples),     J_inner one of `ESTIMATORS`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from metarl.functional import per_task
from metarl.inner_loop import InnerLoop
from metarl.ops import surrogate
from metarl.types import Params, Policy, Samples

Estimator: TypeAlias = Callable[[Tensor, Samples], Tensor]
"""(log-probabilities `[task, row]` under the current parameters, samples) -> objective `[task]`, to be maximised."""

ESTIMATORS: dict[str, Estimator] = {
    "reinforce": lambda log_prob, s: surrogate.reinforce(log_prob, s.advantages, s.valid),
    "lvc": lambda log_prob, s: surrogate.likelihood_ratio(log_prob, s.log_prob, s.advantages, s.valid),
    "dice": lambda log_prob, s: surrogate.dice(log_prob, s.log_prob, s.advantages, s.valid, s.starts),
}
"""Inner objectives by name. Where the samples come from they share their gradient and differ in their Hessians."""

PolicyInnerLoop: TypeAlias = InnerLoop[Policy]


def policy_inner_loop(policy: Policy, estimator: str = "reinforce", **switches: Any) -> PolicyInnerLoop:
    """How a policy adapts on rollouts.

    Args:
        policy: The policy module.
        estimator: Name of the inner objective, one of `ESTIMATORS`.
        **switches: The other fields of `InnerLoop`.

    Raises:
        ValueError: If a name is unknown, or the policy has no such part, or a context that does not adapt.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; it must be one of {', '.join(ESTIMATORS)}.")

    def loss(params: Params, samples: Samples) -> Tensor:
        log_prob = policy.distribution.log_prob(per_task(policy)(params, samples.observations), samples.actions)
        # Looked up at every call: an estimator may be replaced by name.
        return -ESTIMATORS[estimator](log_prob, samples)

    return InnerLoop(policy, loss, **switches)
