"""Adaptation on fresh rollouts: collect, take an inner step, collect again with the adapted policies.

The one place where the inner loop meets the sampler; training iterations and evaluation are the same call.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.collect import collect
from metarl.noise import collection_noise
from metarl.parallel import TaskChunks, one_intra_op_thread
from metarl.policy_gradient import PolicyInnerLoop
from metarl.precision import no_tf32
from metarl.samples import advantages, to_samples
from metarl.types import BatchedEnv, Params, Rollout, Samples


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
        trajectory: theta_0 .. theta_K, `{name: [task, ...]}` each.
        rollouts: K + 1 rollouts; number k was collected with theta_k.
        advantages: Of each rollout, `[task, episode, time]`.
        sampling_seconds: Wall time spent collecting.
        sampling_cpu_seconds: CPU time of this process spent collecting, all threads together.
    """

    trajectory: list[Params]
    rollouts: list[Rollout]
    advantages: list[Tensor]
    sampling_seconds: float
    sampling_cpu_seconds: float

    def samples(self, k: int) -> Samples:
        """Rollout k as rows; see `metarl.samples.to_samples`."""
        return to_samples(self.rollouts[k], self.advantages[k])

    def num_nonfinite(self) -> int:
        """Recorded steps that are not finite, over all rollouts."""
        return sum(rollout.num_nonfinite() for rollout in self.rollouts)

    def num_steps(self) -> int:
        """Environment steps taken."""
        return sum(rollout.num_steps() for rollout in self.rollouts)


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
) -> RolloutAdaptation:
    """Adapts to every task of an environment, collecting K + 1 times.

    Args:
        env: Worlds holding the tasks.
        inner: The inner loop.
        meta: Its meta-parameters.
        num_steps: K.
        noise_key: Key of the random streams; phase k adds k.
        settings: Advantage estimation.
        steps_per_task: Budget per phase; None for one episode per world.
        chunks: How inner gradients are split over threads.
        measure_last: Collect with theta_K too; without it there are K rollouts.
    """
    rollouts: list[Rollout] = []
    estimates: list[Tensor] = []
    seconds = cpu_seconds = 0.0

    def fresh(theta: Params, k: int) -> Samples:
        nonlocal seconds, cpu_seconds
        start, start_cpu = time.perf_counter(), time.process_time()
        noise = collection_noise((*noise_key, k), env.num_tasks, env.device)
        rollouts.append(collect(env, inner.module, theta, noise, steps_per_task=steps_per_task))
        if env.device.type == "cuda":
            torch.cuda.synchronize(env.device)  # once a phase: replays are only queued, and time is to be told
        seconds += time.perf_counter() - start
        cpu_seconds += time.process_time() - start_cpu
        estimates.append(
            advantages(
                rollouts[-1],
                gamma=settings.gamma,
                gae_lambda=settings.gae_lambda,
                bootstrap_truncated=settings.bootstrap_truncated,
            )
        )
        return to_samples(rollouts[-1], estimates[-1])

    trajectory = inner.adapt(meta, fresh, env.num_tasks, num_steps, chunks)
    if measure_last:
        fresh(trajectory[-1], num_steps)
    return RolloutAdaptation(trajectory, rollouts, estimates, seconds, cpu_seconds)
