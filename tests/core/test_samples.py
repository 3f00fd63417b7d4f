"""From rollouts to advantages and rows: what bootstraps, what padding may hold, which rows are kept."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from metarl.ops import gaussian
from metarl.ops.gaussian import Gaussian
from metarl.samples import advantages, to_samples
from metarl.types import Rollout

GAMMA, LAMBDA = 0.9, 0.7


def rollout(lengths, times=5, ends="truncated", obs_dim=2, seed=0, dtype=torch.float64):
    """Random episodes of the given lengths `[task][episode]`; 0 is a padding episode."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor(lengths)
    shape = (*length.shape, times)
    here = torch.arange(times)
    last = here == (length - 1).unsqueeze(-1)
    never = torch.zeros_like(last)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=dtype)

    params = Gaussian(normal(*shape, 1), 0.1 * normal(*shape, 1))
    actions = gaussian.sample(params, normal(*shape, 1))
    return Rollout(
        observations=normal(*shape, obs_dim),
        actions=actions,
        rewards=normal(*shape),
        terminated=last if ends == "terminated" else never,
        truncated=last if ends == "truncated" else never,
        valid=here < length.unsqueeze(-1),
        final_observation=normal(*length.shape, obs_dim),
        log_prob=gaussian.log_prob(params, actions),
        dist_params=params,
    )


def poisoned(data, garbage, flags=True):
    """Garbage in everything that padding holds, and in the final observation of padding episodes."""

    def fill(x):
        mask = ~data.valid.reshape(*data.valid.shape, *[1] * (x.ndim - 3))
        return x.masked_fill(mask, garbage if x.is_floating_point() else flags)

    changed = {
        f.name: tree_map(fill, getattr(data, f.name))
        for f in dataclasses.fields(data)
        if f.name not in ("valid", "final_observation")
    }
    final = data.final_observation.masked_fill(~data.valid.any(-1, keepdim=True), garbage)
    return dataclasses.replace(data, final_observation=final, **changed)


def reference(data, gamma, lam, bootstrap_truncated):
    """The whole pipeline again in NumPy, episode by episode: returns, ridge regression, GAE, normalisation."""
    results = np.zeros(tuple(data.valid.shape))
    for i in range(data.valid.shape[0]):
        episodes = [(e, int(data.valid[i, e].sum())) for e in range(data.valid.shape[1])]

        def row(o, t):
            o = np.clip(o.double().numpy(), -10, 10)
            return np.concatenate([o, o**2, [t / 100, (t / 100) ** 2, (t / 100) ** 3, 1]])

        rows, targets = [], []
        for e, n in episodes:
            r = data.rewards[i, e].double().numpy()
            for t in range(n):
                rows.append(row(data.observations[i, e, t], t))
                targets.append(sum(gamma**k * r[t + k] for k in range(n - t)))
        phi, y = np.array(rows), np.array(targets)
        w = np.linalg.solve(phi.T @ phi + 1e-5 * np.eye(phi.shape[1]), phi.T @ y)
        estimates = {}
        for e, n in episodes:
            values = [row(data.observations[i, e, t], t) @ w for t in range(n)]
            cut_off = n > 0 and bool(data.truncated[i, e, n - 1]) and not bool(data.terminated[i, e, n - 1])
            values.append(row(data.final_observation[i, e], n) @ w if bootstrap_truncated and cut_off else 0.0)
            running = 0.0
            for t in reversed(range(n)):
                delta = float(data.rewards[i, e, t]) + gamma * values[t + 1] - values[t]
                running = delta + gamma * lam * running
                estimates[e, t] = running
        all_estimates = np.array(list(estimates.values()))
        for (e, t), value in estimates.items():
            results[i, e, t] = (value - all_estimates.mean()) / (all_estimates.std() + 1e-8)
    return results


LENGTHS = [[5, 3, 4, 5, 2, 5], [4, 5, 5, 1, 0, 0]]


@pytest.mark.parametrize("ends", ["terminated", "truncated", "neither"])
@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("lam", [0.0, LAMBDA, 1.0])
def test_advantages_equal_the_pipeline_written_out_step_by_step(ends, bootstrap, lam):
    data = rollout(LENGTHS, ends=ends)
    result = advantages(data, gamma=GAMMA, gae_lambda=lam, bootstrap_truncated=bootstrap)
    np.testing.assert_allclose(result.numpy(), reference(data, GAMMA, lam, bootstrap), rtol=1e-5, atol=1e-7)


def test_a_truncated_episode_bootstraps_only_where_asked_and_a_terminated_one_never():
    outcome = {
        (ends, bootstrap): advantages(
            rollout(LENGTHS, ends=ends), gamma=GAMMA, gae_lambda=1.0, bootstrap_truncated=bootstrap
        )
        for ends in ("terminated", "truncated")
        for bootstrap in (False, True)
    }
    assert torch.equal(outcome["terminated", True], outcome["terminated", False])
    assert torch.equal(outcome["truncated", False], outcome["terminated", False])
    assert not torch.allclose(outcome["truncated", True], outcome["truncated", False])


def test_a_step_that_terminates_at_the_horizon_does_not_bootstrap():
    """Gymnasium allows both flags on one step; the task's own end wins."""
    data = rollout(LENGTHS, ends="terminated")
    both = dataclasses.replace(data, truncated=data.terminated)
    settings = {"gamma": GAMMA, "gae_lambda": 1.0, "bootstrap_truncated": True}
    assert torch.equal(advantages(both, **settings), advantages(data, **settings))


