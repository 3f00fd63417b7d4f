r"""The meta-objective of policy-gradient meta-learning, and its gradient.

    max_meta  1/M sum_i [ sum_k w_k E_{D_k ~ pi(theta_ik)} rho_ik A  +  c sum_{k<K} E_{D_k} rho_ik R_ik
                          -  eta 1/K sum_{k<K} KL_ik ]

over recorded data: theta_ik(meta) repeats the inner loop on the recorded rollouts D_0 .. D_{k-1}, so that it is
differentiable in the meta-parameters. Three terms, each task's own:

* gain: the surrogate of the policies after inner steps with weight w_k (all on the last step as published), ratios
  rho = pi(a|s; theta_ik) / pi_old(a|s), clipped or not. Its gradient at the old meta-parameters is the meta-policy
  gradient (Finn et al. 2017, algorithm 3).
* exploration: E-MAML's term. The distribution of what an inner step learns from depends on the parameters too: with
  D ~ p_theta, d/dtheta E_D[V(theta'(D))] = E_D[ d V(theta'(D)) / dtheta + V(theta'(D)) grad log p_theta(D) ]
  (Stadie et al. 2018). The surrogate of the second part is a ratio again, over the support rollouts.
* inner KL: ProMP's penalty, of the policies that collected the support rollouts against the new ones.

| symbol   | here                 | shape                | meaning                                            |
|----------|----------------------|----------------------|----------------------------------------------------|
| theta_ik | trajectory[k]        | {name: [task, ...]}  | task i's parameters after k inner steps              |
| D_k      | samples[k]           | [task, row, ...]     | rollouts of theta_ik: support of step k, query of k  |
| A        | Samples.advantages   | [task, row]          | normalised advantages, linear baseline               |
| R_ik     | MetaBatch.credit     | [task, K]            | return after step k, standardised over tasks          |
| w_k      | objective_weights()  | K numbers            | weight of the policies after k steps                 |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metarl.algorithms.config import LearnerConfig
from metarl.functional import per_task
from metarl.inner_loop import MetaJacobian
from metarl.ops import surrogate
from metarl.ops.masked import masked_mean
from metarl.ops.tree import add_all
from metarl.parallel import TaskChunks
from metarl.policy_gradient import PolicyInnerLoop
from metarl.rollout_adaptation import RolloutAdaptation
from metarl.types import Params, Samples


class MetaBatch(NamedTuple):
    """What one update reads; every tensor leads with the task axis.

    Attributes:
        samples: Collected with theta_0 .. theta_K: number k is the support data of inner step k and the query data of
            the policies after k steps.
        credit: `[task, K]`, E-MAML's weight of each support rollout; 0 where it is off.
    """

    samples: list[Samples]
    credit: Tensor

    @staticmethod
    def of(data: RolloutAdaptation, config: LearnerConfig) -> MetaBatch:
        """Arranges the rollouts of one iteration."""
        samples = [data.samples(k) for k in range(len(data.rollouts))]
        return MetaBatch(samples, exploration_credit(data, config))

    @property
    def num_tasks(self) -> int:
        """M."""
        return len(self.credit)


def exploration_credit(data: RolloutAdaptation, config: LearnerConfig) -> Tensor:
    """Credit `[task, K]` of the rollouts that inner step k was taken on: `exploration_credit` times what followed.

    What followed are the returns after the steps k+1 .. K: their mean, weighted as in the objective, standardised over
    tasks, times the sum of their weights. (What stands before step k is no consequence of its rollouts, and those
    rollouts' own return is in the objective already.) The mean over tasks is the baseline. It is a constant for a
    task's own rollouts but for their own share in it; with that left out it differs by the factor M / (M - 1) alone.
    """
    returns = {k: data.rollouts[k].mean_return() for k in config.objective_weights()}
    credit = next(iter(returns.values())).new_zeros(len(data.rollouts[0].valid), len(data.rollouts) - 1)
    if not config.exploration_credit:
        return credit
    for k in range(credit.shape[1]):
        following = {j: weight for j, weight in config.objective_weights().items() if j > k}
        if not following:
            continue
        share = sum(following.values())
        mean = torch.stack([weight * returns[j].double() for j, weight in following.items()]).sum(0) / share
        sd = mean.std(correction=0)
        # 0 where no task differs from another by more than the rounding of its return: there is nothing to credit.
        if float(sd) > 1e-6 * float(mean.abs().max()):
            credit[:, k] = config.exploration_credit * share * (mean - mean.mean()) / sd
    return credit


class Objective(NamedTuple):
    """The meta-objective of each task, `[task]` each.

    Attributes:
        total: What the outer loop maximises.
        kl: KL divergence of the adapted policies, old || new, weighted as in the objective.
        inner_kl: KL divergence of the policies before inner steps, old || new, mean over the steps.
    """

    total: Tensor
    kl: Tensor
    inner_kl: Tensor


def objective_at(
    inner: PolicyInnerLoop,
    trajectory: Sequence[Params],
    samples: Sequence[Samples],
    credit: Tensor,
    config: LearnerConfig,
    with_kl: bool = True,
) -> Objective:
    """The meta-objective as a function of the adapted parameters, differentiable with respect to them.

    Args:
        inner: The inner loop.
        trajectory: theta_0 .. theta_K.
        samples: Collected before each inner step and after the last.
        credit: See `MetaBatch`.
        config: Settings.
        with_kl: Measure divergences that the total does not contain, too; without it they are 0.
    """
    num_steps = len(samples) - 1
    apply, distribution = per_task(inner.module), inner.module.distribution
    weights = config.objective_weights()
    before_steps = range(num_steps) if config.exploration_credit or config.inner_kl_penalty else ()
    total, kl, inner_kl = (credit.new_zeros(len(credit)) for _ in range(3))
    for k in sorted({*weights, *before_steps}):
        data = samples[k]
        new = apply(trajectory[k], data.observations)
        log_prob = distribution.log_prob(new, data.actions)
        if k in weights:
            gain = surrogate.likelihood_ratio(
                log_prob, data.log_prob, data.advantages, data.valid, clip_range=config.clip_range
            )
            total = total + weights[k] * gain
        if k in before_steps and config.exploration_credit:
            crediting = credit[:, k, None].expand_as(data.advantages).to(log_prob)
            total = total + surrogate.likelihood_ratio(log_prob, data.log_prob, crediting, data.valid)
        if with_kl or (k in before_steps and config.inner_kl_penalty):
            divergence = masked_mean(distribution.kl(data.dist_params, new), data.valid)
            kl = kl + weights.get(k, 0.0) * divergence
            inner_kl = inner_kl + (divergence / num_steps if k in before_steps else 0.0)
    if config.inner_kl_penalty:
        total = total - config.inner_kl_penalty * inner_kl
    return Objective(total, kl, inner_kl)


def meta_objective(
    inner: PolicyInnerLoop, meta: Params, samples: Sequence[Samples], credit: Tensor, config: LearnerConfig
) -> Objective:
    """The meta-objective at `meta` on recorded samples: the inner loop repeated on them, then `objective_at`."""
    trajectory = inner.adapt(meta, samples[:-1], len(credit), len(samples) - 1)
    return objective_at(inner, trajectory, samples, credit, config)


def mean_objective(
    inner: PolicyInnerLoop, meta: Params, batch: MetaBatch, config: LearnerConfig, chunks: TaskChunks
) -> tuple[float, float, float]:
    """Means over tasks of the objective, the KL divergence and the inner KL divergence at `meta`."""

    def of_chunk(batch: MetaBatch) -> Tensor:
        with torch.no_grad():
            return torch.stack(meta_objective(inner, meta, batch.samples, batch.credit, config))

    parts = chunks.map(of_chunk, batch.num_tasks, batch)
    total, kl, inner_kl = (torch.cat(parts, dim=1).double().sum(-1) / batch.num_tasks).tolist()
    return total, kl, inner_kl


def pulled_back_gradient(
    inner: PolicyInnerLoop, jacobian: MetaJacobian, batch: MetaBatch, config: LearnerConfig
) -> tuple[Params, float]:
    r"""Gradient of a block's summed objective, $\sum_i \sum_k J_{ik}^T \partial / \partial\theta_{ik}$, and its value.

    Args:
        inner: The inner loop.
        jacobian: The block adapted on the batch's support samples.
        batch: The block.
        config: Settings.
    """
    with torch.enable_grad():
        trajectory = [
            {name: value.detach().requires_grad_() for name, value in theta.items()} for theta in jacobian.points
        ]
        total = objective_at(inner, trajectory, batch.samples, batch.credit, config, with_kl=False).total
        leaves = [value for theta in trajectory for value in theta.values()]
        gradients = iter(torch.autograd.grad(total.sum(), leaves, allow_unused=True))
    cotangents: list[Params | None] = []
    for theta in trajectory:
        own = {name: next(gradients) for name in theta}
        used = any(value is not None for value in own.values())
        zeroed = {name: torch.zeros_like(theta[name]) if value is None else value for name, value in own.items()}
        cotangents.append(zeroed if used else None)
    return jacobian.transposed_product(cotangents), float(total.detach().sum())


def meta_gradient(
    inner: PolicyInnerLoop, meta: Params, batch: MetaBatch, config: LearnerConfig, chunks: TaskChunks
) -> tuple[Params, float]:
    """Exact gradient of the mean meta-objective, and its value."""

    def of_chunk(batch: MetaBatch) -> tuple[Params, float]:
        jacobian = MetaJacobian(inner, meta, batch.num_tasks, batch.samples[:-1])
        return pulled_back_gradient(inner, jacobian, batch, config)

    return mean_gradient(chunks.map(of_chunk, batch.num_tasks, batch), batch.num_tasks)


def mean_gradient(parts: Sequence[tuple[Params, float]], num_tasks: int) -> tuple[Params, float]:
    """Mean over tasks of (gradient, value) summed over blocks of them."""
    gradient = add_all([gradient for gradient, _ in parts], 1 / num_tasks)
    return gradient, sum(value for _, value in parts) / num_tasks
