"""The switchboard: every gradient-based meta-RL learner of this package is one choice of these settings.

Inner estimator x outer optimiser x switches. What a combination means is documented at its fields; a combination that
means nothing is refused in one sentence by `metarl.algorithms.composition`; `metarl.algorithms.learners` names the
published ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from metarl.collect import worlds_for_budget
from metarl.inner_loop import Adapted, LearnedLR
from metarl.policy_gradient import PolicyInnerLoop, policy_inner_loop
from metarl.rollout_adaptation import AdvantageSettings
from metarl.types import Policy

CONTEXT_DIM = 5
"""Length of a context parameter, where one adapts."""


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of a learner; the defaults are those published for MAML-TRPO in locomotion.

    Attributes:
        meta_batch_size: Tasks per iteration.
        episodes_per_task: Episodes per task and phase, unless steps_per_task is set.
        steps_per_task: Budget of time steps per task and phase (whole episodes until it is reached); 0 uses
            episodes_per_task.
        num_inner_steps: Inner gradient steps in training, each on fresh rollouts.
        inner_estimator: Objective of an inner step: reinforce (Finn et al. 2017), lvc (the likelihood ratio: low
            variance curvature, Rothfuss et al. 2019) or dice (Foerster et al. 2018). They take the same inner step and
            differ in the meta-gradient.
        inner_lr: Inner step size alpha of the first inner step.
        later_lr_factor: Step size of every later inner step, as a share of inner_lr, in training and at test time
            (the published test protocol halves it after the first step).
        learned_lr: Learn the inner step sizes, one per parameter entry, starting from the two above: shared by all
            inner steps (Meta-SGD), per_step, or no.
        adapted: What inner steps change: all parameters, the head alone (ANIL), or the context alone (CAVIA; needs a
            policy with context_dim above 0).
        first_order: Ignore the second-order terms of the meta-gradient (FOMAML).
        step_weights: Weights of the policies after inner steps 1 .. K in the meta-objective and the trust region
            (the multi-step loss of Antoniou et al. 2019; scaled to sum to 1). Empty: the policies after the last step
            alone, which is the published objective and says nothing about any other step.
        exploration_credit: Weight of E-MAML's term (Stadie et al. 2018), which credits the rollouts that an inner step
            was taken on with the return after it; 0 leaves it out. 1 weighs mean scores by returns standardised over
            tasks, as published code does; the unbiased weight is several times larger, and noisier (docs/e-maml.md).
        inner_kl_penalty: Weight of the mean KL divergence, over the inner steps, from the policies that collected the
            rollouts of each step to the new ones (ProMP's eta); 0 leaves it out.
        gamma: Discount factor.
        gae_lambda: Lambda of generalized advantage estimation.
        bootstrap_truncated: Value the state in which the horizon cut an episode off, instead of 0.
        outer_optimizer: How the meta-parameters move: trpo (natural gradient in a trust region), adam (gradient
            ascent), reptile (towards the adapted parameters), or none (they stay: a reference).
        outer_lr: Step size of adam, and of reptile.
        outer_epochs: Steps that adam takes on the rollouts of one iteration: 1 is the policy gradient.
        clip_range: Adam ascends the surrogate with ratios clipped to 1 - clip_range .. 1 + clip_range (PPO); 0 does
            not clip.
        max_kl: Trust-region size: mean KL divergence of the adapted policies per iteration (trpo, like all below but
            the last two).
        cg_iters: Conjugate-gradient iterations.
        cg_damping: Added to the diagonal of the Fisher matrix.
        cg_tolerance: Relative residual at which conjugate gradient stops early; 0 runs all iterations.
        fvp_fraction: Share of the tasks that enters the Fisher matrix (gradient and line search stay exact). Below 1
            for speed.
        line_search_steps: Largest number of step lengths tried.
        line_search_decay: Factor from one step length to the next.
        chunk_size: Tasks handled together in the update; 0 takes as many as keep a layer's activations in cache (on a
            GPU: as many as fit its free memory).
        memory_budget_mb: Graphs kept for conjugate gradient; beyond it they are rebuilt for every product. 0 takes 1500
            (on a GPU: half of its free memory).
    """

    meta_batch_size: int = 40
    episodes_per_task: int = 20
    steps_per_task: int = 0
    num_inner_steps: int = 1
    inner_estimator: str = "reinforce"
    inner_lr: float = 0.1
    later_lr_factor: float = 0.5
    learned_lr: LearnedLR = "no"
    adapted: Adapted = "all"
    first_order: bool = False
    step_weights: tuple[float, ...] = ()
    exploration_credit: float = 0.0
    inner_kl_penalty: float = 0.0
    gamma: float = 0.99
    gae_lambda: float = 1.0
    bootstrap_truncated: bool = False
    outer_optimizer: str = "trpo"
    outer_lr: float = 1e-3
    outer_epochs: int = 1
    clip_range: float = 0.0
    max_kl: float = 0.01
    cg_iters: int = 10
    cg_damping: float = 1e-5
    cg_tolerance: float = 0.0
    fvp_fraction: float = 1.0
    line_search_steps: int = 15
    line_search_decay: float = 0.8
    chunk_size: int = 0
    memory_budget_mb: int = 0

    def inner_loop(self, policy: Policy) -> PolicyInnerLoop:
        """How `policy` adapts under these settings."""
        return policy_inner_loop(
            policy,
            estimator=self.inner_estimator,
            inner_lr=self.inner_lr,
            later_lr_factor=self.later_lr_factor,
            learned_lr=self.learned_lr,
            num_learned_steps=self.num_inner_steps,
            adapted=self.adapted,
            first_order=self.first_order,
        )

    @property
    def context_dim(self) -> int:
        """Length of the context parameter that a policy needs under these settings; 0 for none."""
        return CONTEXT_DIM if self.adapted == "context" else 0

    def worlds_per_task(self, horizon: int) -> int:
        """Worlds per task that collect one phase's data at once: one per episode, or enough for the step budget."""
        return worlds_for_budget(self.steps_per_task, horizon) if self.steps_per_task else self.episodes_per_task

    def objective_weights(self) -> dict[int, float]:
        """Inner step k -> weight of the policies after k steps in the meta-objective; they sum to 1."""
        if not self.step_weights:
            return {self.num_inner_steps: 1.0}
        total = sum(self.step_weights)
        return {k: weight / total for k, weight in enumerate(self.step_weights, start=1) if weight}

    def advantage_settings(self) -> AdvantageSettings:
        """How advantages are estimated, for `adapt_on_rollouts`."""
        return AdvantageSettings(self.gamma, self.gae_lambda, self.bootstrap_truncated)
