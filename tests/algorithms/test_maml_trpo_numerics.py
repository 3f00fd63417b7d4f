"""MAML-TRPO's objective, gradient and metric in float64 against finite differences and dense automatic derivatives."""

import dataclasses
import gc
import itertools
import math
import weakref

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
from torch.utils._pytree import tree_map
from toys import assert_trees_close, double_params, equal_trees, finite_difference

from metarl import inner_loop
from metarl.adaptation import AdaptationJacobian
from metarl.algorithms import trust_region
from metarl.algorithms.composition import contradiction
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.objective import MetaBatch, meta_gradient, meta_objective
from metarl.algorithms.trust_region import LinearizedBatch, num_metric_tasks, trust_region_update
from metarl.fisher import PolicyFisher
from metarl.functional import per_task
from metarl.memory import SavedBytes
from metarl.ops.tree import expand_tasks, flatten
from metarl.ops.trust_region import trust_region_step
from metarl.parallel import TaskChunks

KINDS = ["gaussian", "categorical"]
VARIANTS = {"plain": {}, "two steps weighted": {"step_weights": (2.0, 1.0)}, "first order": {"first_order": True}}


# The recorded data.


def test_the_recorded_problem_has_padding_and_tasks_of_different_lengths():
    _, _, _, batch, _ = problem("gaussian", 2)
    counts = batch.samples[0].valid.sum(-1)
    assert len(set(counts.tolist())) > 1 and all(
        samples.observations.dtype == torch.float64 for samples in batch.samples
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_at_theta_the_replayed_adaptation_is_the_recorded_one_every_ratio_is_1_and_every_kl_is_0(kind, num_steps):
    inner, params, config, batch, data = problem(kind, num_steps)
    replayed = inner.adapt(params, batch.samples[:-1], NUM_TASKS, num_steps)
    for a, b in zip(replayed, data.trajectory, strict=True):
        assert_trees_close(a, b, rtol=1e-12, atol=1e-14)
    gain, kl, _ = meta_objective(inner, params, batch.samples, batch.credit, config)
    query = batch.samples[-1]
    mean_advantage = torch.stack([a[v].mean() for a, v in zip(query.advantages, query.valid, strict=True)])
    torch.testing.assert_close(gain, mean_advantage, rtol=0, atol=1e-13)
    assert float(mean_advantage.abs().max()) < 1e-12
    assert float(kl.abs().max()) < 1e-14


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_gradient_of_the_mean_kl_vanishes_at_theta(kind, variant):
    _, params, *_ = problem(kind, 2, **variant)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    gradient = torch.autograd.grad(mean_objective(1, kind, 2, **variant)(leaves), list(leaves.values()))
    assert max(float(g.abs().max()) for g in gradient) < 1e-13


def as_torch(dist_params):
    if len(dist_params) == 2:
        normal = torch.distributions.Normal(dist_params.mean, dist_params.log_std.exp())
        return torch.distributions.Independent(normal, 1)
    return torch.distributions.Categorical(logits=dist_params.logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_elsewhere_surrogate_and_kl_are_their_definitions_task_by_task_and_step_by_step(kind, num_steps):
    """theta_i' by plain gradient descent on one task's valid steps; mean of ratio times advantage; KL(old || new)."""
    inner, _, config, batch, _ = problem(kind, num_steps)
    params = double_params(inner.module, 0.5, 11)
    gain, kl, _ = meta_objective(inner, params, batch.samples, batch.credit, config)
    for i in range(NUM_TASKS):
        own = [tree_map(lambda x, i=i, v=s.valid: x[i][v[i]], s) for s in batch.samples]
        theta = params
        for k, support in enumerate(own[:-1]):
            leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
            new = as_torch(torch.func.functional_call(inner.module, leaves, (support.observations,)))
            objective = (new.log_prob(support.actions) * support.advantages).mean()
            gradient = torch.autograd.grad(objective, list(leaves.values()))
            alpha = 0.1 if k == 0 else 0.05
            theta = {n: leaves[n].detach() + alpha * g for n, g in zip(leaves, gradient, strict=True)}
        query = own[-1]
        new = as_torch(torch.func.functional_call(inner.module, theta, (query.observations,)))
        ratio = (new.log_prob(query.actions) - query.log_prob).exp()
        torch.testing.assert_close(gain[i], (ratio * query.advantages).mean(), check_dtype=True)
        torch.testing.assert_close(kl[i], torch.distributions.kl_divergence(as_torch(query.dist_params), new).mean())
        assert kl[i] > 1e-3


# Meta-gradient.


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_the_meta_gradient_equals_finite_differences_of_the_mean_surrogate(kind, num_steps, weighted):
    weights = (2.0, 0.0, 1.0)[:num_steps] if weighted else ()
    inner, params, config, batch, _ = problem(kind, num_steps, step_weights=weights)
    gradient, value = meta_gradient(inner, params, batch, config, ONE_BY_ONE)
    objective = mean_objective(0, kind, num_steps, step_weights=weights)
    assert_trees_close(gradient, finite_difference(objective, params), rtol=1e-6, atol=1e-8)
    assert value == pytest.approx(float(objective(params)), abs=1e-14)
    assert all(value.dtype == torch.float64 and not value.requires_grad for value in gradient.values())


@pytest.mark.parametrize("kind", KINDS)
def test_without_inner_steps_the_meta_gradient_is_the_policy_gradient(kind):
    """1/M sum_i 1/N sum A grad log pi, from the definition, one step at a time."""
    inner, params, config, batch, _ = problem(kind, 0)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    total = 0.0
    (query,) = batch.samples
    for i in range(NUM_TASKS):
        dist_params = torch.func.functional_call(inner.module, leaves, (query.observations[i],))
        log_prob = inner.module.distribution.log_prob(dist_params, query.actions[i])
        n = int(query.valid[i].sum())
        total = total + (log_prob[:n] * query.advantages[i, :n]).mean() / NUM_TASKS
    expected = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    assert_trees_close(meta_gradient(inner, params, batch, config, ONE_BY_ONE)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_first_order_is_the_gradient_at_the_adapted_parameters_and_differs_by_j_transposed(kind):
    """FOMAML: mean of g_i(theta_i'); exact: mean of J_i^T g_i(theta_i'), J_i = I - alpha H_i built densely here."""
    inner, params, config, batch, data = problem(kind, 1)
    first_order = dataclasses.replace(config, first_order=True)
    theta, unflatten = flatten(params)
    plain = exact = torch.zeros_like(theta)
    no_steps = dataclasses.replace(config, num_inner_steps=0)
    for i in range(NUM_TASKS):
        support, query = (tasks_of(samples, slice(i, i + 1)) for samples in batch.samples)

        def inner_loss(vector, support=support):
            return inner.loss(expand_tasks(unflatten(vector), 1), support).sum()

        def surrogate(vector, query=query):
            return meta_objective(inner, unflatten(vector), [query], batch.credit[:1], no_steps).total.sum()

        adapted = flatten({name: value[i] for name, value in data.trajectory[-1].items()})[0].requires_grad_()
        (g,) = torch.autograd.grad(surrogate(adapted), adapted)
        hessian = torch.autograd.functional.hessian(inner_loss, theta)
        jacobian = torch.eye(len(theta)).double() - config.inner_lr * hessian
        plain, exact = plain + g / NUM_TASKS, exact + jacobian.T @ g / NUM_TASKS
    without = first_order.inner_loop(inner.module)
    ours_plain = flatten(meta_gradient(without, params, batch, first_order, ONE_BY_ONE)[0])[0]
    ours_exact = flatten(meta_gradient(inner, params, batch, config, ONE_BY_ONE)[0])[0]
    torch.testing.assert_close(ours_plain, plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours_exact, exact, rtol=1e-9, atol=1e-12)
    assert float((plain - exact).norm()) > 1e-3 * float(exact.norm())


# The metric.


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_the_fisher_product_is_the_hessian_of_the_mean_kl_through_the_adaptation(kind, num_steps, variant):
    inner, params, config, batch, _ = problem(kind, num_steps, **variant)
    ours = dense_metric(LinearizedBatch(inner, params, batch, config, ONE_BY_ONE).fisher_product, params)
    expected = dense_hessian(mean_objective(1, kind, num_steps, **variant), params)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours, ours.T, rtol=1e-9, atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(ours)
    assert float(eigenvalues.min()) > -1e-12 * float(eigenvalues.max()) and float(eigenvalues.max()) > 0


def test_through_the_adaptation_the_metric_is_not_the_plain_one():
    exact, plain = (
        dense_metric(LinearizedBatch(inner, params, batch, config, ONE_BY_ONE).fisher_product, params)
        for inner, params, config, batch, _ in (problem("gaussian", 2), problem("gaussian", 2, first_order=True))
    )
    assert float((exact - plain).norm()) > 0.01 * float(exact.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("chunk_size", [2, 3, 10])
def test_chunks_and_threads_change_neither_gradient_nor_metric(kind, chunk_size, num_threads):
    inner, params, config, batch, _ = problem(kind, 2)
    chunks = TaskChunks(chunk_size, num_threads)
    vector = double_params(inner.module, 1.0, 9)
    for function in (
        lambda c: LinearizedBatch(inner, params, batch, config, c).fisher_product(vector),
        lambda c: meta_gradient(inner, params, batch, config, c)[0],
    ):
        assert_trees_close(function(chunks), function(ONE_BY_ONE), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_graphs_beyond_the_memory_budget_are_rebuilt_with_bitwise_the_same_products(num_threads, monkeypatch):
    inner, params, config, batch, _ = problem("gaussian", 2)
    chunks, vector = TaskChunks(1, num_threads), double_params(make_policy("gaussian"), 1.0, 9)
    built = []

    def counted(*args, **kwargs):
        built.append(1)
        return AdaptationJacobian(*args, **kwargs)

    monkeypatch.setattr(inner_loop, "AdaptationJacobian", counted)
    kept = LinearizedBatch(inner, params, batch, config, chunks).fisher_product
    products = [kept(vector) for _ in range(2)]
    assert len(built) == NUM_TASKS
    built.clear()
    monkeypatch.setattr(trust_region, "graph_budget", lambda device: 1)
    metric = LinearizedBatch(inner, params, batch, config, chunks).fisher_product
    assert len(built) == 1
    products += [metric(vector) for _ in range(2)]
    assert len(built) == 1 + 2 * (NUM_TASKS - 1)
    assert all(equal_trees(product, products[0]) for product in products)


def test_products_are_linear_and_repeatable():
    inner, params, config, batch, _ = problem("categorical", 2)
    metric = LinearizedBatch(inner, params, batch, config, ONE_BY_ONE).fisher_product
    a, b = double_params(inner.module, 1.0, 1), double_params(inner.module, 1.0, 2)
    first, second = metric(a), metric(b)
    combined = metric({name: 2 * a[name] - 3 * b[name] for name in a})
    assert_trees_close(combined, {name: 2 * first[name] - 3 * second[name] for name in a}, rtol=1e-10, atol=1e-12)
    assert equal_trees(metric(a), first)


def test_a_share_of_the_tasks_gives_the_metric_of_those_tasks_and_leaves_the_gradient_alone():
    inner, params, config, batch, _ = problem("gaussian", 1, fvp_fraction=0.5)
    _, _, _, full, _ = problem("gaussian", 1)
    assert all(torch.equal(a.valid, b.valid) for a, b in zip(batch.samples, full.samples, strict=True))
    half = slice(NUM_TASKS // 2)
    linearized = LinearizedBatch(inner, params, batch, config, ONE_BY_ONE)
    ours = dense_metric(linearized.fisher_product, params)
    expected = dense_hessian(
        lambda shared: meta_objective(
            inner, shared, [tasks_of(s, half) for s in full.samples], full.credit[half], config
        ).kl.mean(),
        params,
    )
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-11)
    whole = LinearizedBatch(inner, params, full, dataclasses.replace(config, fvp_fraction=1.0), ONE_BY_ONE)
    assert float((ours - dense_metric(whole.fisher_product, params)).norm()) > 1e-3
    for (gradient, value), (same, again) in itertools.combinations(
        (linearized.gradient(), whole.gradient(), meta_gradient(inner, params, full, config, ONE_BY_ONE)), 2
    ):
        assert_trees_close(gradient, same, rtol=1e-12, atol=1e-15)
        assert value == pytest.approx(again, abs=1e-15)


@pytest.mark.parametrize(("fraction", "expected"), [(1e-9, 1), (0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_the_share_of_tasks_is_rounded_and_at_least_one(fraction, expected):
    assert num_metric_tasks(NUM_TASKS, LearnerConfig(fvp_fraction=fraction)) == expected


def test_the_metrics_graphs_are_freed_with_it():
    inner, params, _, batch, _ = problem("gaussian", 1)
    alive = []

    def build():
        apply, distribution = per_task(inner.module), inner.module.distribution
        fisher = PolicyFisher(apply, distribution, expand_tasks(params, NUM_TASKS), batch.samples[0])
        alive.append(weakref.ref(fisher._outputs[0]))
        return fisher

    gc.collect()
    gc.disable()
    try:
        with SavedBytes() as saved:
            fisher = build()
        assert saved.total > 0 and alive[0]() is not None
        del fisher
        assert alive[0]() is None, "something keeps the graph"
    finally:
        gc.enable()


# Padding and independence of tasks.


def poisoned(samples):
    """NaN wherever a row is padding."""

    def fill(x):
        padding = ~samples.valid.reshape(*samples.valid.shape, *[1] * (x.ndim - 2))
        return x.masked_fill(padding, math.nan) if x.is_floating_point() else x

    return tree_map(fill, samples)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_what_ended_episodes_hold_changes_no_gradient_metric_or_step(num_steps):
    inner, params, config, batch, _ = problem("gaussian", num_steps)
    _, _, _, hostile, hostile_data = problem("gaussian", num_steps, hostile=True)
    assert any(bool(torch.isnan(r.rewards).any()) for r in hostile_data.rollouts)
    gradient, value = meta_gradient(inner, params, batch, config, ONE_BY_ONE)
    hostile_gradient, hostile_value = meta_gradient(inner, params, hostile, config, ONE_BY_ONE)
    assert equal_trees(gradient, hostile_gradient) and value == hostile_value
    steps = [trust_region_update(inner, params, b, config, ONE_BY_ONE)[0] for b in (batch, hostile)]
    assert equal_trees(steps[0].params, steps[1].params) and steps[0].accepted


def test_nan_in_padded_advantages_and_densities_changes_no_surrogate_and_no_gradient():
    inner, params, config, batch, _ = problem("gaussian", 1)
    dirty = [
        samples._replace(**{name: getattr(poisoned(samples), name) for name in ("advantages", "log_prob")})
        for samples in batch.samples
    ]
    clean_gradient, clean_value = meta_gradient(inner, params, batch, config, ONE_BY_ONE)
    gradient, value = meta_gradient(inner, params, batch._replace(samples=dirty), config, ONE_BY_ONE)
    assert equal_trees(gradient, clean_gradient) and value == clean_value


@pytest.mark.parametrize("kind", KINDS)
def test_no_task_reads_anothers_data(kind):
    inner, params, config, batch, _ = problem(kind, 2)

    def outcome(samples):
        leaves = {n: v.clone().requires_grad_() for n, v in params.items()}
        gain, kl, _ = meta_objective(inner, leaves, samples, batch.credit, config)
        gradients = [torch.autograd.grad(value, list(leaves.values()), retain_graph=True) for value in gain]
        rows = [torch.cat([g.flatten() for g in gradient]) for gradient in gradients]
        return torch.cat([gain.detach()[:, None], kl.detach()[:, None], torch.stack(rows)], dim=1)

    before = outcome(batch.samples)
    for phase in range(3):
        changed = list(batch.samples)
        samples = changed[phase]
        advantages, observations = samples.advantages.clone(), samples.observations.clone()
        advantages[1] = 3 * advantages[1] + 0.5
        observations[1] += 0.1
        changed[phase] = samples._replace(advantages=advantages, observations=observations)
        difference = (outcome(changed) - before).abs().amax(-1)
        assert difference[1] > 1e-6 and bool((difference[[0, 2, 3]] < 1e-14).all())


def test_permuting_tasks_permutes_results_and_keeps_gradient_and_metric():
    inner, params, config, batch, _ = problem("gaussian", 2)
    order, vector = torch.tensor([2, 0, 3, 1]), double_params(inner.module, 1.0, 9)
    permuted = MetaBatch(*(tasks_of(part, order) for part in batch))
    for a, b in zip(
        meta_objective(inner, double_params(inner.module, 0.41), permuted.samples, permuted.credit, config),
        meta_objective(inner, double_params(inner.module, 0.41), batch.samples, batch.credit, config),
        strict=True,
    ):
        torch.testing.assert_close(a, b[order], rtol=1e-11, atol=1e-13)
    for function in (
        lambda b: meta_gradient(inner, params, b, config, ONE_BY_ONE)[0],
        lambda b: LinearizedBatch(inner, params, b, config, ONE_BY_ONE).fisher_product(vector),
    ):
        assert_trees_close(function(permuted), function(batch), rtol=1e-10, atol=1e-12)


# The update.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_an_update_gains_within_the_trust_region_and_its_report_can_be_recomputed(kind, num_steps):
    inner, params, config, batch, _ = problem(kind, num_steps)
    step, norm, _ = trust_region_update(inner, params, batch, config, ONE_BY_ONE)
    gradient, value = meta_gradient(inner, params, batch, config, ONE_BY_ONE)
    flat_gradient = flatten(gradient)[0]
    assert norm == pytest.approx(float(flat_gradient.norm()), rel=1e-12)
    assert step.accepted
    assert step.kl == pytest.approx(float(mean_objective(1, kind, num_steps)(step.params)), rel=1e-9)
    assert step.actual_gain == pytest.approx(float(mean_objective(0, kind, num_steps)(step.params)) - value, rel=1e-9)
    displacement = flatten(step.params)[0] - flatten(params)[0]
    assert step.expected_gain == pytest.approx(float(flat_gradient @ displacement), rel=1e-6)
    assert 0 < step.kl <= config.max_kl and step.actual_gain > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_solves_the_damped_natural_gradient_equation(kind):
    """The full step is sqrt(2 delta / x.A.x) x with A = F + damping I and A x = g, F the dense Hessian of the KL."""
    inner, params, config, batch, _ = problem(kind, 1)
    config = dataclasses.replace(config, cg_iters=200, cg_damping=1e-2)
    step, *_ = trust_region_update(inner, params, batch, config, ONE_BY_ONE)
    a = dense_hessian(mean_objective(1, kind, 1), params)
    a += 1e-2 * torch.eye(len(a))
    g = flatten(meta_gradient(inner, params, batch, config, ONE_BY_ONE)[0])[0]
    x = torch.linalg.solve(a, g)
    expected = math.sqrt(2 * config.max_kl / float(x @ a @ x)) * x * step.step_fraction
    torch.testing.assert_close(flatten(step.params)[0] - flatten(params)[0], expected, rtol=1e-6, atol=1e-9)
    assert step.cg_residual < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_for_small_steps_the_kl_is_the_metrics_quadratic_form(kind):
    """(KL(theta + s) + KL(theta - s)) / 2 = 1/2 s.F.s + O(s^4)."""
    inner, params, config, batch, _ = problem(kind, 2)
    vector = double_params(inner.module, 1e-4, 9)
    kl = mean_objective(1, kind, 2)
    both = [kl({name: params[name] + sign * vector[name] for name in params}) for sign in (1, -1)]
    image = LinearizedBatch(inner, params, batch, config, ONE_BY_ONE).fisher_product(vector)
    assert float(sum(both)) / 2 == pytest.approx(0.5 * float(flatten(vector)[0] @ flatten(image)[0]), rel=1e-4)


def test_a_failed_line_search_keeps_the_parameters_bitwise():
    inner, params, config, batch, _ = problem("gaussian", 1)
    reversed_advantages = [s._replace(advantages=torch.zeros_like(s.advantages)) for s in batch.samples]
    step, norm, _ = trust_region_update(inner, params, batch._replace(samples=reversed_advantages), config, ONE_BY_ONE)
    assert norm == 0.0 and not step.accepted and step.params is params
    config = dataclasses.replace(config, line_search_steps=0)
    step, *_ = trust_region_update(inner, params, batch, config, ONE_BY_ONE)
    assert not step.accepted and step.params is params


def test_every_trust_region_setting_reaches_the_step(monkeypatch):
    wanted = {
        "max_kl": 0.003, "cg_iters": 7, "cg_damping": 0.02, "cg_tolerance": 0.1, "line_search_steps": 4,
        "line_search_decay": 0.6,
    }  # fmt: skip
    inner, params, config, batch, _ = problem("gaussian", 1)
    seen = {}

    def spy(*args, **settings):
        seen.update(settings)
        return trust_region_step(*args, **settings)

    monkeypatch.setattr(trust_region, "trust_region_step", spy)
    step, *_ = trust_region_update(inner, params, batch, dataclasses.replace(config, **wanted), ONE_BY_ONE)
    assert seen == wanted and 0 < step.kl <= 0.003


def test_float32_agrees_with_float64_to_rounding():
    inner, params, config, batch, _ = problem("gaussian", 2)
    single = tree_map(lambda x: x.float() if x.is_floating_point() else x, (params, batch))
    vector = double_params(inner.module, 1.0, 9)
    low = LinearizedBatch(inner, single[0], single[1], config, ONE_BY_ONE).fisher_product(
        {n: v.float() for n, v in vector.items()}
    )
    high = LinearizedBatch(inner, params, batch, config, ONE_BY_ONE).fisher_product(vector)
    a, b = flatten(low)[0].double(), flatten(high)[0]
    assert low["log_std"].dtype == torch.float32
    assert float((a - b).norm() / b.norm()) < 1e-5
    a = flatten(meta_gradient(inner, single[0], single[1], config, ONE_BY_ONE)[0])[0].double()
    b = flatten(meta_gradient(inner, params, batch, config, ONE_BY_ONE)[0])[0]
    assert float((a - b).norm() / b.norm()) < 1e-4


def test_step_sizes_follow_the_published_schedule():
    inner = LearnerConfig(inner_lr=0.4, later_lr_factor=0.5).inner_loop(make_policy("gaussian"))
    assert inner.step_sizes({}, 3) == [0.4, 0.2, 0.2] and inner.step_sizes({}, 0) == []


def test_the_objective_is_the_weighted_mean_over_the_policies_after_each_step():
    assert LearnerConfig(num_inner_steps=3).objective_weights() == {3: 1.0}
    assert LearnerConfig(num_inner_steps=0).objective_weights() == {0: 1.0}
    assert LearnerConfig(num_inner_steps=3, step_weights=(3.0, 0.0, 1.0)).objective_weights() == {1: 0.75, 3: 0.25}
    assert contradiction(LearnerConfig(num_inner_steps=3, step_weights=(1.0,)))[0] == "step_weights"
    inner, _, config, batch, _ = problem("gaussian", 2, step_weights=(2.0, 1.0))
    theta = double_params(inner.module, 0.41)
    both = meta_objective(inner, theta, batch.samples, batch.credit, config)
    for k, outcome in enumerate(both):
        parts = [
            meta_objective(inner, theta, batch.samples[: n + 1], batch.credit, LearnerConfig(num_inner_steps=n))[k]
            for n in (1, 2)
        ]
        torch.testing.assert_close(outcome, (2 * parts[0] + parts[1]) / 3)
