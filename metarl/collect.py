"""The sampler: (batched environment, policy, per-task parameters, noise) -> Rollout. It learns nothing."""

from __future__ import annotations

import dataclasses
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarl.ops.masked import valid_first
from metarl.parallel import one_intra_op_thread
from metarl.step_graph import StepRecord, control_step, step_graph
from metarl.types import BatchedEnv, CapturableEnv, Distribution, Params, Policy, Rollout


class Noise(Protocol):
    """Where a collection's random numbers come from; `metarl.noise.TaskNoise` derives them from a key."""

    def reset_seeds(self, wave: int) -> list[int]: ...

    def action_noise(
        self, wave: int, episodes: int, horizon: int, distribution: Distribution, action_dim: int
    ) -> Tensor: ...


def collect(
    env: BatchedEnv, policy: Policy, params: Params, noise: Noise, *, steps_per_task: int | None = None
) -> Rollout:
    """Records episodes of every task under its own parameters.

    By default one episode per world. With a budget of time steps, each task gets whole episodes until they hold at
    least that many steps, exactly those that collecting one after the other would keep: episodes run in waves, their
    number estimated from the lengths seen so far, and what a task's budget did not need is dropped in order.

    Args:
        env: Worlds, `[task, episode]`; for a budget it needs at least ceil(steps_per_task / horizon) per task.
        policy: The policy module.
        params: Its parameters with a leading task axis, `[task, ...]`.
        noise: Random numbers for initial states and actions.
        steps_per_task: Budget of time steps, or None for one episode per world.

    Raises:
        ValueError: If the environment has too few worlds for the budget.
    """
    if steps_per_task is None:
        return _collect_wave(env, policy, params, noise, 0, None)
    if env.episodes_per_task < worlds_for_budget(steps_per_task, env.horizon):
        raise ValueError(
            f"A budget of {steps_per_task} steps at horizon {env.horizon} needs "
            f"{worlds_for_budget(steps_per_task, env.horizon)} worlds per task; there are {env.episodes_per_task}."
        )
    joined = _collect_wave(env, policy, params, noise, 0, None)
    wave = 0
    # A step that is not finite voids the whole collection (the learner skips it): no need to fill the budget.
    while joined.num_nonfinite() == 0:
        steps = joined.valid.flatten(1).sum(-1)
        missing = (steps_per_task - steps).clamp(min=0)
        if not bool(missing.any()):
            break
        mean_length = steps / joined.valid.any(-1).sum(-1)
        worlds = torch.arange(env.episodes_per_task, device=env.device) < (missing / mean_length).ceil().unsqueeze(-1)
        wave += 1
        joined = _join(joined, _collect_wave(env, policy, params, noise, wave, worlds))
    return _keep_budget(joined, steps_per_task)


def worlds_for_budget(steps_per_task: int, horizon: int) -> int:
    """Episodes that a budget of time steps needs if none ends early."""
    return -(-steps_per_task // horizon)


@torch.no_grad()
def _collect_wave(
    env: BatchedEnv, policy: Policy, params: Params, noise: Noise, wave: int, worlds: Tensor | None
) -> Rollout:
    """One episode in each of `worlds` (`[task, episode]`, None for all)."""
    distribution = policy.distribution
    shape = (env.num_tasks, env.episodes_per_task)
    dtype = next(iter(params.values())).dtype
    with one_intra_op_thread():
        action_noise = noise.action_noise(wave, shape[1], env.horizon, distribution, policy.action_dim)
        # Time-major while stepping: a step then reads and writes contiguous blocks instead of a row per world.
        action_noise = action_noise.to(device=env.device, dtype=dtype).movedim(2, 0).contiguous()
        live = torch.ones(shape, dtype=torch.bool, device=env.device) if worlds is None else worlds

        def start() -> Tensor:
            return env.reset(noise.reset_seeds(wave), worlds).to(dtype)

        if _uses_graph(env):
            capturable = cast(CapturableEnv, env)
            graph, observation = step_graph(capturable, policy, params, action_noise, start)
            record, observation = graph.run(capturable, params, action_noise, observation, live)
        else:
            record, observation = _run_step_by_step(env, policy, params, action_noise, start(), live)
        # A copy in any case: a graph's record is overwritten by the next episode.
        task_major = tree_map(lambda x: x.movedim(0, 2).clone(memory_format=torch.contiguous_format), record)
        valid = task_major.live
        return Rollout(
            observations=task_major.observation,
            actions=task_major.action,
            rewards=task_major.reward,
            terminated=task_major.terminated & valid,
            truncated=task_major.truncated & valid,
            valid=valid,
            final_observation=observation,
            log_prob=distribution.log_prob(task_major.dist_params, task_major.action),
            dist_params=task_major.dist_params,
        )


def _uses_graph(env: BatchedEnv) -> bool:
    return env.device.type == "cuda"


def _run_step_by_step(
    env: BatchedEnv, policy: Policy, params: Params, action_noise: Tensor, observation: Tensor, live: Tensor
) -> tuple[StepRecord, Tensor]:
    """Steps until every episode is over: the record, time-major, and the last observations."""
    record = None
    for t in range(env.horizon):
        now, observation, live = control_step(env, policy, params, action_noise[t], observation, live)
        if record is None:
            record = tree_map(lambda x: x.new_zeros(env.horizon, *x.shape), now)
        tree_map(lambda to, x: to[t].copy_(x), record, now)  # noqa: B023 (called at once)
        if not bool(live.any()):
            break
    assert record is not None
    return record, observation


def _join(first: Rollout, second: Rollout) -> Rollout:
    """Puts two waves' episodes side by side along the episode axis."""
    return tree_map(lambda a, b: torch.cat([a, b], dim=1), first, second)


def _keep_budget(rollout: Rollout, steps_per_task: int) -> Rollout:
    """Keeps each task's episodes, in order, until they hold `steps_per_task` steps; cuts the axis to the longest."""
    lengths = rollout.valid.sum(-1)
    needed = (lengths > 0) & (lengths.cumsum(1) - lengths < steps_per_task)
    take = valid_first(needed, int(needed.sum(-1).max()))
    kept = tree_map(take, rollout)
    valid = kept.valid & take(needed).unsqueeze(-1)
    return dataclasses.replace(kept, valid=valid, terminated=kept.terminated & valid, truncated=kept.truncated & valid)
