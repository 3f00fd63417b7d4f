"""One control step of every world, as a function, and on a GPU as a CUDA graph that is captured once and replayed.

Policy, noise, physics and recording of a step are a few thousand small kernels; launched one by one from Python they
cost more than they compute. Captured, the whole step is one launch, and nothing in an episode waits for the host.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarl.functional import constants, per_task
from metarl.types import BatchedEnv, CapturableEnv, DistParams, Params, Policy


class StepRecord(NamedTuple):
    """What is recorded of one step, `[task, episode, ...]` each; of an episode, with a leading time axis.

    Attributes:
        observation: What the policy saw.
        action: What it did, in policy units.
        reward: What it earned.
        terminated: Whether the task has ended the episode, by now.
        truncated: Whether the horizon has cut it off, by now.
        live: Whether the step was taken.
        dist_params: The policy's distribution.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    live: Tensor
    dist_params: DistParams


def control_step(
    env: BatchedEnv, policy: Policy, params: Params, noise: Tensor, observation: Tensor, live: Tensor
) -> tuple[StepRecord, Tensor, Tensor]:
    """Acts and steps once: what to record, the next observation, and which episodes go on.

    Args:
        env: Worlds.
        policy: The policy module.
        params: Its parameters with a leading task axis.
        noise: Action noise `[task, episode, act_dim]`.
        observation: `[task, episode, obs_dim]`.
        live: Boolean `[task, episode]`.
    """
    dist_params = per_task(policy)(params, observation)
    action = policy.distribution.sample(dist_params, noise)
    step = env.step(action)
    reward = step.reward.to(observation.dtype)
    now = StepRecord(observation, action, reward, step.terminated, step.truncated, live, dist_params)
    return now, step.observation.to(observation.dtype), live & ~(step.terminated | step.truncated)


@final
class StepGraph:
    """`control_step` on fixed memory, repeated to the horizon: on CUDA by replaying a captured graph.

    On the CPU it runs as it stands, without a graph, which is how it is tested there.

    Args:
        env: Worlds; what they are doing is lost, reset them before `run`. It is not kept, so that it may be freed.
        policy: The policy module.
        params: Parameters of the right shapes.
        action_noise: Noise of the right shape, `[time, task, episode, act_dim]`.
    """

    def __init__(self, env: CapturableEnv, policy: Policy, params: Params, action_noise: Tensor) -> None:
        self._policy = policy
        self._params = {name: value.clone() for name, value in params.items()}
        self._noise = torch.zeros_like(action_noise)
        self._t = torch.zeros(1, dtype=torch.int64, device=env.device)
        self._observation = env.reset(0).to(action_noise.dtype).clone()
        self._live = torch.ones(self._observation.shape[:-1], dtype=torch.bool, device=env.device)
        self._memory = [value.clone() for value in env.step_memory()]
        now, _, _ = control_step(env, policy, self._params, self._noise[0], self._observation, self._live)
        self._record: StepRecord = tree_map(lambda x: x.new_zeros(env.horizon, *x.shape), now)
        env.move_to(self._memory)
        self._graph = _captured(env, lambda: self._step(env)) if env.device.type == "cuda" else None
        self._generation = env.memory_generation
        self._constants = _places(constants(policy))

    def _step(self, env: CapturableEnv) -> None:
        """One step; everything it reads and writes stays where it is."""
        noise = self._noise.index_select(0, self._t).squeeze(0)
        now, observation, live = control_step(env, self._policy, self._params, noise, self._observation, self._live)
        tree_map(lambda to, x: to.index_copy_(0, self._t, x.unsqueeze(0)), self._record, now)
        env.move_to(self._memory)
        self._observation.copy_(observation)
        self._live.copy_(live)
        # Not beyond the last row, however often it is warmed up.
        self._t.add_(1).remainder_(len(self._noise))

    def run(
        self, env: CapturableEnv, params: Params, action_noise: Tensor, observation: Tensor, live: Tensor
    ) -> tuple[StepRecord, Tensor]:
        """An episode from where the environment stands: the record, time-major, and the last observations.

        The record is this object's own memory; the next run overwrites it.

        Args:
            env: The environment it was made for.
            params: Per-task parameters.
            action_noise: `[time, task, episode, act_dim]`.
            observation: `[task, episode, obs_dim]`, from `reset`.
            live: Boolean `[task, episode]`: which worlds take part.
        """
        if self._generation != env.memory_generation:
            raise RuntimeError("The physics has moved to other memory since this graph was made: ask for a new one.")
        for name, value in params.items():
            self._params[name].copy_(value)
        self._noise.copy_(action_noise)
        self._observation.copy_(observation)
        self._live.copy_(live)
        self._t.zero_()
        env.move_to(self._memory)
        for _ in range(env.horizon):
            if self._graph is None:
                self._step(env)
            else:
                self._graph.replay()
        return self._record, self._observation.clone()

    def fits(self, env: CapturableEnv, policy: Policy, params: Params, action_noise: Tensor) -> bool:
        """Whether it still serves: same policy, same shapes, and physics and constants where they were in memory."""
        same_params = {name: value.shape for name, value in params.items()} == {
            name: value.shape for name, value in self._params.items()
        }
        same_noise = self._noise.shape == action_noise.shape and self._noise.dtype == action_noise.dtype
        same_memory = self._generation == env.memory_generation and self._constants == _places(constants(policy))
        return self._policy is policy and same_memory and same_params and same_noise


def _places(tensors: Params) -> dict[str, int]:
    """Where tensors are in memory: a graph reads what is changed there, but not what stands elsewhere instead."""
    return {name: value.data_ptr() for name, value in tensors.items()}


_failed_graphs: list[torch.cuda.CUDAGraph] = []
"""Kept for good: torch up to 2.11 leaves a failed capture's graph entered in its allocator, which goes on asking it."""


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Collects garbage now and not inside the block: a graph that dies while another is captured may spoil it."""
    gc.collect()  # graphs of environments that are gone also hold memory until their cycles are found
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _captured(env: CapturableEnv, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    """`step` as a CUDA graph; None, with a warning that says why, where it cannot be captured."""
    current, stream = torch.cuda.current_stream(env.device), torch.cuda.Stream(env.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()  # libraries make their workspaces on first use, which a capture may not
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with (
            _no_collection(),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
            env.capturing(),
        ):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # A failing end of the capture leaves its stream current, and hides what had failed in it.
        torch.cuda.set_stream(current)
        _failed_graphs.append(graph)
        first: BaseException = error
        while first.__context__ is not None:
            first = first.__context__
        reason = " ".join(str(first).split())[:300]
        warnings.warn(f"An episode step cannot be captured as a CUDA graph and will run slowly: {reason}", stacklevel=2)
        return None
    return graph


_graphs: weakref.WeakKeyDictionary[CapturableEnv, StepGraph] = weakref.WeakKeyDictionary()


def step_graph(
    env: CapturableEnv, policy: Policy, params: Params, action_noise: Tensor, start: Callable[[], Tensor]
) -> tuple[StepGraph, Tensor]:
    """The environment's graph, captured on first use, and the observation of episodes that `start` has just begun.

    Starting may move the physics to other memory, and making a graph plays with the worlds: so the graph is looked for
    after a start, and there is another start after one is made.
    """
    observation = start()
    while (graph := _graphs.get(env)) is None or not graph.fits(env, policy, params, action_noise):
        _graphs[env] = StepGraph(env, policy, params, action_noise)
        observation = start()
    return graph, observation