def test_the_final_observation_is_valued_at_the_time_it_was_seen():
    """One episode longer than the others shows in the time feature: see `reference`; here only that it is used."""
    data = rollout(LENGTHS)
    settings = {"gamma": GAMMA, "gae_lambda": 1.0, "bootstrap_truncated": True}
    moved = dataclasses.replace(data, final_observation=data.final_observation + 1)
    assert not torch.allclose(advantages(data, **settings), advantages(moved, **settings))
    settings["bootstrap_truncated"] = False
    assert torch.equal(advantages(data, **settings), advantages(moved, **settings))


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_garbage_in_padding_changes_no_advantage_no_row_and_no_return(garbage, bootstrap, ends):
    data = rollout(LENGTHS, ends=ends)
    dirty = poisoned(data, garbage)
    settings = {"gamma": GAMMA, "gae_lambda": LAMBDA, "bootstrap_truncated": bootstrap}
    clean_advantages, dirty_advantages = advantages(data, **settings), advantages(dirty, **settings)
    assert torch.equal(clean_advantages, dirty_advantages)
    assert not dirty_advantages[~data.valid].any()
    clean, rows = to_samples(data, clean_advantages), to_samples(dirty, dirty_advantages)
    assert all(torch.equal(a, b) for a, b in zip(clean[:5], rows[:5], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(clean.dist_params, rows.dist_params, strict=True))
    assert torch.equal(data.mean_return(), dirty.mean_return())
    assert torch.equal(data.episode_returns(), dirty.episode_returns())
    assert dirty.num_nonfinite() == 0 and dirty.num_steps() == data.num_steps() == int(data.valid.sum())


def test_advantages_of_a_task_depend_on_its_own_episodes_alone():
    data = rollout(LENGTHS)
    changed = dataclasses.replace(data, rewards=data.rewards.clone(), observations=data.observations.clone())
    changed.rewards[1] *= -3
    changed.observations[1] += 2
    settings = {"gamma": GAMMA, "gae_lambda": LAMBDA, "bootstrap_truncated": True}
    a, b = advantages(data, **settings), advantages(changed, **settings)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


def test_rows_are_a_tasks_valid_steps_in_order_and_padding_is_zero():
    data = rollout(LENGTHS)
    advantage = advantages(data, gamma=GAMMA, gae_lambda=LAMBDA)
    rows = to_samples(poisoned(data, math.nan), advantage)
    assert rows.valid.shape == (2, 24)
    for i in range(2):
        n = int(data.valid[i].sum())
        assert rows.valid[i].tolist() == [True] * n + [False] * (24 - n)
        for name in ("observations", "actions", "log_prob"):
            assert torch.equal(getattr(rows, name)[i, :n], getattr(data, name)[i][data.valid[i]])
            assert not getattr(rows, name)[i, n:].any()
        assert torch.equal(rows.advantages[i, :n], advantage[i][data.valid[i]])
        for kept, recorded in zip(rows.dist_params, data.dist_params, strict=True):
            assert torch.equal(kept[i, :n], recorded[i][data.valid[i]])


def test_the_first_row_of_every_episode_is_told():
    """Also where padding is left out, and of episodes of a single step."""
    for data in (rollout(LENGTHS), rollout([[5, 5], [5, 5]]), rollout([[1, 1, 2, 1]], times=2)):
        rows = to_samples(data, data.rewards)
        for i in range(len(data.valid)):
            lengths = [int(n) for n in data.valid[i].sum(-1) if n]
            expected = [t == 0 for n in lengths for t in range(n)]
            assert rows.starts[i].tolist() == expected + [False] * (rows.starts.shape[1] - len(expected))


def test_valid_rows_come_first_where_all_rows_are_needed_but_not_by_every_task():
    data = rollout([[5, 5], [3, 4]])
    rows = to_samples(poisoned(data, math.nan), data.rewards)
    assert rows.valid.tolist() == [[True] * 10, [True] * 7 + [False] * 3]
    assert torch.equal(rows.observations[1, :7], data.observations[1][data.valid[1]])
    assert not rows.observations[1, 7:].any()


def test_few_numbers_of_rows_occur_and_none_beyond_what_there_is():
    found = set()
    for length in range(1, 50, 4):
        data = rollout([[50] * 9 + [length], [50] * 8 + [0, 0]], times=50)
        rows = to_samples(data, data.rewards)
        assert rows.valid.sum(-1).tolist() == [450 + length, 400]
        found.add(rows.valid.shape[1])
    assert found == {464, 480, 496, 500}


def test_without_padding_rows_are_a_reshape():
    data = rollout([[5, 5], [5, 5]])
    rows = to_samples(data, data.rewards)
    assert torch.equal(rows.observations, data.observations.flatten(1, 2)) and bool(rows.valid.all())


def test_non_finite_steps_are_counted_where_they_are_valid():
    data = rollout(LENGTHS)
    data.rewards[0, 0, 1] = math.nan
    data.observations[1, 0, 0, 1] = math.inf
    data.observations[1, 0, 1] = math.nan
    data.rewards[1, 4, 0] = math.nan  # padding
    assert data.num_nonfinite() == 3


def test_returns_are_undiscounted_sums_averaged_over_the_episodes_there_are():
    data = rollout(LENGTHS)
    for i, own in enumerate(LENGTHS):
        sums = [float(data.rewards[i, e, :n].sum()) for e, n in enumerate(own) if n]
        assert float(data.mean_return()[i]) == pytest.approx(sum(sums) / len(sums), rel=1e-12)


def test_advantages_are_computed_in_float64_and_returned_in_the_rollouts_dtype():
    data = rollout(LENGTHS, dtype=torch.float32)
    result = advantages(data, gamma=GAMMA, gae_lambda=LAMBDA)
    assert result.dtype == torch.float32
    wide = tree_map(lambda x: x.double() if x.is_floating_point() else x, data)
    assert torch.equal(result, advantages(wide, gamma=GAMMA, gae_lambda=LAMBDA).float())
