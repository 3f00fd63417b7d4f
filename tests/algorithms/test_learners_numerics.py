"""What each learner adds to meta-gradient and metric, in float64, against closed forms and finite differences."""

import dataclasses
import itertools
import math

import pytest
import torch
from problems import (
    NUM_TASKS,
    ONE_BY_ONE,
    dense_hessian,
    dense_metric,
    make_policy,
    mean_objective,
    problem,
    tasks_of,
)
from toys import assert_trees_close, double_params, equal_trees, finite_difference, random_samples

from metarl.adaptation import adapt
from metarl.algorithms.composition import OUTER_OPTIMIZERS, contradiction
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
from metarl.algorithms.objective import MetaBatch, exploration_credit, meta_gradient, meta_objective
from metarl.algorithms.trust_region import LinearizedBatch
from metarl.ops.surrogate import likelihood_ratio
from metarl.ops.tree import expand_tasks, flatten
from metarl.policies import CategoricalMLPPolicy
from metarl.policy_gradient import ESTIMATORS, policy_inner_loop
from metarl.types import Samples

TOTAL, KL, INNER_KL = range(3)
SWITCHES = {
    name: dict(named.settings)
    for name, named in LEARNERS.items()
    if named.settings.get("outer_optimizer", "trpo") in ("trpo", "adam") and named.settings.get("num_inner_steps") != 0
} | {
    "lvc": {"inner_estimator": "lvc"},
    "dice": {"inner_estimator": "dice"},
    "lvc, first order": {"inner_estimator": "lvc", "first_order": True},
    "inner KL": {"inner_kl_penalty": 0.3},
    "exploration, weighted": {"exploration_credit": 0.7, "step_weights": (2.0, 1.0)},
    "exploration, first step alone": {"exploration_credit": 0.7, "step_weights": (1.0, 0.0)},
    "meta-sgd per step, weighted": {"learned_lr": "per_step", "step_weights": (2.0, 1.0)},
    "meta-sgd, first step alone": {"learned_lr": "shared", "step_weights": (1.0, 0.0)},
    "meta-sgd, first order": {"learned_lr": "shared", "first_order": True},
    "anil, learned": {"adapted": "head", "learned_lr": "per_step"},
    "cavia, learned, lvc": {"adapted": "context", "learned_lr": "shared", "inner_estimator": "lvc"},
}
"""Compositions, every named one among them; all but those of first order are smooth in the meta-parameters."""
EXACT = {name: settings for name, settings in SWITCHES.items() if not settings.get("first_order")}


