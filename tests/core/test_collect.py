"""The sampler against episodes stepped one at a time, and budgets against collecting one episode after another."""

import dataclasses
import math

import pytest
import torch
from torch.utils._pytree import tree_map
from toys import OneStepEnv, PointEnv, Step

from metarl.collect import collect, worlds_for_budget
from metarl.noise import TaskNoise
from metarl.ops import categorical, gaussian
from metarl.ops.tree import expand_tasks, select_tasks
from metarl.policies import CategoricalMLPPolicy, GaussianMLPPolicy

TASKS = torch.tensor([[0.5, -1.0], [1.0, 0.0], [-2.0, 0.3]])
HORIZON = 6


def make_policy(discrete=False):
    return CategoricalMLPPolicy(2, 2, (4,)) if discrete else GaussianMLPPolicy(2, 2, (4,))


def per_task_params(policy, num_tasks=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: 0.5 * torch.randn(num_tasks, *v.shape, generator=generator) for n, v in policy.named_parameters()}


def record(key=(0, 1, 2, 0), episodes=4, discrete=False, budget=None, tasks=TASKS, start=0, **env):
    policy = make_policy(discrete)
    world = PointEnv(tasks, episodes, HORIZON, discrete=discrete, **{"min_length": 1} | env)
    params = select_tasks(per_task_params(policy), slice(start, start + len(tasks)))
    return collect(world, policy, params, TaskNoise(key, len(tasks), start), steps_per_task=budget)


def equal(a, b):
    return all(
        torch.equal(x, y)
        for field in dataclasses.fields(a)
        for x, y in zip(*(torch.utils._pytree.tree_leaves(getattr(r, field.name)) for r in (a, b)), strict=True)
    )


