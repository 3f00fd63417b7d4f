"""Gaussian and categorical distributions against torch.distributions, hand arithmetic and their own derivatives."""

import math

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from metarl.ops import categorical, gaussian
from metarl.ops.categorical import Categorical
from metarl.ops.gaussian import Gaussian


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_gaussian(seed, *shape):
    mean, log_std = torch.randn(2, *shape, dtype=torch.float64, generator=seeded(seed))
    return Gaussian(mean, 0.5 * log_std)


def random_categorical(seed, *shape):
    return Categorical(2 * torch.randn(*shape, dtype=torch.float64, generator=seeded(seed)))


def as_torch(params):
    if isinstance(params, Gaussian):
        return torch.distributions.Independent(torch.distributions.Normal(params.mean, params.log_std.exp()), 1)
    return torch.distributions.Categorical(logits=params.logits)


CASES = [(gaussian, random_gaussian), (categorical, random_categorical)]


def test_gaussian_log_prob_by_hand_is_summed_over_action_dimensions():
    """N(1, 2^2) at 3 and N(0, 1) at 0: -1/2 - log 2 - log(2 pi), not the mean of the two."""
    params = Gaussian(torch.tensor([1.0, 0.0]), torch.tensor([math.log(2.0), 0.0]))
    assert float(gaussian.log_prob(params, torch.tensor([3.0, 0.0]))) == pytest.approx(
        -0.5 - math.log(2) - math.log(2 * math.pi), rel=1e-6
    )


def test_categorical_log_prob_by_hand():
    params = Categorical(torch.tensor([[0.0, math.log(3.0)]] * 2))
    assert categorical.log_prob(params, torch.tensor([0, 1])).exp().tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(("distribution", "random"), CASES)
def test_log_prob_and_entropy_equal_torch_distributions(distribution, random):
    params = random(0, 4, 5, 3)
    actions = as_torch(random(1, 4, 5, 3)).sample()
    torch.testing.assert_close(distribution.log_prob(params, actions), as_torch(params).log_prob(actions))
    torch.testing.assert_close(distribution.entropy(params), as_torch(params).entropy())
    assert distribution.log_prob(params, actions).shape == distribution.entropy(params).shape == (4, 5)


@pytest.mark.parametrize(("distribution", "random"), CASES)
def test_kl_is_old_to_new_as_in_torch_distributions(distribution, random):
    old, new = random(0, 4, 3), random(1, 4, 3)
    result = distribution.kl(old, new)
    torch.testing.assert_close(result, torch.distributions.kl_divergence(as_torch(old), as_torch(new)))
    assert not torch.allclose(result, distribution.kl(new, old))
    assert bool((result > 0).all())


def test_gaussian_kl_by_hand():
    """KL(N(0, 1) || N(1, 2^2)) = log 2 + (1 + 1) / 8 - 1/2, twice for two such dimensions."""
    old = Gaussian(torch.zeros(2).double(), torch.zeros(2).double())
    new = Gaussian(torch.ones(2).double(), torch.full((2,), math.log(2.0), dtype=torch.float64))
    assert float(gaussian.kl(old, new)) == pytest.approx(2 * (math.log(2) + 2 / 8 - 0.5), rel=1e-12)


def test_categorical_kl_by_hand():
    """KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 log 2 + 1/2 log(2/3)."""
    old, new = (
        Categorical(torch.zeros(2).double()),
        Categorical(torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)),
    )
    assert float(categorical.kl(old, new)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-12)


@pytest.mark.parametrize(("distribution", "random"), CASES)
def test_kl_and_its_gradient_vanish_at_the_old_parameters(distribution, random):
    old = random(0, 6, 3)
    new = type(old)(*(x.clone().requires_grad_() for x in old))
    kl = distribution.kl(old, new)
    assert float(kl.detach().abs().max()) < 1e-15
    for gradient in torch.autograd.grad(kl.sum(), list(new)):
        assert float(gradient.abs().max()) < 1e-15


@pytest.mark.parametrize(("distribution", "random"), CASES)
def test_fisher_product_is_the_hessian_of_the_kl_at_the_old_parameters(distribution, random):
    old, tangent = random(0, 3), random(1, 3)
    sizes = [len(x) for x in old]

    def kl_of(flat):
        return distribution.kl(old, type(old)(*flat.split(sizes)))

    expected = hessian(kl_of, torch.cat(list(old))) @ torch.cat(list(tangent))
    torch.testing.assert_close(
        torch.cat(list(distribution.fisher_product(old, tangent))), expected, rtol=1e-10, atol=1e-12
    )