def moved(meta, seed=11, scale=0.05):
    """A point near the old meta-parameters, where ratios and divergences are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    return {n: v + scale * torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in meta.items()}


# Every composition: at the old parameters, gradient, metric.


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("settings", SWITCHES.values(), ids=SWITCHES.keys())
def test_at_the_old_parameters_every_kl_is_0_and_the_replayed_adaptation_the_recorded_one(settings, num_steps):
    inner, meta, config, batch, data = problem("gaussian", num_steps, **settings)
    replayed = inner.adapt(meta, batch.samples[:-1], NUM_TASKS, num_steps)
    for a, b in zip(replayed, data.trajectory, strict=True):
        assert_trees_close(a, b, rtol=1e-12, atol=1e-14)
    total, kl, inner_kl = meta_objective(inner, meta, batch.samples, batch.credit, config)
    assert max(float(kl.abs().max()), float(inner_kl.abs().max())) < 1e-14
    # Every ratio is 1: what is left are mean advantages, which are 0, and E-MAML's weights of each support phase.
    torch.testing.assert_close(total, batch.credit.sum(-1).double(), rtol=0, atol=1e-6)


def test_the_extra_term_on_the_bandit_is_what_the_objective_adds():
    """The same derivation through the objective itself: one pull on arm a, credit W(d'_a)."""
    policy = CategoricalMLPPolicy(1, 2, ())
    inner = policy_inner_loop(policy, inner_lr=0.8)
    meta = {n: v.detach().double().clone() for n, v in policy.named_parameters()}
    config = LearnerConfig(exploration_credit=1.0, meta_batch_size=2)
    without = dataclasses.replace(config, exploration_credit=0.0)
    ones, valid = torch.ones(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    for arm, credit in ((0, 0.37), (1, 0.81)):
        action, advantage = torch.tensor([[arm]]), torch.ones(1, 1, dtype=torch.float64)
        out = policy.distribution.log_prob(torch.func.functional_call(policy, meta, (ones,)), action)
        sample = Samples(ones, action, advantage, valid, valid, out, torch.func.functional_call(policy, meta, (ones,)))
        batch = MetaBatch([sample, sample], torch.tensor([[credit]], dtype=torch.float64))
        parts = [meta_gradient(inner, meta, batch, c, ONE_BY_ONE)[0] for c in (config, without)]
        leaves = {n: v.clone().requires_grad_() for n, v in meta.items()}
        log_prob = policy.distribution.log_prob(torch.func.functional_call(policy, leaves, (ones,)), action).sum()
        scores = dict(zip(leaves, torch.autograd.grad(log_prob, list(leaves.values())), strict=True))
        assert_trees_close(
            {n: parts[0][n] - parts[1][n] for n in meta}, {n: credit * g for n, g in scores.items()}, rtol=1e-10
        )


@pytest.mark.parametrize("at", ["old parameters", "elsewhere"])
@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("settings", EXACT.values(), ids=EXACT.keys())
def test_the_meta_gradient_equals_finite_differences(settings, num_steps, at):
    inner, meta, config, batch, _ = problem("gaussian", num_steps, **settings)
    meta = meta if at == "old parameters" else moved(meta)
    objective = mean_objective(TOTAL, "gaussian", num_steps, **settings)
    gradient, value = meta_gradient(inner, meta, batch, config, ONE_BY_ONE)
    assert value == pytest.approx(float(objective(meta)), abs=1e-13)
    assert_trees_close(gradient, finite_difference(objective, meta), rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("settings", SWITCHES.values(), ids=SWITCHES.keys())
def test_the_metric_is_the_hessian_of_the_mean_kl_in_all_meta_parameters(settings, num_steps):
    inner, meta, config, batch, _ = problem("gaussian", num_steps, **settings)
    ours = dense_metric(LinearizedBatch(inner, meta, batch, config, ONE_BY_ONE).fisher_product, meta)
    expected = dense_hessian(mean_objective(KL, "gaussian", num_steps, **settings), meta)
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


# Estimators: the same step, and Hessians by their closed forms.


def episodes_of(samples, task):
    """Rows of each of a task's episodes."""
    rows = [t for t in range(samples.valid.shape[1]) if samples.valid[task, t]]
    starts = [t for t in rows if samples.starts[task, t]]
    ends = [*starts[1:], rows[-1] + 1]
    return [range(a, b) for a, b in zip(starts, ends, strict=True)]


def closed_form_hessian(name, inner, params, samples, task):
    """1/N sum_t A_t (hess l_t + what the estimator keeps of the scores), by loops over steps."""
    theta, unflatten = flatten(params)

    def log_probs(vector):
        out = torch.func.functional_call(inner.module, unflatten(vector), (samples.observations[task],))
        return inner.module.distribution.log_prob(out, samples.actions[task])

    scores = torch.autograd.functional.jacobian(log_probs, theta)
    total = torch.zeros(len(theta), len(theta), dtype=theta.dtype)
    for episode in episodes_of(samples, task):
        before = torch.zeros_like(theta)
        for t in episode:
            curvature = torch.autograd.functional.hessian(lambda v, t=t: log_probs(v)[t], theta)
            if name in ("lvc", "dice"):
                curvature = curvature + torch.outer(scores[t], scores[t])
            if name == "dice":
                curvature = curvature + torch.outer(scores[t], before) + torch.outer(before, scores[t])
            total += samples.advantages[task, t] * curvature
            before = before + scores[t]
    return total / samples.valid[task].sum()


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_an_estimators_gradient_is_the_policy_gradient_and_its_hessian_the_closed_form(name, kind):
    inner, params, _, batch, _ = problem(kind, 1, inner_estimator=name)
    plain, samples = policy_inner_loop(inner.module), batch.samples[0]
    assert len(episodes_of(samples, 0)) == 5 and max(len(e) for e in episodes_of(samples, 0)) > 2
    leaves = {n: v.clone().requires_grad_() for n, v in params.items()}
    theta, unflatten = flatten(params)
    for task in range(2):
        own = tasks_of(samples, slice(task, task + 1))
        gradients = [
            torch.autograd.grad(loop.loss(expand_tasks(leaves, 1), own).sum(), list(leaves.values()))
            for loop in (inner, plain)
        ]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        ours = torch.autograd.functional.hessian(
            lambda v, own=own: -inner.loss(expand_tasks(unflatten(v), 1), own).sum(), theta
        )
        torch.testing.assert_close(ours, closed_form_hessian(name, inner, params, samples, task), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_the_meta_gradient_is_j_transposed_with_the_estimators_hessian(name):
    inner, params, config, batch, data = problem("gaussian", 1, inner_estimator=name)
    theta, unflatten = flatten(params)
    expected = torch.zeros_like(theta)
    for i in range(NUM_TASKS):
        query = tasks_of(batch.samples[1], slice(i, i + 1))
        adapted = flatten({n: v[i] for n, v in data.trajectory[-1].items()})[0].requires_grad_()
        new = torch.func.functional_call(inner.module, unflatten(adapted), (query.observations[0],))
        log_prob = inner.module.distribution.log_prob(new, query.actions[0]).unsqueeze(0)
        gain = likelihood_ratio(log_prob, query.log_prob, query.advantages, query.valid).sum()
        (g,) = torch.autograd.grad(gain, adapted)
        hessian = closed_form_hessian(name, inner, params, batch.samples[0], i)
        expected += (g + config.inner_lr * hessian @ g) / NUM_TASKS
    ours = flatten(meta_gradient(inner, params, batch, config, ONE_BY_ONE)[0])[0]
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


def test_the_estimators_do_differ():
    gradients = [
        flatten(meta_gradient(inner, params, batch, config, ONE_BY_ONE)[0])[0]
        for inner, params, config, batch, _ in (problem("gaussian", 1, inner_estimator=name) for name in ESTIMATORS)
    ]
    for a, b in itertools.combinations(gradients, 2):
        assert float((a - b).norm()) > 1e-3 * float(a.norm())


# E-MAML.


def test_e_mamls_extra_term_on_a_two_armed_bandit_is_the_hand_derived_derivative():
    """Arm a of {0, 1} is pulled with probability sigmoid(+-d), pays r_a; one step from d on one pull is
    d' = d + alpha r_a grad log pi(a). The expected return after it is V(d) = sum_a pi(a; d) W(d'_a) with
    W(d) = sum_b pi(b; d) r_b. Its derivative is sum_a pi(a) W'(d'_a) dd'_a/dd (what MAML climbs) plus
    sum_a pi(a) W(d'_a) grad log pi(a; d): E-MAML's term, here by the surrogate with credit W(d'_a).
    """
    alpha, rewards = 0.8, torch.tensor([0.3, 1.0], dtype=torch.float64)
    d = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def log_pi(d):
        return torch.stack([torch.nn.functional.logsigmoid(-d), torch.nn.functional.logsigmoid(d)])

    def adapted(d, arm):
        (gradient,) = torch.autograd.grad(log_pi(d)[arm], d, create_graph=True)
        return d + alpha * rewards[arm] * gradient

    def value_after(d, arm):
        return log_pi(adapted(d, arm)).exp() @ rewards

    expected_return = sum(log_pi(d)[a].exp() * value_after(d, a) for a in (0, 1))
    (derivative,) = torch.autograd.grad(expected_return, d)
    total = torch.zeros((), dtype=torch.float64)
    for a in (0, 1):  # the expectation over the pull, exactly
        probability = log_pi(d)[a].exp().detach()
        (through_the_step,) = torch.autograd.grad(value_after(d, a), d)
        log_prob = log_pi(d)[a].reshape(1, 1)
        credit = value_after(d, a).detach().reshape(1, 1)
        surrogate = likelihood_ratio(log_prob, log_prob.detach(), credit, torch.ones(1, 1, dtype=torch.bool)).sum()
        (exploring,) = torch.autograd.grad(surrogate, d)
        total += probability * (through_the_step + exploring)
    assert float(total) == pytest.approx(float(derivative), rel=1e-12)
    # By hand: sigma = sigmoid(d), scores -sigma and 1 - sigma.
    s, ds = 1 / (1 + math.exp(-0.4)), []
    for score, r, curvature in ((-s, 0.3, -s * (1 - s)), (1 - s, 1.0, -s * (1 - s))):
        ds.append((0.4 + alpha * r * score, 1 + alpha * r * curvature, score))
    by_hand = 0.0
    for p, (d_new, jacobian, score) in zip((1 - s, s), ds, strict=True):
        q = 1 / (1 + math.exp(-d_new))
        by_hand += p * (q * (1 - q) * (1.0 - 0.3) * jacobian + score * (0.3 * (1 - q) + 1.0 * q))
    assert float(derivative) == pytest.approx(by_hand, rel=1e-12)


def standardised(values):
    mean = sum(values) / len(values)
    sd = math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))
    return [(x - mean) / sd for x in values]


def test_credit_is_what_followed_each_step_standardised_over_tasks():
    """Weights 2 and 1: step 0 is credited with (2 R_1 + R_2) / 3, step 1 with R_2 alone at its weight of 1/3."""
    _, _, config, batch, data = problem("gaussian", 2, exploration_credit=0.7, step_weights=(2.0, 1.0))
    sums = [[float(r[v].sum()) for r, v in zip(o.rewards, o.valid, strict=True)] for o in data.rollouts]
    episodes = [o.valid.any(-1).sum(-1).tolist() for o in data.rollouts]
    returns = [[a / b for a, b in zip(s, e, strict=True)] for s, e in zip(sums, episodes, strict=True)]
    mixed = [(2 * a + b) / 3 for a, b in zip(returns[1], returns[2], strict=True)]
    assert batch.credit[:, 0].tolist() == pytest.approx([0.7 * x for x in standardised(mixed)], rel=1e-4)
    assert batch.credit[:, 1].tolist() == pytest.approx([0.7 / 3 * x for x in standardised(returns[2])], rel=1e-4)
    _, _, _, last_only, data = problem("gaussian", 2, exploration_credit=0.7)
    assert torch.equal(last_only.credit[:, 0], last_only.credit[:, 1])
    assert not exploration_credit(data, dataclasses.replace(config, exploration_credit=0.0)).any()


@pytest.mark.parametrize("reward", [1.0, 0.1, 0.3, 33.333])
def test_equal_returns_give_no_credit_and_no_nan(reward):
    _, _, config, _, data = problem("gaussian", 1, exploration_credit=1.0)
    same = [dataclasses.replace(r, rewards=torch.full_like(r.rewards, reward), valid=torch.ones_like(r.valid))
            for r in data.rollouts]  # fmt: skip
    assert exploration_credit(dataclasses.replace(data, rollouts=same), config).tolist() == [[0.0]] * NUM_TASKS


def test_the_extra_term_adds_the_credited_scores_of_every_support_phase():
    inner, meta, config, batch, _ = problem("gaussian", 1, exploration_credit=0.7)
    without = dataclasses.replace(config, exploration_credit=0.0)
    ours = flatten(meta_gradient(inner, meta, batch, config, ONE_BY_ONE)[0])[0]
    plain = flatten(meta_gradient(inner, meta, batch, without, ONE_BY_ONE)[0])[0]
    leaves = {n: v.clone().requires_grad_() for n, v in meta.items()}
    support, total = batch.samples[0], 0.0
    for i in range(NUM_TASKS):
        n = int(support.valid[i].sum())
        out = torch.func.functional_call(inner.module, leaves, (support.observations[i, :n],))
        total = total + batch.credit[i, 0] * inner.module.distribution.log_prob(out, support.actions[i, :n]).mean()
    extra = torch.cat([g.flatten() for g in torch.autograd.grad(total / NUM_TASKS, list(leaves.values()))])
    torch.testing.assert_close(ours - plain, extra, rtol=1e-8, atol=1e-10)


# ProMP.


def test_the_inner_kl_is_the_mean_over_steps_of_each_steps_own_divergence():
    inner, meta, config, batch, _ = problem("gaussian", 2, inner_kl_penalty=0.3)
    there = moved(meta)
    objective = meta_objective(inner, there, batch.samples, batch.credit, config)
    trajectory = inner.adapt(there, batch.samples[:-1], NUM_TASKS, 2)
    for i in range(NUM_TASKS):
        divergences = []
        for k, samples in enumerate(batch.samples[:-1]):
            n = int(samples.valid[i].sum())
            theta = {name: value[i] for name, value in trajectory[k].items()}
            new = torch.func.functional_call(inner.module, theta, (samples.observations[i, :n],))
            old = type(new)(*(value[i, :n] for value in samples.dist_params))
            normals = [torch.distributions.Normal(p.mean, p.log_std.exp()) for p in (old, new)]
            divergences.append(float(torch.distributions.kl_divergence(*normals).sum(-1).mean()))
        assert float(objective.inner_kl[i]) == pytest.approx(sum(divergences) / 2, rel=1e-9)
        assert divergences[0] > 1e-5
    free = meta_objective(inner, there, batch.samples, batch.credit, dataclasses.replace(config, inner_kl_penalty=0.0))
    torch.testing.assert_close(objective.total, free.total - 0.3 * objective.inner_kl)
    assert not free.inner_kl.any()


# What adapts.


@pytest.mark.parametrize("learned_lr", ["no", "per_step"])
def test_anil_moves_the_head_and_leaves_the_body_bitwise(learned_lr):
    inner, meta, *_, data = problem("gaussian", 2, adapted="head", learned_lr=learned_lr)
    for name, value in data.trajectory[2].items():
        in_head = name in ("mean.layers.1.weight", "mean.layers.1.bias", "log_std")
        same = all(torch.equal(value[i], meta[name]) for i in range(NUM_TASKS))
        assert same != in_head, name
    assert set(inner.module.head) == {"mean.layers.1.weight", "mean.layers.1.bias", "log_std"}


def test_cavia_moves_the_context_from_0_and_leaves_everything_else_bitwise():
    inner, meta, *_, data = problem("gaussian", 2, adapted="context")
    assert "context" not in meta and "context" in data.trajectory[0]
    assert not data.trajectory[0]["context"].any()
    assert bool(data.trajectory[2]["context"].any(-1).all())
    assert all(torch.equal(data.trajectory[2][n][i], meta[n]) for n in meta for i in range(NUM_TASKS))
    assert equal_trees(inner.start(meta, 2), inner.start(moved(meta) | meta, 2))


def test_a_context_of_0_is_a_policy_without_its_columns():
    policy = make_policy("gaussian", 2)
    observations = torch.randn(5, 2)
    with_zeros = torch.cat([observations, torch.zeros(5, 2)], -1)
    torch.testing.assert_close(policy(observations).mean, policy.mean(with_zeros))
    changed = double_params(policy)
    out = torch.func.functional_call(policy, changed, (observations.double(),)).mean
    beside = torch.cat([observations.double(), changed["context"].expand(5, 2)], -1)
    without = {n: v for n, v in changed.items() if n.startswith("mean.")}
    expected = torch.func.functional_call(policy.mean, {n[5:]: v for n, v in without.items()}, (beside,))
    torch.testing.assert_close(out, expected)


def test_a_policy_without_the_part_that_should_adapt_is_refused():
    with pytest.raises(ValueError, match="context_dim is 0"):
        policy_inner_loop(make_policy("gaussian"), adapted="context")
    with pytest.raises(ValueError, match="naming its output layer"):
        policy_inner_loop(torch.nn.Linear(2, 2), adapted="head")
    for name, wrong in (("estimator", "magic"), ("adapted", "body"), ("learned_lr", "per-step")):
        with pytest.raises(ValueError, match=f"{name} is '{wrong}'; it must be one of"):
            policy_inner_loop(make_policy("gaussian"), **{name: wrong})
    with pytest.raises(ValueError, match="has a context"):
        policy_inner_loop(make_policy("gaussian", 2))


# Learned step sizes.


def test_learned_step_sizes_start_at_the_fixed_ones_and_adapt_alike():
    fixed, meta, _, batch, _ = problem("gaussian", 2)
    plain = fixed.adapt(meta, batch.samples[:-1], NUM_TASKS, 2)
    for learned, count in (("shared", 1), ("per_step", 2)):
        inner = dataclasses.replace(fixed, learned_lr=learned, num_learned_steps=2)
        full = {name: value.double() for name, value in inner.initial_meta().items()} | meta
        assert len(full) == len(meta) * (1 + count)
        for a, b in zip(inner.adapt(full, batch.samples[:-1], NUM_TASKS, 2), plain, strict=True):
            assert_trees_close(a, b, rtol=1e-7, atol=1e-9)


def test_more_steps_than_were_trained_take_the_last_steps_sizes():
    inner, meta, *_ = problem("gaussian", 2, learned_lr="per_step")
    sizes = inner.step_sizes(meta, 4)
    assert torch.equal(sizes[0]["log_std"], meta["inner_lr.0.log_std"])
    assert all(torch.equal(sizes[k]["log_std"], meta["inner_lr.1.log_std"]) for k in (1, 2, 3))
    shared, meta, *_ = problem("gaussian", 2, learned_lr="shared")
    sizes = shared.step_sizes(meta, 3)
    assert torch.equal(sizes[0]["log_std"], meta["inner_lr.0.log_std"])
    assert all(torch.equal(sizes[k]["log_std"], 0.5 * meta["inner_lr.0.log_std"]) for k in (1, 2))


def test_every_entry_steps_by_its_own_size():
    inner, meta, _, batch, _ = problem("gaussian", 1, learned_lr="shared")
    meta = meta | {n: v * torch.linspace(-1, 2, v.numel()).reshape(v.shape) for n, v in meta.items() if "inner" in n}
    after = inner.adapt(meta, batch.samples[:1], NUM_TASKS, 1)[1]
    fixed = dataclasses.replace(inner, learned_lr="no", inner_lr=1.0)
    gradient_step = adapt(fixed.start(meta, NUM_TASKS), batch.samples[:1], fixed.loss, inner_lr=1.0)
    for name in after:
        moved_by = meta[f"inner_lr.0.{name}"] * (gradient_step[1][name] - gradient_step[0][name])
        torch.testing.assert_close(after[name], gradient_step[0][name] + moved_by)


# Reptile and FOMAML.


def test_reptile_with_one_inner_step_is_alpha_times_the_plain_gradient():
    settings = {"outer_optimizer": "reptile", "outer_lr": 0.7}
    inner, meta, config, batch, data = problem("gaussian", 1, **settings)
    update = OUTER_OPTIMIZERS["reptile"](inner, meta, config, ONE_BY_ONE).update(meta, data)
    no_steps = LearnerConfig(num_inner_steps=0)
    plain = MetaBatch(batch.samples[:1], batch.credit)
    gradient, _ = meta_gradient(inner, meta, plain, no_steps, ONE_BY_ONE)
    for name in meta:
        torch.testing.assert_close(update.meta[name] - meta[name], 0.7 * config.inner_lr * gradient[name])


def test_reptile_with_more_steps_is_the_sum_of_their_gradients():
    inner, meta, config, _, data = problem("gaussian", 3, outer_optimizer="reptile", outer_lr=0.7)
    update = OUTER_OPTIMIZERS["reptile"](inner, meta, config, ONE_BY_ONE).update(meta, data)
    for name in meta:
        steps = sum((b[name] - a[name]).mean(0) for a, b in itertools.pairwise(data.trajectory))
        torch.testing.assert_close(update.meta[name] - meta[name], 0.7 * steps)


def test_first_order_differs_from_exact_by_alpha_h_g_on_a_quadratic_family():
    """L_i = 1/2 (theta - c_i)^T Q (theta - c_i): FOMAML g = Q (I - alpha Q)(theta - c_i), exact (I - alpha Q) g"""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    q, centres = root @ root.T / 3, torch.randn(4, 3, generator=generator, dtype=torch.float64)
    theta, alpha = torch.randn(3, generator=generator, dtype=torch.float64), 0.2

    def loss(params, batch):
        away = params["x"] - batch
        return 0.5 * torch.einsum("ia,ab,ib->i", away, q, away)

    def outer(first_order):
        leaf = theta.clone().requires_grad_()
        start = {"x": leaf.expand(4, 3)}
        end = adapt(start, [centres], loss, inner_lr=alpha, first_order=first_order)[-1]
        return torch.autograd.grad(loss(end, centres).mean(), leaf)[0]

    g = (q @ (torch.eye(3).double() - alpha * q) @ (theta - centres).T).mean(1)
    torch.testing.assert_close(outer(True), g)
    torch.testing.assert_close(outer(False), g - alpha * q @ g)


# What composes.


def test_every_named_learner_composes():
    for name, learner in LEARNERS.items():
        config = LearnerConfig(**learner.settings)
        assert contradiction(config) is None, name
        inner = config.inner_loop(make_policy("gaussian", config.context_dim))
        assert inner.initial_meta()


@pytest.mark.parametrize(
    ("settings", "field", "says"),
    [
        ({"inner_estimator": "magic"}, "inner_estimator", "reinforce, lvc, dice"),
        ({"outer_optimizer": "sgd"}, "outer_optimizer", "trpo, adam, reptile, none"),
        ({"outer_optimizer": "adam", "max_kl": 0.02}, "max_kl", "only trpo reads it"),
        ({"clip_range": 0.2}, "clip_range", "only adam reads it"),
        ({"outer_epochs": 3}, "outer_epochs", "only adam"),
        ({"outer_lr": 0.2}, "outer_lr", "adam and reptile"),
        ({"outer_optimizer": "reptile", "first_order": True}, "first_order", "trpo and adam"),
        ({"outer_optimizer": "reptile", "learned_lr": "shared"}, "learned_lr", "trpo and adam"),
        ({"outer_optimizer": "reptile", "num_inner_steps": 0}, "num_inner_steps", "one or more"),
        ({"outer_optimizer": "reptile", "adapted": "context"}, "adapted", "stay random"),
        ({"outer_optimizer": "reptile", "adapted": "head"}, "adapted", "stay random"),
        ({"outer_optimizer": "reptile", "inner_estimator": "lvc"}, "inner_estimator", "trpo and adam read it"),
        ({"num_inner_steps": 0, "inner_estimator": "dice"}, "inner_estimator", "num_inner_steps is 0"),
        ({"outer_optimizer": "adam", "clip_range": 0.2}, "clip_range", "outer_epochs is 1"),
        ({"outer_optimizer": "adam", "inner_kl_penalty": 0.2}, "inner_kl_penalty", "outer_epochs is 1"),
        ({"exploration_credit": 1.0, "inner_estimator": "lvc"}, "exploration_credit", "only reinforce"),
        ({"outer_optimizer": "none", "exploration_credit": 1.0}, "exploration_credit", "trpo and adam"),
        ({"num_inner_steps": 0, "exploration_credit": 1.0}, "exploration_credit", "num_inner_steps is 0"),
        ({"num_inner_steps": 0, "inner_kl_penalty": 1.0}, "inner_kl_penalty", "num_inner_steps is 0"),
        ({"num_inner_steps": 0, "learned_lr": "shared"}, "learned_lr", "num_inner_steps is 0"),
        ({"num_inner_steps": 0, "first_order": True}, "first_order", "num_inner_steps is 0"),
        ({"exploration_credit": -1.0}, "exploration_credit", "zero or more"),
        ({"exploration_credit": 1.0, "meta_batch_size": 1}, "meta_batch_size", "2 or more"),
        ({"num_inner_steps": 2, "step_weights": (1.0,)}, "step_weights", "num_inner_steps (2)"),
    ],
)
def test_what_means_nothing_together_is_refused_in_one_sentence(settings, field, says):
    name, sentence = contradiction(LearnerConfig(**settings))
    assert name == field and says in sentence and sentence.count("\n") == 0


def test_random_samples_of_the_toys_start_episodes():
    assert random_samples("gaussian", 2, 6, 2, 2).starts.tolist() == [[True, False, False] * 2] * 2
