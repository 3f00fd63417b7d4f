r"""MAML-TRPO: model-agnostic meta-learning with a trust-region outer step (Finn, Abbeel and Levine 2017).

Meta-objective (algorithm 3; eq. 1 with the reinforcement-learning losses of eq. 4):

    max_theta  1/M sum_i  E_{query ~ pi(theta_i')} [ pi(a|s; theta_i') / pi_old(a|s) * A(s, a) ]
    theta_i' = theta + alpha * grad_theta E_{support ~ pi(theta)} [ log pi(a|s; theta) * A(s, a) ],   K times

(with `step_weights`: a weighted mean of that over the policies after inner steps 1 .. K) inside the trust region
1/M sum_i KL(pi_old,i' || pi(theta_i')) <= max_kl over query states. The gradient is exact, through every inner step;
`first_order` drops the second-order terms.

Departures from the paper: the KL metric is the exact Fisher matrix pulled back through the adaptation instead of
finite differences of gradients; support and query data are collected for K >= 1 inner steps, each with fresh
rollouts; steps are chosen by conjugate gradient and backtracking with the published settings.

| symbol  | here                | shape                  | meaning                                          |
|---------|---------------------|------------------------|--------------------------------------------------|
| theta   | params              | {name: [...]}          | meta-parameters                                  |
| theta_i'| trajectory[-1]      | {name: [task, ...]}    | parameters after K inner steps                   |
| alpha   | config.inner_lr     | scalar                 | inner step size                                  |
| A       | Samples.advantages  | [task, row]            | normalised advantages, linear baseline           |
| M       | meta_batch_size     | scalar                 | tasks per iteration                              |
| delta   | config.max_kl       | scalar                 | trust-region size                                |
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from metarl.adaptation import AdaptationJacobian, Loss, adapt
from metarl.agent import Agent
from metarl.collect import worlds_for_budget
from metarl.fisher import AdaptedFisher, PolicyFisher
from metarl.memory import KEPT_LAYERS, SavedBytes, graph_budget
from metarl.metrics import rollout_metrics, step_metrics
from metarl.noise import EVALUATION, TRAINING
from metarl.ops import surrogate
from metarl.ops.masked import masked_mean
from metarl.ops.tree import add_all, all_finite, expand_tasks, select_tasks
from metarl.ops.trust_region import TrustRegionStep, trust_region_step
from metarl.parallel import TaskChunks, cached_chunk_size, fitting_chunk_size, one_intra_op_thread
from metarl.policies import GaussianMLPPolicy, initial_params, per_task
from metarl.rollout_adaptation import AdvantageSettings, RolloutAdaptation, adapt_on_rollouts
from metarl.types import Params, Policy, Samples, TaskFamily


@dataclass(frozen=True)
class MAMLTRPOConfig:
    """Settings of MAML-TRPO; the defaults are the published ones for locomotion.

    Attributes:
        meta_batch_size: Tasks per iteration.
        episodes_per_task: Episodes per task and phase, unless steps_per_task is set.
        steps_per_task: Budget of time steps per task and phase (whole episodes until it is reached); 0 uses
            episodes_per_task.
        num_inner_steps: Inner gradient steps in training, each on fresh rollouts.
        inner_lr: Inner step size alpha of the first inner step.
        later_lr_factor: Step size of every later inner step, as a share of inner_lr, in training and at test time
            (the published test protocol halves it after the first step).
        step_weights: Weights of the policies after inner steps 1 .. K in the meta-objective and the trust region
            (Antoniou et al. 2019, section 4; scaled to sum to 1). Empty: the policies after the last step alone, which
            is the published objective and says nothing about any other step.
        first_order: Ignore the second-order terms of the meta-gradient.
        gamma: Discount factor.
        gae_lambda: Lambda of generalized advantage estimation.
        bootstrap_truncated: Value the state in which the horizon cut an episode off, instead of 0.
        max_kl: Trust-region size: mean KL divergence of the adapted policies per iteration.
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
    inner_lr: float = 0.1
    later_lr_factor: float = 0.5
    step_weights: tuple[float, ...] = ()
    first_order: bool = False
    gamma: float = 0.99
    gae_lambda: float = 1.0
    bootstrap_truncated: bool = False
    max_kl: float = 0.01
    cg_iters: int = 10
    cg_damping: float = 1e-5
    cg_tolerance: float = 0.0
    fvp_fraction: float = 1.0
    line_search_steps: int = 15
    line_search_decay: float = 0.8
    chunk_size: int = 0
    memory_budget_mb: int = 0

    def step_sizes(self, num_steps: int) -> list[float]:
        """Inner step sizes of the first `num_steps` steps."""
        return [self.inner_lr * (1.0 if k == 0 else self.later_lr_factor) for k in range(num_steps)]

    def objective_weights(self) -> dict[int, float]:
        """Inner step k -> weight of the policies after k steps in the meta-objective; they sum to 1."""
        if not self.step_weights:
            return {self.num_inner_steps: 1.0}
        if len(self.step_weights) != self.num_inner_steps:
            raise ValueError(
                f"step_weights has {len(self.step_weights)} entries; it needs num_inner_steps = {self.num_inner_steps}."
            )
        total = sum(self.step_weights)
        return {k: weight / total for k, weight in enumerate(self.step_weights, start=1) if weight}

    def advantage_settings(self) -> AdvantageSettings:
        """How advantages are estimated, for `adapt_on_rollouts`."""
        return AdvantageSettings(self.gamma, self.gae_lambda, self.bootstrap_truncated)


