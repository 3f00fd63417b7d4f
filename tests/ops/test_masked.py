"""Masked statistics: only valid entries count, each task's own, standard deviation and not variance."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarl.ops.masked import masked_mean, normalise, valid_first


def test_masked_mean_by_hand_and_zero_without_entries():
    values = torch.tensor([[1.0, 2.0, 9.0], [4.0, math.nan, math.nan], [math.nan] * 3])
    valid = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    assert masked_mean(values, valid).tolist() == [1.5, 4.0, 0.0]


def test_normalise_divides_by_the_standard_deviation_not_the_variance():
    """Entries 0 and 6 have deviation 3: normalised -1 and 1; a division by the variance would give -1/3, 1/3."""
    result = normalise(torch.tensor([[0.0, 6.0, 5.0]]).double(), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(result, torch.tensor([[-1.0, 1.0, 0.0]]).double(), rtol=1e-8, atol=0)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**20), scale=st.sampled_from([1e-3, 1.0, 1e4]), shift=st.sampled_from([0.0, 50.0]))
def test_every_task_gets_mean_0_and_standard_deviation_1_over_its_own_valid_entries(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64) * scale + shift
    valid = torch.rand(3, 4, 6, generator=generator) < 0.7
    valid[:, 0, :2] = True
    result = normalise(values, valid)
    for i in range(3):
        entries = result[i][valid[i]]
        assert abs(float(entries.mean())) < 1e-9
        assert abs(float(entries.std(correction=0)) - 1) < 1e-4
        assert not result[i][~valid[i]].any()


def test_normalise_is_invariant_to_shift_and_positive_scale():
    values = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 30, dtype=torch.bool)
    torch.testing.assert_close(normalise(7 * values - 3, valid), normalise(values, valid), rtol=1e-6, atol=1e-7)


def test_equal_entries_and_single_entries_become_zero_not_nan():
    valid = torch.ones(2, 4, dtype=torch.bool)
    valid[1, 1:] = False
    assert not normalise(torch.full((2, 4), 2.5), valid).any()


def test_normalising_one_task_does_not_look_at_another():
    values = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(3, 10, dtype=torch.bool)
    changed = values.clone()
    changed[1] = 1e6 * torch.randn(10, generator=torch.Generator().manual_seed(1))
    assert torch.equal(normalise(values, valid)[[0, 2]], normalise(changed, valid)[[0, 2]])


def test_padding_changes_neither_statistics_nor_gradients():
    generator = torch.Generator().manual_seed(0)
    values, valid = torch.randn(2, 8, generator=generator), torch.rand(2, 8, generator=generator) < 0.6
    weights = torch.randn(2, 8, generator=generator)
    outcomes = []
    for garbage in (0.0, math.nan, math.inf):
        x = values.masked_fill(~valid, garbage).requires_grad_()
        result = normalise(x, valid)
        (gradient,) = torch.autograd.grad((weights * result).sum() + masked_mean(x, valid).sum(), x)
        outcomes.append((masked_mean(x, valid), result, gradient))
    for outcome in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcome, outcomes[0], strict=True))
    assert not outcomes[0][2][~valid].any()


def test_valid_entries_come_first_in_their_order():
    valid = torch.tensor([[False, True, True, False], [True, False, False, True]])
    values = torch.arange(8.0).reshape(2, 4)
    assert valid_first(valid, 2)(values).tolist() == [[1, 2], [4, 7]]
    assert valid_first(valid, 3)(values).tolist() == [[1, 2, 0], [4, 7, 5]]
    wide = torch.stack([values, -values], dim=-1)
    assert torch.equal(valid_first(valid, 3)(wide)[..., 1], -valid_first(valid, 3)(values))
