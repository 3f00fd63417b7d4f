"""Laws of discounted returns and generalized advantage estimation, against loops written here from the definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarl.ops.returns import discounted_returns, generalized_advantages


def reference_advantages(rewards, values, bootstrap, gamma, lam):
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, summed term by term over one episode of Python floats."""
    successors = [*values, bootstrap][1:]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, successors, strict=True)]
    return [sum((gamma * lam) ** (j - t) * deltas[j] for j in range(t, len(deltas))) for t in range(len(deltas))]


def episodes(lengths, num_times, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), num_times)
    rewards, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    bootstrap = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    valid = torch.arange(num_times) < torch.tensor(lengths).unsqueeze(-1)
    return rewards, values, bootstrap, valid


def test_discounted_return_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0, 100.0]])
    valid = torch.tensor([[True, True, True, False]])
    assert discounted_returns(rewards, valid, 0.5).tolist() == [[3.0, 4.0, 4.0, 0.0]]


def test_discounted_return_with_gamma_one_is_the_reversed_cumulative_sum_and_with_zero_the_reward():
    rewards, _, _, valid = episodes([5, 5], 5)
    torch.testing.assert_close(discounted_returns(rewards, valid, 1.0), rewards.flip(-1).cumsum(-1).flip(-1))
    assert torch.equal(discounted_returns(rewards, valid, 0.0), rewards)


def test_advantage_by_hand():
    """Two steps: delta_0 = 1 + .5*4 - 3 = 0, delta_1 = 2 + .5*8 - 4 = 2; A_0 = delta_0 + .5*.25*delta_1."""
    result = generalized_advantages(
        torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([8.0]), torch.ones(1, 2).bool(), 0.5, 0.25
    )
    assert result.tolist() == [[0.25, 2.0]]


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    seed=st.integers(0, 2**20),
)
def test_advantages_equal_the_sum_of_discounted_temporal_differences(lengths, gamma, lam, seed):
    rewards, values, bootstrap, valid = episodes(lengths, 7, seed)
    result = generalized_advantages(rewards, values, bootstrap, valid, gamma, lam)
    for e, length in enumerate(lengths):
        expected = reference_advantages(
            rewards[e, :length].tolist(), values[e, :length].tolist(), float(bootstrap[e]), gamma, lam
        )
        assert result[e, :length].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert not result[e, length:].any()


def test_lambda_zero_gives_the_one_step_error():
    rewards, values, bootstrap, valid = episodes([6], 6)
    after = torch.cat([values[:, 1:], bootstrap.unsqueeze(-1)], dim=1)
    result = generalized_advantages(rewards, values, bootstrap, valid, 0.9, 0.0)
    torch.testing.assert_close(result, rewards + 0.9 * after - values, rtol=1e-14, atol=1e-14)


def test_lambda_one_gives_the_bootstrapped_return_minus_the_value():
    gamma, length = 0.9, 4
    rewards, values, bootstrap, valid = episodes([length], 6)
    result = generalized_advantages(rewards, values, bootstrap, valid, gamma, 1.0)
    for t in range(length):
        tail = sum(gamma**k * rewards[0, t + k] for k in range(length - t)) + gamma ** (length - t) * bootstrap[0]
        assert float(result[0, t]) == pytest.approx(float(tail - values[0, t]), rel=1e-12)


def test_a_perfect_value_function_has_no_advantage():
    rewards, _, bootstrap, valid = episodes([6, 3], 6)
    gamma = 0.95
    rewards = torch.where(valid, rewards, 0.0)
    steps_left = valid.flip(-1).cumsum(-1).flip(-1).double()
    values = discounted_returns(rewards, valid, gamma) + gamma**steps_left * bootstrap.unsqueeze(-1)
    for lam in (0.0, 0.5, 1.0):
        result = generalized_advantages(rewards, values, bootstrap, valid, gamma, lam)
        torch.testing.assert_close(result, torch.zeros_like(result), rtol=0, atol=1e-13)


def test_the_bootstrap_value_enters_with_gamma_times_gamma_lambda_to_the_distance():
    _, values, _, valid = episodes([3], 5)
    rewards = torch.zeros_like(values)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    low, high = (generalized_advantages(rewards, values, b, valid, 0.5, 0.5) for b in (zero, one))
    torch.testing.assert_close(high - low, torch.tensor([[0.03125, 0.125, 0.5, 0.0, 0.0]], dtype=torch.float64))


def test_whatever_stands_in_padding_changes_nothing():
    rewards, values, bootstrap, valid = episodes([2, 0, 5], 5)
    clean = generalized_advantages(rewards, values, bootstrap, valid, 0.9, 0.8)
    clean_returns = discounted_returns(rewards, valid, 0.9)
    for garbage in (math.nan, math.inf, -math.inf, 1e380):
        dirty_rewards, dirty_values = rewards.masked_fill(~valid, garbage), values.masked_fill(~valid, garbage)
        dirty_bootstrap = bootstrap.masked_fill(~valid.any(-1), garbage)
        assert torch.equal(generalized_advantages(dirty_rewards, dirty_values, dirty_bootstrap, valid, 0.9, 0.8), clean)
        assert torch.equal(discounted_returns(dirty_rewards, valid, 0.9), clean_returns)


def test_inputs_are_only_read_and_the_dtype_is_kept():
    rewards, values, bootstrap, valid = (x.float() if x.is_floating_point() else x for x in episodes([2, 4], 4))
    copies = [x.clone() for x in (rewards, values, bootstrap)]
    assert generalized_advantages(rewards, values, bootstrap, valid, 0.9, 0.8).dtype == torch.float32
    assert all(torch.equal(x, y) for x, y in zip((rewards, values, bootstrap), copies, strict=True))