class MetaBatch(NamedTuple):
    """What one update reads; every tensor leads with the task axis.

    Attributes:
        trajectory: theta_0 .. theta_K of each task, as collection went through them.
        samples: Collected with theta_0 .. theta_K: number k is the support data of inner step k and the query data of
            the policies after k steps.
        metric_samples: Those of the tasks that enter the Fisher matrix, the first ones.
    """

    trajectory: list[Params]
    samples: list[Samples]
    metric_samples: list[Samples]

    @staticmethod
    def of(data: RolloutAdaptation, fvp_fraction: float) -> MetaBatch:
        """Arranges the rollouts of one iteration."""
        samples = [data.samples(k) for k in range(len(data.rollouts))]
        # Whole tasks, not a share of every task's episodes: fewer episodes make each Hessian H in J = I - alpha H
        # noisier, and J^T F J keeps the variance of that noise as spurious curvature (docs/performance.md).
        share = slice(max(1, round(fvp_fraction * samples[0].valid.shape[0])))
        return MetaBatch(data.trajectory, samples, select_tasks(samples, share))


def inner_loss(policy: Policy) -> Loss:
    """The published inner loss: minus the REINFORCE objective, per task `[task]`."""
    apply = per_task(policy)

    def loss(params: Params, batch: Samples) -> Tensor:
        log_prob = policy.distribution.log_prob(apply(params, batch.observations), batch.actions)
        return -surrogate.reinforce(log_prob, batch.advantages, batch.valid)

    return loss


def meta_objective(
    policy: Policy, params: Params, samples: Sequence[Samples], config: MAMLTRPOConfig
) -> tuple[Tensor, Tensor]:
    """Post-adaptation surrogate and KL divergence to the behaviour policies, `[task]` each.

    Args:
        policy: The policy module.
        params: Meta-parameters, per task (`[task, ...]`); the result is differentiable with respect to them.
        samples: Collected before each inner step and after the last.
        config: Settings.
    """
    support = samples[:-1]
    trajectory = adapt(
        params,
        support,
        inner_loss(policy),
        inner_lr=config.step_sizes(len(support)),
        first_order=config.first_order,
    )
    gain, kl = torch.zeros(()), torch.zeros(())
    for k, weight in config.objective_weights().items():
        query = samples[k]
        new = per_task(policy)(trajectory[k], query.observations)
        log_prob = policy.distribution.log_prob(new, query.actions)
        ratio_gain = surrogate.likelihood_ratio(log_prob, query.log_prob, query.advantages, query.valid)
        gain = gain + weight * ratio_gain
        kl = kl + weight * masked_mean(policy.distribution.kl(query.dist_params, new), query.valid)
    return gain, kl


def meta_gradient(
    policy: Policy, params: Params, samples: Sequence[Samples], config: MAMLTRPOConfig, chunks: TaskChunks
) -> tuple[Params, float]:
    """Exact gradient of the mean post-adaptation surrogate, and its value."""
    num_tasks = samples[0].valid.shape[0]

    def of_chunk(samples: list[Samples]) -> tuple[Params, float]:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        gain, _ = meta_objective(policy, expand_tasks(leaves, samples[0].valid.shape[0]), samples, config)
        gradient = torch.autograd.grad(gain.sum(), list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, gradient, strict=True)), float(gain.detach().sum())

    parts = chunks.map(of_chunk, num_tasks, list(samples))
    return add_all([gradient for gradient, _ in parts], 1 / num_tasks), sum(gain for _, gain in parts) / num_tasks


