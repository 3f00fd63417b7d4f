"""Policy-gradient objectives: values, gradients and Hessians on a softmax small enough for closed forms."""

import math

import pytest
import torch
from torch.autograd.functional import hessian

from metarl.ops.surrogate import dice, likelihood_ratio, reinforce

THETA = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
ACTIONS = torch.tensor([0, 2, 1, 2, 0, 1])
ADVANTAGES = torch.tensor([1.5, -0.5, 0.7, 2.0, -1.0, 0.1], dtype=torch.float64)
VALID = torch.ones(6, dtype=torch.bool)
OLD = THETA.log_softmax(-1)[ACTIONS]


def j_reinforce(theta):
    return reinforce(theta.log_softmax(-1)[ACTIONS].unsqueeze(0), ADVANTAGES.unsqueeze(0), VALID.unsqueeze(0)).sum()


def j_ratio(theta):
    log_prob = theta.log_softmax(-1)[ACTIONS].unsqueeze(0)
    return likelihood_ratio(log_prob, OLD.unsqueeze(0), ADVANTAGES.unsqueeze(0), VALID.unsqueeze(0)).sum()


def gradient_of(objective, theta=THETA):
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(objective(theta), theta)[0]


def scores():
    """grad log p(a) = e_a - p."""
    return torch.nn.functional.one_hot(ACTIONS, 3).double() - THETA.softmax(-1)


def test_both_are_means_by_hand():
    log_prob, old = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    advantages, valid = torch.tensor([[2.0, 3.0, 7.0]]), torch.tensor([[True, True, False]])
    assert reinforce(log_prob, advantages, valid).tolist() == [1.5]
    assert likelihood_ratio(log_prob, old, advantages, valid).tolist() == [pytest.approx((2 + 3 * math.e) / 2)]


def test_at_the_old_parameters_every_ratio_is_1_and_the_value_is_the_mean_advantage():
    assert float(j_ratio(THETA)) == float(ADVANTAGES.mean())


def test_both_gradients_are_the_policy_gradient_at_the_old_parameters():
    expected = (ADVANTAGES.unsqueeze(-1) * scores()).mean(0)
    torch.testing.assert_close(gradient_of(j_reinforce), expected)
    torch.testing.assert_close(gradient_of(j_ratio), expected)


def test_their_hessians_differ_by_the_advantage_weighted_outer_product_of_the_score():
    """Reinforce: mean A * H with H = -(diag p - p p^T); the ratio adds mean A s s^T, from grad ratio = ratio * s."""
    p = THETA.softmax(-1)
    h_reinforce = -ADVANTAGES.mean() * (torch.diag(p) - torch.outer(p, p))
    torch.testing.assert_close(hessian(j_reinforce, THETA), h_reinforce)
    outer = torch.einsum("n,ni,nj->ij", ADVANTAGES, scores(), scores()) / len(ADVANTAGES)
    torch.testing.assert_close(hessian(j_ratio, THETA), h_reinforce + outer)
    assert float(outer.abs().max()) > 0.05


def test_away_from_the_old_parameters_only_the_ratio_corrects_for_the_change_of_policy():
    theta = THETA + torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64)
    ratio = (theta.log_softmax(-1)[ACTIONS] - OLD).exp()
    p = theta.softmax(-1)
    s = torch.nn.functional.one_hot(ACTIONS, 3).double() - p
    torch.testing.assert_close(gradient_of(j_ratio, theta), ((ratio * ADVANTAGES).unsqueeze(-1) * s).mean(0))
    torch.testing.assert_close(gradient_of(j_reinforce, theta), (ADVANTAGES.unsqueeze(-1) * s).mean(0))


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("name", ["reinforce", "likelihood_ratio"])
def test_padding_changes_neither_value_nor_gradient_nor_second_derivative(name, garbage):
    generator = torch.Generator().manual_seed(0)
    log_prob, old, advantages = torch.randn(3, 2, 6, generator=generator, dtype=torch.float64)
    valid = torch.tensor([[True] * 4 + [False] * 2, [True, False] * 3])
    outcomes = []
    for filler in (0.0, garbage):
        x, o, a = (value.masked_fill(~valid, filler).requires_grad_() for value in (log_prob, old, advantages))
        value = reinforce(x, a, valid) if name == "reinforce" else likelihood_ratio(x, o, a, valid)
        (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        second = torch.autograd.grad((gradient.square()).sum(), x, allow_unused=True, materialize_grads=True)[0]
        outcomes.append((value.detach(), gradient.detach(), second))
    for clean, dirty in zip(*outcomes, strict=True):
        assert torch.equal(clean, dirty)
    assert not outcomes[1][1][~valid].any()


def test_a_task_depends_on_its_own_row_alone_and_an_empty_one_is_worth_zero():
    log_prob, old, advantages = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True] * 5, [False] * 5])
    for value in (reinforce(log_prob, advantages, valid), likelihood_ratio(log_prob, old, advantages, valid)):
        assert float(value[1]) == 0.0
    changed = advantages.clone()
    changed[1] += 1
    everywhere = torch.ones_like(valid)
    assert reinforce(log_prob, changed, everywhere)[0] == reinforce(log_prob, advantages, everywhere)[0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),  # inside: the plain surrogate, whose derivative in log pi is ratio times advantage
        (1.1, -2.0, -2.2, -2.2),
        (1.5, 2.0, 2.4, 0.0),  # gained enough: clipped at 1.2, no further push
        (0.5, -2.0, -1.6, 0.0),  # likewise at 0.8
        (0.5, 2.0, 1.0, 1.0),  # moved the wrong way: never clipped
        (1.5, -2.0, -3.0, -3.0),
    ],
)
def test_clipping_by_hand(ratio, advantage, value, slope):
    log_prob = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    zero, a = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[advantage]], dtype=torch.float64)
    gain = likelihood_ratio(log_prob, zero, a, torch.ones(1, 1, dtype=torch.bool), clip_range=0.2)
    assert float(gain.detach()) == pytest.approx(value)
    assert float(torch.autograd.grad(gain.sum(), log_prob)[0]) == pytest.approx(slope)


def test_dice_with_returns_to_go_is_the_sum_of_boxed_rewards():
    """Summation by parts: sum_t (box_t - box_{t-1}) R_t = sum_t box_t r_t - sum_t r_t, episode by episode."""
    generator = torch.Generator().manual_seed(0)
    rewards, old, new = (torch.randn(7, generator=generator, dtype=torch.float64) for _ in range(3))
    starts = torch.tensor([True, False, False, True, False, False, False])
    to_go = torch.cat([rewards[:3].flip(0).cumsum(0).flip(0), rewards[3:].flip(0).cumsum(0).flip(0)])
    boxes = torch.cat([(new - old)[:3].cumsum(0).exp(), (new - old)[3:].cumsum(0).exp()])
    rows = [x.unsqueeze(0) for x in (new, old, to_go)]
    ours = dice(*rows, torch.ones(1, 7, dtype=torch.bool), starts.unsqueeze(0))
    torch.testing.assert_close(7 * ours[0], (boxes * rewards).sum() - rewards.sum())


def test_dice_ignores_padding():
    new, old, advantages = (torch.tensor([[0.1, 0.2, math.nan]]) for _ in range(3))
    new.requires_grad_()
    valid, starts = torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]])
    (gradient,) = torch.autograd.grad(dice(new, old, advantages, valid, starts).sum(), new)
    assert gradient[0, :2].tolist() == pytest.approx([0.05, 0.1]) and gradient[0, 2] == 0