def test_categorical_fisher_is_the_covariance_of_the_score():
    """E[grad log p grad log p^T], summed over the actions."""
    params, tangent = random_categorical(0, 4), random_categorical(1, 4)
    scores = jacobian(lambda x: x.log_softmax(-1), params.logits)
    fisher = scores.T @ torch.diag(params.logits.softmax(-1)) @ scores
    torch.testing.assert_close(categorical.fisher_product(params, tangent).logits, fisher @ tangent.logits)


@pytest.mark.parametrize(("distribution", "random"), CASES)
def test_fisher_product_of_a_batch_is_the_product_of_each_row(distribution, random):
    params, tangent = random(0, 2, 5, 3), random(1, 2, 5, 3)
    whole = distribution.fisher_product(params, tangent)
    row = distribution.fisher_product(
        type(params)(*(x[1, 2] for x in params)), type(params)(*(x[1, 2] for x in tangent))
    )
    for a, b in zip(whole, row, strict=True):
        torch.testing.assert_close(a[1, 2], b)


def test_categorical_results_do_not_depend_on_the_normalisation_of_the_logits_and_survive_extreme_ones():
    params, action = random_categorical(0, 5, 3), torch.tensor([0, 1, 2, 0, 1])
    moved = Categorical(params.logits + 1e3)
    torch.testing.assert_close(categorical.log_prob(moved, action), categorical.log_prob(params, action))
    torch.testing.assert_close(categorical.entropy(moved), categorical.entropy(params))
    extreme = Categorical(torch.tensor([[1e4, 0.0, -1e4]], dtype=torch.float64))
    assert float(categorical.entropy(extreme)) == 0.0
    assert float(categorical.kl(extreme, extreme)) == 0.0


def test_gaussian_samples_have_the_mean_and_standard_deviation_of_the_parameters():
    params = Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]).log())
    n = 40_000
    noise = gaussian.draw_noise((n,), 2, seeded(0))
    samples = gaussian.sample(Gaussian(*(x.expand(n, 2) for x in params)), noise)
    # Five standard errors of the mean (sigma/sqrt n) and of the standard deviation (sigma/sqrt 2n).
    for i, (mean, std) in enumerate([(1.0, 0.5), (-2.0, 3.0)]):
        assert float(samples[:, i].mean()) == pytest.approx(mean, abs=5 * std / n**0.5)
        assert float(samples[:, i].std()) == pytest.approx(std, abs=5 * std / (2 * n) ** 0.5)
    assert abs(float(torch.corrcoef(samples.T)[0, 1])) < 5 / n**0.5


def test_gumbel_max_samples_have_the_softmax_frequencies():
    params = Categorical(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    n = 40_000
    noise = categorical.draw_noise((n,), 4, seeded(0))
    frequencies = torch.bincount(categorical.sample(Categorical(params.logits.expand(n, 4)), noise), minlength=4) / n
    p = params.logits.softmax(-1)
    assert bool(((frequencies - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all())


@pytest.mark.parametrize("distribution", [gaussian, categorical])
def test_noise_has_the_asked_shape_is_finite_and_is_a_function_of_the_generator_alone(distribution):
    torch.manual_seed(1)
    first = distribution.draw_noise((2, 3), 4, seeded(7))
    state = torch.get_rng_state()
    second = distribution.draw_noise((2, 3), 4, seeded(7))
    assert first.shape == (2, 3, 4) and torch.equal(first, second) and bool(torch.isfinite(first).all())
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert not torch.equal(first, distribution.draw_noise((2, 3), 4, seeded(8)))


def test_the_mode_is_the_most_probable_action():
    params = random_gaussian(0, 5, 2)
    assert torch.equal(gaussian.mode(params), params.mean)
    logits = random_categorical(0, 5, 4)
    every_action = torch.arange(4).unsqueeze(-1).expand(4, 5)
    best = categorical.log_prob(Categorical(logits.logits.expand(4, 5, 4)), every_action).argmax(0)
    assert torch.equal(categorical.mode(logits), best)