def fisher_metric(
    policy: Policy, batch: MetaBatch, config: MAMLTRPOConfig, chunks: TaskChunks
) -> Callable[[Params], Params]:
    """`v -> F v`, the Hessian at theta of the mean KL divergence after adaptation.

    The graphs of as many chunks as fit `memory_budget_mb` are built once; the others are rebuilt for every product.
    """
    num_tasks = batch.metric_samples[0].valid.shape[0]
    loss, apply = inner_loss(policy), per_task(policy)

    def build(tasks: slice) -> AdaptedFisher:
        points, samples = select_tasks((batch.trajectory, batch.metric_samples), tasks)
        support = samples[:-1]
        jacobian = AdaptationJacobian(
            points, support, loss, inner_lr=config.step_sizes(len(support)), first_order=config.first_order
        )
        fishers = {
            k: (weight, PolicyFisher(apply, policy.distribution, points[k], samples[k]))
            for k, weight in config.objective_weights().items()
        }
        return AdaptedFisher(jacobian, fishers, samples[0].valid.shape[0])

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


def update(
    policy: Policy, params: Params, batch: MetaBatch, config: MAMLTRPOConfig, chunks: TaskChunks
) -> tuple[TrustRegionStep, float]:
    """One trust-region step on the meta-objective: the step and the gradient's norm."""
    num_tasks = batch.samples[0].valid.shape[0]

    def evaluate(candidate: Params) -> tuple[float, float]:
        def of_chunk(samples: list[Samples]) -> Tensor:
            with torch.no_grad():
                shared = expand_tasks(candidate, samples[0].valid.shape[0])
                return torch.stack(meta_objective(policy, shared, samples, config))

        parts = chunks.map(of_chunk, num_tasks, batch.samples)
        gain, kl = (torch.cat(parts, dim=1).double().sum(-1) / num_tasks).tolist()
        return gain, kl

    gradient, value = meta_gradient(policy, params, batch.samples, config, chunks)
    norm = float(torch.stack([g.double().square().sum() for g in gradient.values()]).sum().sqrt())
    step = trust_region_step(
        params,
        gradient,
        fisher_metric(policy, batch, config, chunks),
        evaluate,
        value,
        max_kl=config.max_kl,
        cg_iters=config.cg_iters,
        cg_damping=config.cg_damping,
        cg_tolerance=config.cg_tolerance,
        line_search_steps=config.line_search_steps,
        line_search_decay=config.line_search_decay,
    )
    return step, norm


def make_chunks(
    config: MAMLTRPOConfig, policy: Policy, horizon: int, device: str, num_threads: int | None
) -> TaskChunks:
    """How the update splits tasks: `config.chunk_size`, or one chosen for the size of the policy and the data."""
    if config.chunk_size:
        return TaskChunks(config.chunk_size, num_threads if device == "cpu" else 1)
    rows = config.steps_per_task or config.episodes_per_task * horizon
    weights = [value for _, value in policy.named_parameters() if value.ndim > 1]
    layer_bytes = rows * max((value.shape[0] * value.element_size() for value in weights), default=1)
    if device == "cpu":
        return TaskChunks(cached_chunk_size(config.meta_batch_size, layer_bytes), num_threads)
    graph_bytes = KEPT_LAYERS * (len(weights) + 1) * (config.num_inner_steps + 1) * layer_bytes
    size = fitting_chunk_size(config.meta_batch_size, graph_bytes, graph_budget(torch.device(device)))
    return TaskChunks(size, num_threads=1)


