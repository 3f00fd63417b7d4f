"""Adaptation on fresh rollouts: collect, take an inner step, collect again with the adapted policies.

The one place where the inner loop meets the sampler; training iterations and evaluation are the same call.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from metarl.collect import collect
from metarl.functional import per_task
from metarl.noise import collection_noise
from metarl.parallel import TaskChunks, one_intra_op_thread
from metarl.policy_gradient import PolicyInnerLoop
from metarl.precision import no_tf32
from metarl.samples import advantages, to_samples
from metarl.types import BatchedEnv, Params, Policy, Rollout, Samples


@dataclass(frozen=True)
class AdvantageSettings:
    """How advantages are estimated; see `metarl.samples.advantages`."""

    gamma: float = 0.99
    gae_lambda: float = 1.0
    bootstrap_truncated: bool = False


@dataclass(frozen=True)
class RolloutAdaptation:
    """K inner steps on fresh rollouts.

    Attributes:
        trajectory: theta_0 .. theta_K, `{name: [task, ...]}` each; theta_K alone where nothing was to be kept.
        rollouts: K + 1 rollouts; number k was collected with theta_k. None where nothing was to be kept.
        advantages: Of each rollout, `[task, episode, time]`.
        returns: Mean return of every task's episodes, `[task]` for each rollout.
        episodes: Episodes of a task in the first rollout, mean over tasks.
        nonfinite_steps: Recorded steps that are not finite, over all rollouts.
        env_steps: Environment steps taken.
        sampling_seconds: Wall time spent collecting.
        sampling_cpu_seconds: CPU time of this process spent collecting, all threads together.
    """

    trajectory: list[Params]
    rollouts: list[Rollout]
    advantages: list[Tensor]
    returns: list[Tensor]
    episodes: float
    nonfinite_steps: int
    env_steps: int
    sampling_seconds: float
    sampling_cpu_seconds: float

    def samples(self, k: int) -> Samples:
        """Rollout k as rows; see `metarl.samples.to_samples`."""
        return to_samples(self.rollouts[k], self.advantages[k])


@one_intra_op_thread()
@no_tf32()
def adapt_on_rollouts(
    env: BatchedEnv,
    inner: PolicyInnerLoop,
    meta: Params,
    *,
    num_steps: int,
    noise_key: Sequence[int],
    settings: AdvantageSettings,
    steps_per_task: int | None = None,
    chunks: TaskChunks | None = None,
    measure_last: bool = True,
    keep: bool = True,
) -> RolloutAdaptation:
    """Adapts to every task of an environment, collecting K + 1 times.

    Args:
        env: Worlds holding the tasks.
        inner: The inner loop. Its module's constants are moved to the worlds' device.
        meta: Its meta-parameters.
        num_steps: K.
        noise_key: Key of the random streams; phase k adds k.
        settings: Advantage estimation.
        steps_per_task: Budget per phase; None for one episode per world.
        chunks: How inner gradients are split over threads.
        measure_last: Collect with theta_K too; without it there are K rollouts.
        keep: Keep every rollout and all parameters; without it memory does not grow with K.

    Raises:
        ValueError: If K is negative, or the policy is not a function of what it sees (a memory, random numbers): its
            losses would then be about another policy than the one that collected.
    """
    cast(nn.Module, inner.module).to(env.device)
    rollouts: list[Rollout] = []
    estimates: list[Tensor] = []
    returns: list[Tensor] = []
    episodes = seconds = cpu_seconds = 0.0
    nonfinite_steps = env_steps = 0

    def fresh(theta: Params, k: int) -> Samples:
        nonlocal seconds, cpu_seconds, nonfinite_steps, env_steps, episodes
        start, start_cpu = time.perf_counter(), time.process_time()
        noise = collection_noise((*noise_key, k), env.num_tasks, env.device)
        rollout = collect(env, inner.module, theta, noise, steps_per_task=steps_per_task)
        if env.device.type == "cuda":
            torch.cuda.synchronize(env.device)  # once a phase: replays are only queued, and time is to be told
        seconds += time.perf_counter() - start
        cpu_seconds += time.process_time() - start_cpu
        if k == 0:
            _check_replay(inner.module, theta, rollout)
            episodes = float(rollout.valid.any(-1).sum(-1).double().mean())
        nonfinite_steps += rollout.num_nonfinite()
        env_steps += rollout.num_steps()
        returns.append(rollout.mean_return())
        estimate = advantages(
            rollout,
            gamma=settings.gamma,
            gae_lambda=settings.gae_lambda,
            bootstrap_truncated=settings.bootstrap_truncated,
        )
        if keep:
            rollouts.append(rollout)
            estimates.append(estimate)
        return to_samples(rollout, estimate)

    trajectory = inner.adapt(meta, fresh, env.num_tasks, num_steps, chunks, keep)
    if measure_last:
        fresh(trajectory[-1], num_steps)
    return RolloutAdaptation(
        trajectory, rollouts, estimates, returns, episodes, nonfinite_steps, env_steps, seconds, cpu_seconds
    )


_REPLAY_TOLERANCE = 1e-3
"""Largest difference between an output recorded and computed again, as a share of the largest in the episode, or of 1:
a hundred times what another order of float32 sums makes of networks as large as ours."""


_SHARED_ROUNDING = 1e-2
"""Share of the largest output by which others are measured too: they may be off by 1e-5 of it, a hundred roundings."""


def _check_replay(policy: Policy, params: Params, rollout: Rollout) -> None:
    """Refuses a policy that computes another distribution for steps it has recorded: here, the first episode's."""

    def first_episode(x: Tensor) -> Tensor:
        return x[:1, :1].flatten(1, 2)

    valid = first_episode(rollout.valid)
    recorded = tree_leaves(tree_map(first_episode, rollout.dist_params))
    with torch.no_grad():
        again = tree_leaves(
            per_task(policy)({name: v[:1] for name, v in params.items()}, first_episode(rollout.observations))
        )
    errors = []
    for new, old in zip(again, recorded, strict=True):
        # Steps that are not finite are counted elsewhere.
        seen = valid.reshape(*valid.shape, *[1] * (old.ndim - 2)) & old.isfinite() & new.isfinite()
        # Each output is measured by itself, as an action of thousands must hide nothing in its neighbour, but for the
        # rounding that they share: they are sums of the same activations.
        error, size = (torch.where(seen, value, 0.0).abs().amax(1) for value in (new - old, old))
        errors.append((error / (size.clamp(min=1.0) + _SHARED_ROUNDING * size.amax())).amax())
    worst = float(torch.stack(errors).max())
    if worst > _REPLAY_TOLERANCE:
        raise ValueError(
            f"The policy's action distributions for steps it has recorded differ by {worst:.2g} of their size from "
            "those it acted by: it keeps a memory, draws random numbers, or looks at more than one observation at a "
            "time."
        )
