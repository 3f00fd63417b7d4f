"""Episodes recorded for pictures: the simulator's own state at every step, under given parameters.

`metarl.collect` cannot do this: it keeps what a policy sees (rounded observations, from which a world cannot always be
drawn) and always samples, while a picture needs the state itself, and may want the mean action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metarl.functional import per_task
from metarl.parallel import one_intra_op_thread
from metarl.types import EnvStep, Params, Policy

State = Mapping[str, Tensor]
"""Batched state of many worlds: name -> `[lane, ...]`."""


class Measured(Protocol):
    """A quantity `[lane]` over one step with its unit; `envs.family.Measured` is one."""

    @property
    def value(self) -> Tensor: ...
    @property
    def unit(self) -> str: ...


StepDescriber = Callable[[State, State, Tensor], Mapping[str, Measured]]
"""`(state before, state after, task [lane, task_dim]) -> label -> quantity`; `envs.family.DescribesSteps`."""


class RecordableEnv(Protocol):
    """A batched environment that shows its state; `envs.batched_env.BatchedEnv` is one."""

    num_tasks: int
    episodes_per_task: int
    horizon: int

    @property
    def tasks(self) -> Tensor: ...
    @property
    def state(self) -> State: ...
    def reset(self, seed: Sequence[int]) -> Tensor: ...
    def step(self, actions: Tensor) -> EnvStep: ...


@dataclass(frozen=True)
class Recording:
    """One episode of every lane, from its initial state to its end. A lane that is over stays as it ended.

    Attributes:
        states: Snapshots before the first step and after each, T + 1 of them, in the simulator's precision.
        rewards: `[lane, T]`; 0 once the lane is over.
        lengths: Steps each lane took, `[lane]`.
        measured: What the family says of each step: label -> (`[lane, T]`, unit). Empty if it says nothing.
    """

    states: list[State]
    rewards: Tensor
    lengths: Tensor
    measured: dict[str, tuple[Tensor, str]]


@torch.no_grad()
def record_episodes(
    env: RecordableEnv,
    policy: Policy,
    params: Params,
    seeds: Sequence[int],
    noise: Tensor | None = None,
    describe: StepDescriber | None = None,
) -> Recording:
    """Rolls out one episode per task and keeps everything that is needed to draw it.

    Args:
        env: Worlds, one episode per task.
        policy: The policy module.
        params: Its parameters, `[task, ...]`.
        seeds: Seeds of the initial states, one per task: tasks with equal seeds start alike.
        noise: Action noise `[task, time, act_dim]`, or None for the mode of the distribution.
        describe: The family's own account of a step.

    Raises:
        ValueError: If the environment has several episodes per task.
    """
    if env.episodes_per_task != 1:
        raise ValueError(f"The environment has {env.episodes_per_task} episodes per task; a recording takes one.")
    act, distribution = per_task(policy), policy.distribution
    dtype = next(iter(params.values())).dtype
    rewards, live_steps, accounts = [], [], []
    with one_intra_op_thread():
        observation = env.reset(seeds)
        states = [env.state]
        live = torch.ones(env.num_tasks, dtype=torch.bool, device=observation.device)
        for t in range(env.horizon):
            dist_params = act(params, observation.to(dtype))
            if noise is None:
                action = distribution.mode(dist_params)
            else:
                action = distribution.sample(
                    dist_params, noise[:, t : t + 1].to(device=observation.device, dtype=dtype)
                )
            step = env.step(action)
            states.append(env.state)
            rewards.append(step.reward[:, 0])
            live_steps.append(live)
            if describe is not None:
                accounts.append(describe(states[-2], states[-1], env.tasks))
            observation = step.observation
            live = live & ~(step.terminated | step.truncated)[:, 0]
            if not bool(live.any()):
                break
    measured = {}
    for label in accounts[0] if accounts else ():
        values = torch.stack([account[label].value for account in accounts], dim=1)
        measured[label] = (values, accounts[0][label].unit)
    return Recording(states, torch.stack(rewards, dim=1), torch.stack(live_steps).sum(0), measured)