@final
class MAMLTRPO:
    """The training loop: one `iterate` collects, adapts and updates.

    Everything random is a function of (seed, iteration, phase, task), so an iteration can be repeated from the
    parameters alone.

    Args:
        family: Task family.
        policy: Policy module; its parameters are where training starts.
        config: Settings.
        seed: Seed of tasks and noise.
        device: Where environments and parameters live.
        num_threads: Threads of environments and update; None takes the available cores.
    """

    def __init__(
        self,
        family: TaskFamily,
        policy: Policy,
        config: MAMLTRPOConfig,
        seed: int = 0,
        device: str = "cpu",
        num_threads: int | None = None,
    ) -> None:
        self.family, self.policy, self.config, self.seed = family, policy, config, seed
        self.params: Params = {name: value.to(device) for name, value in initial_params(policy).items()}
        self.iteration = 0
        self.env_steps = 0
        self.skipped_updates = 0
        self._device = device
        self.chunks = make_chunks(config, policy, family.horizon, device, num_threads)
        budget, episodes = config.steps_per_task, config.episodes_per_task
        if budget:
            episodes = worlds_for_budget(budget, family.horizon)
        self._env = family.batch(self._tasks(), episodes, device, num_threads=num_threads)

    @staticmethod
    def for_family(family: TaskFamily, config: MAMLTRPOConfig | None = None, seed: int = 0) -> MAMLTRPO:
        """A learner with a 100-100 tanh Gaussian policy of the family's sizes."""
        generator = torch.Generator().manual_seed(seed)
        policy = GaussianMLPPolicy(family.observation_dim, family.action_dim, generator=generator)
        return MAMLTRPO(family, policy, config or MAMLTRPOConfig(), seed)

    def adapt(self, task: Tensor | Sequence[float], num_steps: int = 1, episodes: int = 20, seed: int = 0) -> Agent:
        """Adapts to one task on episodes collected for it.

        Args:
            task: `[task_dim]`.
            num_steps: Inner steps.
            episodes: Episodes per inner step.
            seed: Noise seed.
        """
        data = adapt_on_rollouts(
            self.family.batch(
                torch.as_tensor(task, dtype=torch.float64).reshape(1, -1),
                episodes,
                self._device,
                num_threads=self.chunks.num_threads,
            ),
            self.policy,
            self.params,
            inner_loss(self.policy),
            inner_lr=self.config.step_sizes(num_steps),
            num_steps=num_steps,
            noise_key=(EVALUATION, seed),
            settings=self.config.advantage_settings(),
            measure_last=False,
        )
        return Agent(self.policy, {name: value[0] for name, value in data.trajectory[-1].items()})

    def _tasks(self) -> Tensor:
        size = self.config.meta_batch_size
        return self.family.sample_tasks(size, "train", self.seed, start=self.iteration * size)

    @one_intra_op_thread()
    def iterate(self) -> dict[str, float]:
        """Runs one iteration and returns its metrics (docs/maml-trpo.md lists them)."""
        config = self.config
        start, start_cpu = time.perf_counter(), time.process_time()
        self._env.set_tasks(self._tasks())
        data = adapt_on_rollouts(
            self._env,
            self.policy,
            self.params,
            inner_loss(self.policy),
            inner_lr=config.step_sizes(config.num_inner_steps),
            num_steps=config.num_inner_steps,
            noise_key=(TRAINING, self.seed, self.iteration),
            settings=config.advantage_settings(),
            steps_per_task=config.steps_per_task or None,
            chunks=self.chunks,
        )
        metrics = rollout_metrics(self.policy, data)
        step, gradient_norm = None, 0.0
        if metrics["nonfinite_steps"] == 0:
            batch = MetaBatch.of(data, config.fvp_fraction)
            step, gradient_norm = update(self.policy, self.params, batch, config, self.chunks)
            if math.isfinite(gradient_norm) and math.isfinite(step.cg_residual) and all_finite(step.params):
                self.params = step.params
            else:
                step = None
        self.skipped_updates += step is None
        self.env_steps += data.num_steps()
        self.iteration += 1
        seconds = time.perf_counter() - start
        metrics |= step_metrics(step) | {
            "gradient_norm": gradient_norm,
            "skipped_updates": float(self.skipped_updates),
            "env_steps": float(self.env_steps),
            "time/sampling_seconds": data.sampling_seconds,
            "time/sampling_cpu_seconds": data.sampling_cpu_seconds,
            "time/updating_seconds": seconds - data.sampling_seconds,
            "time/updating_cpu_seconds": time.process_time() - start_cpu - data.sampling_cpu_seconds,
            "time/env_steps_per_second": data.num_steps() / seconds,
        }
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything training continues from: parameters and counters."""
        return {
            "params": dict(self.params),
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "skipped_updates": self.skipped_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned."""
        self.params = {name: state["params"][name].to(value) for name, value in self.params.items()}
        self.iteration = state["iteration"]
        self.env_steps = state["env_steps"]
        self.skipped_updates = state["skipped_updates"]
