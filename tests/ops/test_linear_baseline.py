"""The linear baseline against NumPy's own least squares, task by task."""

import math

import numpy as np
import pytest
import torch

from metarl.ops.linear_baseline import features, fit, predict


def data(tasks=3, episodes=4, times=6, obs_dim=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(tasks, episodes, times, obs_dim, generator=generator)
    lengths = torch.randint(1, times + 1, (tasks, episodes), generator=generator)
    valid = torch.arange(times) < lengths.unsqueeze(-1)
    targets = torch.randn(tasks, episodes, times, generator=generator, dtype=torch.float64)
    return observations, valid, targets


def reference_row(observation, t):
    o = np.clip(np.asarray(observation, dtype=np.float64), -10, 10)
    return np.concatenate([o, o**2, [t / 100, (t / 100) ** 2, (t / 100) ** 3, 1.0]])


def reference_ridge(observations, valid, targets, rho):
    """Ridge regression as an ordinary least-squares problem with sqrt(rho) I appended (not the normal equations)."""
    rows = [
        (reference_row(observations[e, t].numpy(), t), float(targets[e, t]))
        for e in range(valid.shape[0])
        for t in range(valid.shape[1])
        if valid[e, t]
    ]
    phi, y = np.array([row for row, _ in rows]), np.array([target for _, target in rows])
    n = phi.shape[1]
    augmented = np.concatenate([phi, math.sqrt(rho) * np.eye(n)])
    return np.linalg.lstsq(augmented, np.concatenate([y, np.zeros(n)]), rcond=None)[0]


def test_features_are_clipped_observation_square_time_powers_and_one():
    observations = torch.tensor([[[[3.0, -20.0]], [[50.0, 0.5]]]]).transpose(1, 2)  # one episode, two steps
    phi = features(observations, torch.ones(1, 1, 2, dtype=torch.bool))
    assert phi.dtype == torch.float64
    np.testing.assert_array_equal(phi[0, 0, 0].numpy(), reference_row([3, -20], 0))
    np.testing.assert_array_equal(phi[0, 0, 1].numpy(), reference_row([50, 0.5], 1))
    assert phi[0, 0, 0].tolist()[:4] == [3.0, -10.0, 9.0, 100.0]


def test_time_restarts_with_every_episode():
    observations, _, _ = data()
    phi = features(observations, torch.ones(observations.shape[:3], dtype=torch.bool))
    expected = torch.arange(6, dtype=torch.float64) / 100
    assert torch.equal(phi[..., -4], expected.expand(3, 4, 6))


@pytest.mark.parametrize("rho", [1e-5, 1e-2, 3.0])
def test_weights_are_each_tasks_own_ridge_solution(rho):
    observations, valid, targets = data()
    weights = fit(features(observations, valid), targets, valid, rho)
    for i in range(3):
        np.testing.assert_allclose(
            weights[i].numpy(), reference_ridge(observations[i], valid[i], targets[i], rho), rtol=1e-5, atol=1e-7
        )


def test_a_function_linear_in_the_features_is_recovered():
    observations, valid, _ = data(times=30, episodes=10)
    phi = features(observations, valid)
    true = torch.randn(3, phi.shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets = torch.einsum("ietf,if->iet", phi, true)
    values = predict(phi, fit(phi, targets, valid))
    torch.testing.assert_close(values, targets, rtol=0, atol=1e-3)
    torch.testing.assert_close(predict(phi, fit(phi, targets, valid, regularisation=1e-10)), targets, rtol=0, atol=1e-7)


def test_collinear_features_still_give_the_ridge_solution():
    """A fixed start state, a constant observation, horizon 1: all features are multiples of one another."""
    observations = torch.ones(2, 50, 1, 3)
    valid = torch.ones(2, 50, 1, dtype=torch.bool)
    targets = torch.randn(2, 50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 5
    phi = features(observations, valid)
    weights = fit(phi, targets, valid)
    assert bool(torch.isfinite(weights).all())
    for i in range(2):
        np.testing.assert_allclose(
            weights[i].numpy(), reference_ridge(observations[i], valid[i], targets[i], 1e-5), atol=1e-4
        )
    torch.testing.assert_close(
        predict(phi, weights), targets.mean(1, keepdim=True).expand_as(targets), rtol=1e-6, atol=0
    )


def test_fewer_steps_than_features_fit_without_blowing_up():
    observations, _, targets = data(tasks=1, episodes=1, times=2, obs_dim=20)
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    phi = features(observations, valid)
    weights = fit(phi, targets, valid)
    torch.testing.assert_close(predict(phi, weights), targets, rtol=1e-4, atol=1e-4)
    assert float(weights.abs().max()) < 10


def test_a_task_gets_ten_times_the_regularisation_until_its_system_is_positive_definite():
    """Two equal features s: the system is singular as long as rounding swallows what is added to s^2 = 2^(2k).

    Of 1e-5, 1e-4 ... the third is the first to count for k = 20.5, the fourth for k = 23, the fifth for k = 24.5, and
    none of five for k = 25.5.
    """
    first_good = {-10.0: 0, 20.5: 2, 23.0: 3, 24.5: 4, 25.5: None}
    scales = [2.0**power for power in first_good]
    for scale, expected in zip(scales, first_good.values(), strict=True):
        counting = [n for n in range(5) if scale**2 + 1e-5 * 10**n > scale**2]
        assert (counting[0] if counting else None) == expected
    phi = torch.tensor(scales, dtype=torch.float64).reshape(5, 1, 1, 1).expand(5, 1, 1, 2)
    targets, valid = torch.full((5, 1, 1), 3.0, dtype=torch.float64), torch.ones(5, 1, 1, dtype=torch.bool)
    weights = fit(phi, targets, valid)
    values = predict(phi, weights).flatten().tolist()
    # (2 s^2 + rho) w = s R. The healthy task keeps the solution of its first try, whatever the others still need.
    assert values[0] == pytest.approx(3 * 2 * 2.0**-20 / (2 * 2.0**-20 + 1e-5), rel=1e-9)
    assert values[1:4] == pytest.approx([3.0] * 3, rel=1e-3)
    assert weights[4].tolist() == [0.0, 0.0], "one that never becomes so has no baseline"


def test_a_system_that_is_not_positive_definite_is_not_taken_for_solved():
    """Rounding makes the second pivot negative: LAPACK stops there, and its factor is finite but only half done."""
    a, b = 7736065.949538915, 7373395.184070122
    phi = torch.tensor([[[[a, b, 0.0], [0.0, 0.0, 2.0]]]], dtype=torch.float64)
    targets, valid = torch.full((1, 1, 2), 3.0, dtype=torch.float64), torch.ones(1, 1, 2, dtype=torch.bool)
    values = predict(phi, fit(phi, targets, valid))
    # By the try that succeeds the regularisation is at most 0.1, of the 4 + 0.1 of the third feature.
    assert values.flatten().tolist() == pytest.approx([3.0, 3.0], rel=0.03)


def test_padding_changes_nothing_and_is_valued_zero():
    observations, valid, targets = data()
    phi = features(observations, valid)
    weights = fit(phi, targets, valid)
    for garbage in (math.nan, math.inf, 1e38):
        dirty = features(observations.masked_fill(~valid.unsqueeze(-1), garbage), valid)
        assert torch.equal(dirty, phi)
        assert torch.equal(fit(phi, targets.masked_fill(~valid, garbage), valid), weights)
    assert not predict(phi, weights)[~valid].any()


def test_one_tasks_data_does_not_change_anothers_weights():
    observations, valid, targets = data()
    weights = fit(features(observations, valid), targets, valid)
    observations[1], targets[1], valid[1, 0] = 3 * observations[1] + 1, 7.0, True
    changed = fit(features(observations, valid), targets, valid)
    assert torch.equal(changed[[0, 2]], weights[[0, 2]])
    assert not torch.equal(changed[1], weights[1])


def test_permuting_tasks_permutes_weights():
    observations, valid, targets = data()
    order = torch.tensor([2, 0, 1])
    weights = fit(features(observations, valid), targets, valid)
    permuted = fit(features(observations[order], valid[order]), targets[order], valid[order])
    torch.testing.assert_close(permuted, weights[order], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("poisoned", [math.nan, math.inf])
def test_a_task_that_cannot_be_fitted_gets_no_baseline_and_harms_no_other(poisoned):
    observations, valid, targets = data()
    weights = fit(features(observations, valid), targets, valid)
    valid[1, 0, 0] = True
    targets[1, 0, 0] = poisoned
    changed = fit(features(observations, valid), targets, valid)
    assert torch.equal(changed[[0, 2]], weights[[0, 2]])
    assert not changed[1].any()


def test_predict_is_the_inner_product_for_any_number_of_step_axes():
    phi = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.einsum("ietf,if->iet", phi, weights)
    torch.testing.assert_close(predict(phi, weights), expected)
    torch.testing.assert_close(predict(phi.flatten(1, 2), weights), expected.flatten(1, 2))
