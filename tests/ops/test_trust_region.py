"""Conjugate gradient and the trust-region step on quadratics, where everything has a closed form."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarl.ops.tree import flatten
from metarl.ops.trust_region import conjugate_gradient, trust_region_step


def spd(n, seed, condition=10.0):
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.logspace(0, math.log10(condition), n, dtype=torch.float64)) @ q.T


def vector(n, seed):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Counted:
    def __init__(self, matrix):
        self.matrix, self.calls = matrix, 0

    def __call__(self, x):
        self.calls += 1
        return self.matrix @ x


@settings(max_examples=30)
@given(n=st.integers(1, 12), seed=st.integers(0, 2**20))
def test_conjugate_gradient_is_exact_in_n_steps_and_only_reads_its_right_hand_side(n, seed):
    a, b = spd(n, seed), vector(n, seed + 1)
    before = b.clone()
    result = conjugate_gradient(lambda x: a @ x, b, n)
    torch.testing.assert_close(result.solution, torch.linalg.solve(a, b), rtol=1e-8, atol=1e-10)
    assert torch.equal(b, before)
    torch.testing.assert_close(result.residual, b - a @ result.solution, rtol=0, atol=1e-10)
    assert result.relative_residual == pytest.approx(float(result.residual.norm() / b.norm()), abs=1e-14)


def test_conjugate_gradient_needs_one_step_per_distinct_eigenvalue():
    q = torch.linalg.eigh(spd(8, 0)).eigenvectors
    a = q @ torch.diag(torch.tensor([1.0] * 4 + [5.0] * 4, dtype=torch.float64)) @ q.T
    b = vector(8, 1)
    torch.testing.assert_close(conjugate_gradient(lambda x: a @ x, b, 2).solution, torch.linalg.solve(a, b))


def test_after_k_steps_the_error_is_least_in_the_energy_norm_over_the_krylov_space():
    a, b, k = spd(9, 3, 100.0), vector(9, 4), 4
    krylov = torch.stack([torch.linalg.matrix_power(a, j) @ b for j in range(k)], dim=1)
    best = krylov @ torch.linalg.solve(krylov.T @ a @ krylov, krylov.T @ b)
    torch.testing.assert_close(conjugate_gradient(lambda x: a @ x, b, k).solution, best, rtol=1e-6, atol=1e-8)


def test_a_tolerance_stops_early_at_the_first_residual_below_it():
    a, b = Counted(spd(20, 0, 100.0)), vector(20, 1)
    full = [conjugate_gradient(a, b, k).relative_residual for k in range(21)]
    first = next(k for k, residual in enumerate(full) if residual <= 1e-2)
    a.calls = 0
    result = conjugate_gradient(a, b, 20, tolerance=1e-2)
    assert result.iterations == a.calls == first < 20
    assert result.relative_residual == full[first]


def test_zero_right_hand_side_costs_nothing_and_gives_zero():
    a = Counted(spd(4, 0))
    result = conjugate_gradient(a, torch.zeros(4, dtype=torch.float64), 10)
    assert (a.calls, result.iterations, result.relative_residual) == (0, 0, 0.0)
    assert not result.solution.any()


def test_more_iterations_than_dimensions_do_no_harm():
    a, b = spd(5, 0), vector(5, 1)
    result = conjugate_gradient(lambda x: a @ x, b, 60)
    torch.testing.assert_close(result.solution, torch.linalg.solve(a, b), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("eigenvalues", [[-1.0, -2.0, -3.0], [0.0, 0.0, 0.0], [1.0, -0.5, 2.0]])
def test_without_positive_curvature_it_stops_at_a_finite_point(eigenvalues):
    a, b = torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)), torch.ones(3, dtype=torch.float64)
    result = conjugate_gradient(lambda x: a @ x, b, 10)
    assert bool(torch.isfinite(result.solution).all())
    if max(eigenvalues) <= 0:
        assert not result.solution.any() and result.iterations == 1 and result.relative_residual == 1.0


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["first product", "third product", "one entry", "right-hand side"])
def test_what_is_not_finite_gives_a_residual_that_is_no_number(garbage, where):
    a, b, calls = spd(5, 0), vector(5, 1), []

    def product(x):
        calls.append(None)
        image = a @ x
        if where == "one entry":
            image[2] = garbage
        return image * garbage if len(calls) == {"first product": 1, "third product": 3}.get(where) else image

    if where == "right-hand side":
        b[3] = garbage
    assert math.isnan(conjugate_gradient(product, b, 5).relative_residual)


def test_a_huge_tolerance_is_met_at_once():
    result = conjugate_gradient(lambda x: x, vector(3, 0), 5, tolerance=1e388)
    assert result.iterations == 0 and result.relative_residual == 1.0


def test_a_singular_matrix_is_solved_where_it_can_be():
    a = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
    result = conjugate_gradient(lambda x: a @ x, torch.tensor([1.0, 0.0], dtype=torch.float64), 10)
    assert result.solution.tolist() == [0.5, 0.0]


class Quadratic:
    """Objective g.d - 1/2 c d.d and KL 1/2 d.A.d of the displacement d from theta, over two named parameters."""

    def __init__(self, seed=0, curvature=0.0, dtype=torch.float64, damping=0.0):
        self.params = {"w": vector(6, seed).reshape(2, 3).to(dtype), "b": vector(2, seed + 1).to(dtype)}
        self.theta, self.unflatten = flatten(self.params)
        self.a, self.g = spd(8, seed + 2), vector(8, seed + 3)
        self.curvature, self.dtype, self.evaluations, self.kl_factor = curvature, dtype, [], 1.0

    def displacement(self, params):
        return flatten(params)[0].double() - self.theta.double()

    def fisher_product(self, v):
        return self.unflatten((self.a @ flatten(v)[0].double()).to(self.dtype))

    def evaluate(self, params):
        d = self.displacement(params)
        self.evaluations.append(params)
        # A hair inside, so that rounding cannot refuse a step that ends exactly on the trust region's edge.
        kl = (1 - 1e-9) * self.kl_factor * float(0.5 * d @ self.a @ d)
        return float(self.g @ d - 0.5 * self.curvature * d @ d), kl

    def step(self, max_kl=0.01, **settings):
        settings = {"cg_iters": 8, "cg_damping": 0.0} | settings
        gradient = self.unflatten(self.g.to(self.dtype))
        return trust_region_step(
            self.params, gradient, self.fisher_product, self.evaluate, 0.0, max_kl=max_kl, **settings
        )


def test_the_full_step_is_the_natural_gradient_scaled_to_the_trust_regions_edge():
    """d = sqrt(2 delta / x.A.x) x with A x = g; its quadratic KL is delta, its first-order gain sqrt(2 delta g.x)."""
    problem, delta = Quadratic(), 0.02
    x = torch.linalg.solve(problem.a, problem.g)
    step = problem.step(delta)
    expected = x * math.sqrt(2 * delta / float(x @ problem.a @ x))
    assert step.step_fraction == 1.0
    assert step.kl == pytest.approx(delta, rel=1e-8)
    torch.testing.assert_close(problem.displacement(step.params), expected, rtol=1e-8, atol=1e-12)
    first_order = math.sqrt(2 * delta * float(problem.g @ x))
    assert step.expected_gain == pytest.approx(first_order, rel=1e-9)
    assert step.actual_gain == pytest.approx(first_order, rel=1e-9)  # the objective is linear
    assert step.accepted and step.kl <= delta and step.cg_residual < 1e-6


def test_damping_is_added_to_the_metric_and_the_scale_uses_the_damped_metric():
    problem, delta, damping = Quadratic(), 0.02, 0.7
    damped = problem.a + damping * torch.eye(8, dtype=torch.float64)
    x = torch.linalg.solve(damped, problem.g)
    step = problem.step(delta, cg_damping=damping)
    assert step.step_fraction == 1.0  # the true KL is below the damped quadratic's
    expected = x * math.sqrt(2 * delta / float(x @ damped @ x))
    torch.testing.assert_close(problem.displacement(step.params), expected, rtol=1e-8, atol=1e-12)


def test_with_truncated_conjugate_gradient_the_step_still_ends_at_the_edge():
    problem, delta = Quadratic(), 0.02
    x = conjugate_gradient(lambda v: problem.a @ v, problem.g, 3).solution
    step = problem.step(delta, cg_iters=3)
    expected = x * math.sqrt(2 * delta / float(x @ problem.a @ x))
    assert step.step_fraction == 1.0
    torch.testing.assert_close(problem.displacement(step.params), expected, rtol=1e-8, atol=1e-12)


def test_the_line_search_takes_the_first_fraction_that_gains_within_the_bound():
    """With curvature c the gain f s (g.x) - c/2 f^2 s^2 x.x is positive for f < f0: the largest 0.8^j below it wins."""
    problem = Quadratic(curvature=60.0)
    delta = 0.02
    x = torch.linalg.solve(problem.a, problem.g)
    s = math.sqrt(2 * delta / float(x @ problem.a @ x))
    limit = float(problem.g @ x) / (0.5 * 60.0 * s * float(x @ x))
    assert 0.8**14 < limit < 0.8, "the problem should make the search work"
    step = problem.step(delta)
    j = next(j for j in range(15) if 0.8**j < limit)
    assert (step.step_fraction, step.line_search_steps, len(problem.evaluations)) == (0.8**j, j + 1, j + 1)
    full = s * float(problem.g @ x)
    assert step.expected_gain == pytest.approx(0.8**j * full)
    assert step.actual_gain == pytest.approx(0.8**j * full - 30 * (0.8**j * s) ** 2 * float(x @ x))
    assert 0 < step.actual_gain < step.expected_gain


def test_an_actual_kl_beyond_the_bound_shortens_the_step():
    problem = Quadratic()
    problem.kl_factor = 4.0
    step = problem.step(0.01, line_search_decay=0.5)
    assert (step.accepted, step.step_fraction) == (True, 0.5)
    assert 0.0099 < step.kl <= 0.01


@pytest.mark.parametrize("excess", [1e-6, 0.02, 0.3, 0.49])
def test_a_kl_a_little_beyond_the_bound_is_beyond_it(excess):
    """The full step ends on the edge of the quadratic model; where the true KL is larger, a shorter one is taken."""
    problem, delta = Quadratic(), 0.01
    problem.kl_factor = 1 + excess
    step = problem.step(delta)
    j = next(j for j in range(15) if (1 + excess) * 0.64**j <= 1)
    assert j > 0 and (step.accepted, step.step_fraction, step.line_search_steps) == (True, 0.8**j, j + 1)
    assert step.kl <= delta


def test_a_kl_just_within_the_bound_is_accepted():
    problem = Quadratic()
    problem.kl_factor = 1 - 1e-6
    assert problem.step(0.01).step_fraction == 1.0


def test_left_to_themselves_settings_are_those_of_the_published_learner():
    defaults = {name: p.default for name, p in inspect.signature(trust_region_step).parameters.items()}
    names = ("cg_iters", "cg_damping", "cg_tolerance", "line_search_steps", "line_search_decay")
    assert [defaults[name] for name in names] == [10, 1e-5, 0.0, 15, 0.8]


def assert_refused(problem, step):
    assert not step.accepted
    assert (step.step_fraction, step.kl, step.actual_gain) == (0.0, 0.0, 0.0)
    assert list(step.params) == list(problem.params)
    assert all(torch.equal(step.params[name], problem.params[name]) for name in problem.params)


@pytest.mark.parametrize(
    "outcome", [(-1.0, 0.0), (0.0, 0.0), (1.0, 1e9), (math.nan, 0.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_a_failed_line_search_returns_the_input_parameters_bitwise(outcome):
    problem = Quadratic(dtype=torch.float32)
    before = {name: value.clone() for name, value in problem.params.items()}
    problem.evaluate = lambda params: outcome
    step = problem.step(line_search_steps=4)
    assert_refused(problem, step)
    assert all(torch.equal(problem.params[name], before[name]) for name in before)
    assert step.line_search_steps == 4 and math.isfinite(step.expected_gain)


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused_without_evaluating_anything(garbage):
    problem = Quadratic()
    problem.g[3] = garbage
    assert_refused(problem, problem.step())
    assert not problem.evaluations


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_a_fisher_product_that_is_not_finite_is_refused(garbage):
    problem = Quadratic()
    problem.fisher_product = lambda v: problem.unflatten(torch.full((8,), garbage, dtype=torch.float64))
    assert_refused(problem, problem.step())


def test_a_fisher_product_that_fails_halfway_is_refused():
    problem, products = Quadratic(), []

    def fisher_product(v):
        products.append(v)
        return problem.unflatten(problem.a @ flatten(v)[0] * (math.nan if len(products) == 3 else 1.0))

    problem.fisher_product = fisher_product
    step = problem.step()
    assert not step.accepted or (step.kl <= 0.01 and step.actual_gain > 0)
    assert all(bool(torch.isfinite(value).all()) for value in step.params.values())


def test_zero_gradient_and_negative_metric_are_refused():
    problem = Quadratic()
    problem.g = torch.zeros(8, dtype=torch.float64)
    assert_refused(problem, problem.step())
    problem = Quadratic()
    problem.a = -problem.a
    assert_refused(problem, problem.step())


def test_inputs_are_untouched_and_neither_names_nor_dtypes_change():
    problem = Quadratic(dtype=torch.float32)
    gradient = problem.unflatten(problem.g.float())
    copies = [{name: value.clone() for name, value in tree.items()} for tree in (problem.params, gradient)]
    step = trust_region_step(problem.params, gradient, problem.fisher_product, problem.evaluate, 0.0, max_kl=0.01)
    for tree, copy in zip((problem.params, gradient), copies, strict=True):
        assert all(torch.equal(tree[name], copy[name]) for name in tree)
    assert step.accepted
    assert {n: (v.shape, v.dtype) for n, v in step.params.items()} == {
        n: (v.shape, v.dtype) for n, v in problem.params.items()
    }


def test_the_order_in_which_dictionaries_name_parameters_does_not_matter():
    problem = Quadratic()
    expected = problem.step()
    gradient = problem.unflatten(problem.g)

    def fisher_product(v):
        assert list(v) == ["w", "b"]
        return dict(reversed(problem.fisher_product(v).items()))

    reordered = trust_region_step(
        problem.params, dict(reversed(gradient.items())), fisher_product, problem.evaluate, 0.0,
        max_kl=0.01, cg_iters=8, cg_damping=0.0,
    )  # fmt: skip
    assert all(torch.equal(reordered.params[name], expected.params[name]) for name in expected.params)


def test_the_step_does_not_depend_on_the_parameterisation():
    """Natural gradients are invariant: with theta = M phi, the step in phi maps onto the step in theta."""
    problem, m = Quadratic(), torch.randn(8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    inverse = torch.linalg.inv(m)

    def evaluate(params):
        d = m @ (params["phi"] - inverse @ problem.theta)
        return float(problem.g @ d), float(0.5 * d @ problem.a @ d)

    step = trust_region_step(
        {"phi": inverse @ problem.theta},
        {"phi": m.T @ problem.g},
        lambda v: {"phi": m.T @ (problem.a @ (m @ v["phi"]))},
        evaluate,
        0.0,
        max_kl=0.011,
        cg_iters=30,
        cg_damping=0.0,
    )
    direct = problem.step(0.011, cg_iters=30)
    moved = m @ (step.params["phi"] - inverse @ problem.theta) / step.step_fraction
    torch.testing.assert_close(moved, problem.displacement(direct.params) / direct.step_fraction, rtol=1e-5, atol=1e-7)