@pytest.mark.parametrize("discrete", [False, True])
def test_a_rollout_is_every_episode_stepped_on_its_own(discrete):
    """One episode at a time, the module itself called on one observation, noise from the documented stream."""
    data, policy = record(discrete=discrete), make_policy(discrete)
    params, noise = per_task_params(policy), TaskNoise((0, 1, 2, 0), 3)
    distribution = categorical if discrete else gaussian
    seeds = noise.reset_seeds(0)
    action_noise = noise.action_noise(0, 4, HORIZON, distribution, 2)
    lengths = set()
    for i in range(3):
        own = {name: value[i] for name, value in params.items()}
        for e in range(4):
            env = PointEnv(TASKS[i : i + 1], 4, HORIZON, discrete=discrete, min_length=1)
            observation = env.reset(seeds[i : i + 1])[0, e]
            for t in range(HORIZON):
                dist_params = torch.func.functional_call(policy, own, (observation,))
                action = distribution.sample(dist_params, action_noise[i, e, t])
                actions = torch.zeros(1, 4, *action.shape, dtype=action.dtype)
                actions[0, e] = action
                step = env.step(actions)
                assert bool(data.valid[i, e, t])
                torch.testing.assert_close(data.observations[i, e, t], observation, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(data.actions[i, e, t], action, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(data.rewards[i, e, t], step.reward[0, e], rtol=1e-4, atol=1e-4)
                for recorded, own_params in zip(data.dist_params, dist_params, strict=True):
                    torch.testing.assert_close(recorded[i, e, t], own_params, rtol=1e-4, atol=1e-5)
                assert bool(data.terminated[i, e, t]) == bool(step.terminated[0, e])
                assert bool(data.truncated[i, e, t]) == bool(step.truncated[0, e])
                observation = step.observation[0, e]
                if step.terminated[0, e] or step.truncated[0, e]:
                    break
            lengths.add(t + 1)
            assert not data.valid[i, e, t + 1 :].any()
            torch.testing.assert_close(data.final_observation[i, e], observation, rtol=1e-5, atol=1e-5)
    assert len(lengths) > 2, "the environment should end episodes at different times"


@pytest.mark.parametrize("budget", [None, 14])
@pytest.mark.parametrize("discrete", [False, True])
def test_flags_validity_and_log_probabilities_are_consistent(discrete, budget):
    data = record(discrete=discrete, budget=budget)
    valid, length = data.valid, data.valid.sum(-1)
    assert torch.equal(valid, torch.arange(HORIZON) < length.unsqueeze(-1)), "valid steps come first"
    last = valid & (torch.arange(HORIZON) == (length - 1).unsqueeze(-1))
    assert torch.equal(data.terminated | data.truncated, last), (
        "an episode ends with its last valid step, and only there"
    )
    assert not (data.terminated & data.truncated).any()
    assert bool(data.terminated.any()) and bool(data.truncated.any())
    distribution = categorical if discrete else gaussian
    torch.testing.assert_close(data.log_prob, distribution.log_prob(data.dist_params, data.actions))
    assert data.num_nonfinite() == 0 and not data.log_prob.requires_grad
    assert data.actions.dtype == (torch.int64 if discrete else torch.float32)


@pytest.mark.parametrize("budget", [None, 14])
def test_a_task_does_not_depend_on_which_others_are_in_the_batch(budget):
    together = record(budget=budget)
    for i in range(3):
        alone = record(tasks=TASKS[i : i + 1], start=i, budget=budget)
        n = alone.valid.shape[1]
        mine = tree_map(lambda x, i=i, n=n: x[i : i + 1, :n], together)
        assert torch.equal(alone.valid, mine.valid) and not together.valid[i, n:].any()
        here = alone.valid[0]
        torch.testing.assert_close(alone.rewards[0][here], mine.rewards[0][here], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.actions[0][here], mine.actions[0][here], rtol=1e-4, atol=1e-5)


def test_changing_one_tasks_parameters_changes_its_own_rows_alone():
    policy, noise = make_policy(), TaskNoise((0, 1, 2, 0), 3)
    params = per_task_params(policy)
    before = collect(PointEnv(TASKS, 4, HORIZON, min_length=1), policy, params, noise)
    changed = {name: value.clone() for name, value in params.items()}
    for value in changed.values():
        value[1] += 0.3
    after = collect(PointEnv(TASKS, 4, HORIZON, min_length=1), policy, changed, noise)
    for i, same in enumerate([True, False, True]):
        close = torch.allclose(before.actions[i][before.valid[i]], after.actions[i][after.valid[i]], atol=1e-5)
        assert close == same


def test_the_same_key_gives_the_same_rollout_bitwise_and_another_key_another():
    assert equal(record(), record())
    for other in [(1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0), (0, 1, 2, 1)]:
        a, b = record(), record(key=other)
        assert not torch.equal(a.observations[:, :, 0], b.observations[:, :, 0])
        assert not torch.equal(a.actions[:, :, 0], b.actions[:, :, 0])


def test_what_an_ended_lane_returns_reaches_no_valid_step():
    clean, hostile = record(), record(hostile=True)
    for name in ("observations", "actions", "rewards", "log_prob"):
        assert torch.equal(getattr(clean, name)[clean.valid], getattr(hostile, name)[clean.valid])
    assert torch.equal(clean.valid, hostile.valid) and hostile.num_nonfinite() == 0
    assert torch.equal(clean.mean_return(), hostile.mean_return())


def test_it_computes_in_the_dtype_of_the_parameters():
    policy = make_policy()
    params = {name: value.double() for name, value in per_task_params(policy).items()}
    data = collect(PointEnv(TASKS, 2, HORIZON), policy, params, TaskNoise((0, 1), 3))
    for value in (data.observations, data.actions, data.rewards, data.log_prob, *data.dist_params):
        assert value.dtype == torch.float64


# Budgets of time steps.


class ScriptedEnv:
    """The j-th episode ever started for task i lasts `script[i][j]` steps; every reward of it is j."""

    device = torch.device("cpu")

    def __init__(self, script, worlds, horizon, nan_episode=None):
        self.script, self.num_tasks, self.episodes_per_task, self.horizon = script, len(script), worlds, horizon
        self.nan_episode = nan_episode
        self.started = [0] * self.num_tasks
        self.episode = torch.zeros(self.num_tasks, worlds, dtype=torch.int64)
        self.left = torch.zeros(self.num_tasks, worlds, dtype=torch.int64)
        self.waves = []

    def set_tasks(self, tasks):
        raise AssertionError

    def reset(self, seed, lanes=None):
        lanes = torch.ones_like(self.left, dtype=torch.bool) if lanes is None else lanes
        self.waves.append(lanes)
        for i in range(self.num_tasks):
            for e in range(self.episodes_per_task):
                if lanes[i, e]:
                    assert self.left[i, e] == 0, "a running episode was reset"
                    self.episode[i, e], self.left[i, e] = self.started[i], self.script[i][self.started[i]]
                    self.started[i] += 1
        return self.observation()

    def observation(self):
        return torch.stack([self.episode, self.left], dim=-1).float()

    def step(self, actions):
        live = self.left > 0
        self.left = self.left - live.long()
        reward = torch.where(live, self.episode.float(), -1e9)
        if self.nan_episode is not None:
            reward = reward.masked_fill(live & (self.episode == self.nan_episode), math.nan)
        over = self.left == 0  # stays set until the reset
        return Step(self.observation(), reward, over, torch.zeros_like(over))


def scripts(num_tasks, horizon, seed):
    generator = torch.Generator().manual_seed(seed)
    # Tasks of short and of long episodes.
    longest = [max(1, horizon >> i) for i in range(num_tasks)]
    return [torch.randint(1, n + 1, (400,), generator=generator).tolist() for n in longest]


@pytest.mark.parametrize("seed", range(12))
def test_a_budget_keeps_exactly_the_episodes_of_collecting_one_after_another_until_it_is_reached(seed):
    horizon, budget = 8, [1, 7, 8, 9, 24, 40, 41][seed % 7]
    script = scripts(3, horizon, seed)
    env = ScriptedEnv(script, worlds_for_budget(budget, horizon) + seed % 3, horizon)
    policy = make_policy()
    data = collect(env, policy, per_task_params(policy), TaskNoise((0, 1), 3), steps_per_task=budget)
    most = 0
    for i in range(3):
        kept, steps = [], 0
        while steps < budget:  # the sequential sampler
            steps += script[i][len(kept)]
            kept.append(script[i][len(kept)])
        most = max(most, len(kept))
        assert data.valid[i].sum(-1)[: len(kept)].tolist() == kept
        assert not data.valid[i, len(kept) :].any()
        for j, length in enumerate(kept):
            assert data.rewards[i, j, :length].tolist() == [float(j)] * length
            assert data.terminated[i, j].nonzero().flatten().tolist() == [length - 1]
            assert data.final_observation[i, j].tolist() == [float(j), 0.0]
        assert not data.terminated[i, len(kept) :].any(), "flags in dropped episodes"
    assert data.valid.shape[1] == most, "no episode that nobody keeps"


def test_a_task_whose_budget_is_full_starts_no_further_episode():
    env = ScriptedEnv([[8] * 50, [1] * 50], 2, 8)
    policy = make_policy()
    collect(env, policy, per_task_params(policy, 2), TaskNoise((0, 1), 2), steps_per_task=16)
    assert env.started[0] == 2 and 16 <= env.started[1] <= 16 + 2
    assert not any(wave[0].any() for wave in env.waves[1:])


class CountedNoise:
    """Noise that remembers for which waves it was asked."""

    def __init__(self, noise):
        self.noise, self.starts, self.actions = noise, [], []

    def reset_seeds(self, wave):
        self.starts.append(wave)
        return self.noise.reset_seeds(wave)

    def action_noise(self, wave, *rest):
        self.actions.append(wave)
        return self.noise.action_noise(wave, *rest)


def test_a_wave_has_as_many_episodes_as_the_lengths_so_far_say_are_missing():
    """Of task 0 the first wave leaves 14 of 23 steps at a mean of 3: all three worlds; then 5, so two.

    Task 1 lacks 5 at a mean of 6, so one episode, which is of length 1; and then 4 at a mean of 19 / 4, so one.
    """
    env = ScriptedEnv([[3] * 50, [8, 8, 2, 1, 8, 8, 8]], 3, 8)
    policy, noise = make_policy(), CountedNoise(TaskNoise((0, 1), 2))
    data = collect(env, policy, per_task_params(policy, 2), noise, steps_per_task=23)
    assert [wave.sum(-1).tolist() for wave in env.waves] == [[3, 3], [3, 1], [2, 1]]
    assert data.valid.flatten(1).sum(-1).tolist() == [24, 27]
    assert noise.starts == noise.actions == [0, 1, 2], "each wave has noise of its own"


class CutEnv(PointEnv):
    """Cuts its second episode off after three steps, and goes on saying so."""

    def step(self, actions):
        step = super().step(actions)
        cut = (self.t >= 3) & (torch.arange(self.episodes_per_task) == 1)
        self.ended = self.ended | cut
        return dataclasses.replace(step, truncated=step.truncated | cut)


def test_an_episode_that_is_cut_off_before_the_horizon_is_over_there():
    policy = make_policy()
    data = collect(CutEnv(TASKS, 4, HORIZON), policy, per_task_params(policy), TaskNoise((0,), 3))
    assert data.valid.sum(-1).tolist() == [[HORIZON, 3, HORIZON, HORIZON]] * 3
    assert data.truncated[:, 1].nonzero().tolist() == [[0, 2], [1, 2], [2, 2]]


def test_a_budget_of_full_length_episodes_is_one_wave():
    env = ScriptedEnv([[8] * 50] * 2, worlds_for_budget(30, 8), 8)
    policy = make_policy()
    data = collect(env, policy, per_task_params(policy, 2), TaskNoise((0, 1), 2), steps_per_task=30)
    assert len(env.waves) == 1 and data.valid.shape == (2, 4, 8)
    assert [worlds_for_budget(*x) for x in [(1, 8), (8, 8), (9, 8), (30, 8)]] == [1, 1, 2, 4]


def test_rewards_that_are_not_finite_stop_the_collection_instead_of_filling_the_budget():
    env = ScriptedEnv([[1] * 50, [1] * 50], 3, 8, nan_episode=1)
    policy = make_policy()
    data = collect(env, policy, per_task_params(policy, 2), TaskNoise((0, 1), 2), steps_per_task=20)
    assert len(env.waves) == 1 and data.num_nonfinite() == 2


def test_too_few_worlds_for_a_budget_are_refused_with_the_number_needed():
    policy = make_policy()
    with pytest.raises(ValueError, match=r"20 steps at horizon 6 needs 4 worlds per task; there are 3"):
        collect(PointEnv(TASKS, 3, 6), policy, per_task_params(policy), TaskNoise((0,), 3), steps_per_task=20)


def test_horizon_one_is_one_truncated_step():
    policy = CategoricalMLPPolicy(1, 2, ())
    env = OneStepEnv(torch.tensor([[0.0]]), 5, lambda actions, tasks: (actions == tasks.long()).float())
    data = collect(env, policy, expand_tasks(dict(policy.named_parameters()), 1), TaskNoise((0,), 1))
    assert data.valid.shape == (1, 5, 1) and bool(data.truncated.all())
    assert torch.equal(data.rewards, (data.actions == 0).float())


# Noise.


def test_no_two_keys_of_a_run_give_the_same_seed():
    """The streams differ as far as torch's CPU generator lets them, which keeps 32 bits of a seed."""
    seeds = []
    for purpose in range(3):
        for seed in (0, 1, 2**31, 2**32, 2**40 + 3):
            for iteration in (0, 1, 255):
                for phase in range(2):
                    for wave in range(2):
                        noise = TaskNoise((purpose, seed, iteration, phase), 5)
                        seeds += noise.reset_seeds(wave)
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    first, low = (torch.Generator().manual_seed(seed) for seed in (seeds[0], seeds[0] % 2**32))
    assert torch.equal(torch.randn(8, generator=first), torch.randn(8, generator=low))
    # Each of the n(n - 1) / 2 pairs coincides with probability 2**-32: 0.0001 are expected among these.
    assert len({seed % 2**32 for seed in seeds}) == len(seeds) == 900


def test_a_worker_that_holds_some_tasks_draws_what_the_whole_would():
    whole, part = TaskNoise((0, 7, 3, 1), 6), TaskNoise((0, 7, 3, 1), 2, start=3)
    assert part.reset_seeds(0) == whole.reset_seeds(0)[3:5]
    a, b = (noise.action_noise(1, 3, 4, gaussian, 2) for noise in (whole, part))
    assert torch.equal(a[3:5], b) and a.shape == (6, 3, 4, 2)


def test_waves_tasks_initial_states_and_actions_use_different_streams():
    noise = TaskNoise((0, 7, 3, 1), 3)
    a, b = noise.action_noise(0, 3, 4, gaussian, 2), noise.action_noise(1, 3, 4, gaussian, 2)
    assert not torch.equal(a, b) and not torch.equal(a[0], a[1])
    assert not set(noise.reset_seeds(0)) & set(noise.reset_seeds(1))
    from_reset_seed = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(noise.reset_seeds(0)[0]))
    assert not torch.equal(a[0], from_reset_seed)
    flat = torch.cat([noise.action_noise(w, 50, 20, gaussian, 2).flatten(1) for w in range(2)])
    off_diagonal = torch.corrcoef(flat) - torch.eye(6)
    assert float(off_diagonal.abs().max()) < 5 / 2000**0.5
