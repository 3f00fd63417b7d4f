"""Environments small enough to know everything about, meeting `metarl.types` by structure alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarl.ops import categorical, gaussian
from metarl.types import Samples


@dataclass(frozen=True)
class Step:
    observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


class PointEnv:
    """x' = x + 0.3 a, reward -(x' - task)^2; start and length of an episode are drawn from the task's reset seed.

    An episode terminates after its own length, or is truncated at the horizon. `poison(task, episode, t)` makes that
    reward NaN. With `hostile`, ended lanes return NaN rewards and forget that they ended, which nobody may read.
    """

    def __init__(self, tasks, episodes, horizon, *, min_length=None, discrete=False, hostile=False, poison=None):
        self.num_tasks, self.episodes_per_task, self.horizon = len(tasks), episodes, horizon
        self.device = torch.device("cpu")
        self.tasks, self.discrete, self.hostile, self.poison = tasks, discrete, hostile, poison
        self.min_length = horizon if min_length is None else min_length
        shape = (self.num_tasks, episodes)
        self.x, self.t = torch.zeros(*shape, 2), torch.zeros(shape, dtype=torch.int64)
        self.length = torch.zeros(shape, dtype=torch.int64)
        self.ended = torch.ones(shape, dtype=torch.bool)
        self.resets = 0

    def set_tasks(self, tasks):
        assert tasks.shape == self.tasks.shape
        self.tasks = tasks

    def reset(self, seed, lanes=None):
        self.resets += 1
        lanes = torch.ones_like(self.ended) if lanes is None else lanes
        assert len(seed) == self.num_tasks
        for i, s in enumerate(seed):
            generator = torch.Generator().manual_seed(s)
            starts = torch.randn(self.episodes_per_task, 2, generator=generator)
            # Beyond the horizon: this episode will be truncated.
            lengths = torch.randint(self.min_length, self.horizon + 3, (self.episodes_per_task,), generator=generator)
            self.x[i][lanes[i]], self.length[i][lanes[i]] = starts[lanes[i]], lengths[lanes[i]]
        self.t = self.t.masked_fill(lanes, 0)
        self.ended = self.ended & ~lanes
        return self.x.clone()

    def step(self, actions):
        live = ~self.ended
        a = actions.float()
        if self.discrete:
            a = (a - 0.5).unsqueeze(-1)
        moved = self.x + 0.3 * a
        self.x = torch.where(live.unsqueeze(-1), moved, self.x)
        reward = -(self.x - self.tasks.unsqueeze(1)).square().sum(-1)
        reward = torch.where(live, reward, math.nan if self.hostile else 0.0)
        if self.poison is not None:
            for i in range(self.num_tasks):
                for e in range(self.episodes_per_task):
                    if live[i, e] and self.poison(i, e, int(self.t[i, e])):
                        reward[i, e] = math.nan
        self.t = self.t + live.long()
        terminated = self.t == self.length
        truncated = (self.t == self.horizon) & ~terminated
        self.ended = self.ended | terminated | truncated
        if self.hostile:
            terminated, truncated = terminated & live, truncated & live
        return Step(self.x.clone(), reward, terminated, truncated)


class PointFamily:
    """Targets in the plane, task i of a split a function of (split, seed, i)."""

    task_dim, observation_dim = 2, 2

    def __init__(self, horizon=6, **env):
        self.horizon, self.env = horizon, env
        self.action_dim = 2

    def sample_tasks(self, num_tasks, split="train", seed=0, start=0):
        def one(i):
            return torch.randn(2, generator=torch.Generator().manual_seed(hash((split == "test", seed, i)) % 2**40))

        return torch.stack([one(start + i) for i in range(num_tasks)])

    def published_tasks(self):
        return None

    def batch(self, tasks, episodes_per_task, device="cpu", *, num_threads=None):
        return PointEnv(tasks, episodes_per_task, self.horizon, **self.env)


class OneStepEnv:
    """Horizon 1, observation 1: the whole task is a reward function of the action."""

    horizon, device = 1, torch.device("cpu")

    def __init__(self, tasks, episodes, reward):
        self.num_tasks, self.episodes_per_task, self.tasks, self.reward = len(tasks), episodes, tasks, reward

    def set_tasks(self, tasks):
        self.tasks = tasks

    def reset(self, seed, lanes=None):
        return torch.ones(self.num_tasks, self.episodes_per_task, 1)

    def step(self, actions):
        reward = self.reward(actions, self.tasks)
        never = torch.zeros(reward.shape, dtype=torch.bool)
        return Step(torch.ones(*reward.shape, 1), reward, never, ~never)


class OneStepFamily:
    horizon, task_dim, observation_dim = 1, 1, 1

    def __init__(self, action_dim, values, reward):
        self.action_dim, self.values, self.reward = action_dim, values, reward

    def sample_tasks(self, num_tasks, split="train", seed=0, start=0):
        """All values in turn, so that every batch is balanced."""
        return torch.tensor([[self.values[(start + i) % len(self.values)]] for i in range(num_tasks)])

    def published_tasks(self):
        return self.sample_tasks(len(self.values))

    def batch(self, tasks, episodes_per_task, device="cpu", *, num_threads=None):
        return OneStepEnv(tasks, episodes_per_task, self.reward)


def two_armed_bandit():
    """Task g in {0, 1}: arm g pays 1, the other 0."""
    return OneStepFamily(2, (0.0, 1.0), lambda actions, tasks: (actions == tasks.long()).float())


def target_family():
    """Task g in {-1, 1}: reward -(a - g)^2."""
    return OneStepFamily(1, (-1.0, 1.0), lambda actions, tasks: -(actions.squeeze(-1) - tasks).square())


def random_samples(kind, tasks, rows, obs_dim, action_dim, seed=0, lengths=None, dtype=torch.float64):
    """Made-up samples, episodes of three rows, with behaviour parameters that belong to no policy.

    NaN nowhere, zeros in padding.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    valid = torch.arange(rows) < torch.tensor(lengths or [rows] * tasks).unsqueeze(-1)
    if kind == "gaussian":
        dist_params = gaussian.Gaussian(normal(tasks, rows, action_dim), 0.3 * normal(tasks, rows, action_dim))
        distribution, noise = gaussian, normal(tasks, rows, action_dim)
    else:
        dist_params, distribution = categorical.Categorical(normal(tasks, rows, action_dim)), categorical
        noise = normal(tasks, rows, action_dim)
    actions = distribution.sample(dist_params, noise)
    starts = torch.arange(rows).expand(tasks, rows) % 3 == 0
    samples = Samples(
        normal(tasks, rows, obs_dim), actions, normal(tasks, rows), valid, starts,
        distribution.log_prob(dist_params, actions), dist_params,
    )  # fmt: skip
    return tree_map(lambda x: x * valid.reshape(*valid.shape, *[1] * (x.ndim - 2)).to(x.dtype), samples)


def double_params(policy, scale=0.5, seed=0):
    """Random float64 parameters with the policy's names and shapes (biases and log-stds too)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in policy.named_parameters()
    }


def finite_difference(function, params, eps=1e-5):
    """Central differences of a scalar function of shared parameters, entry by entry."""
    gradient = {}
    for name, value in params.items():
        entries = torch.zeros_like(value).reshape(-1)
        for j in range(value.numel()):
            bump = torch.zeros_like(value).reshape(-1)
            bump[j] = eps
            bump = bump.reshape(value.shape)
            up, down = (float(function(params | {name: value + sign * bump})) for sign in (1, -1))
            entries[j] = (up - down) / (2 * eps)
        gradient[name] = entries.reshape(value.shape)
    return gradient


def assert_trees_close(actual, expected, rtol=1e-7, atol=1e-10):
    assert set(actual) == set(expected)
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def equal_trees(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)
