"""The inner loop: closed forms on quadratics, and its derivative against finite differences and dense Jacobians."""

import itertools

import pytest
import torch
from toys import assert_trees_close, double_params, equal_trees, finite_difference, random_samples

from metarl.adaptation import AdaptationJacobian, adapt
from metarl.ops.tree import expand_tasks, flatten, sum_tasks
from metarl.parallel import TaskChunks
from metarl.policies import CategoricalMLPPolicy, GaussianMLPPolicy
from metarl.policy_gradient import policy_inner_loop

TASKS = 3
SHAPES = {"w": (2, 2), "b": (1,)}
DIM = 5


def quadratic_batch(seed=0):
    """SPD Q `[task, 5, 5]` and minimum c `[task, 5]` of each task's loss 1/2 (theta - c).Q(theta - c)."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(TASKS, DIM, DIM, generator=generator, dtype=torch.float64)
    return root @ root.mT / DIM, torch.randn(TASKS, DIM, generator=generator, dtype=torch.float64)


def flat(params):
    return torch.cat([value.flatten(1) for value in params.values()], dim=1)


def unflat(vector):
    return {"w": vector[:, :4].reshape(-1, 2, 2), "b": vector[:, 4:]}


def quadratic(params, batch):
    q, c = batch
    d = flat(params) - c
    return 0.5 * torch.einsum("ij,ijk,ik->i", d, q, d)


def quartic(params, batch):
    """Not quadratic: the Hessian changes along the way."""
    return quadratic(params, batch) + 0.1 * flat(params).pow(4).sum(-1)


def start(seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(100 + seed)
    params = unflat(torch.randn(TASKS, DIM, generator=generator, dtype=torch.float64))
    return {name: value.clone().requires_grad_(requires_grad) for name, value in params.items()}


def test_zero_steps_are_the_identity():
    params = start()
    assert adapt(params, [], quadratic, inner_lr=0.1) == [params]
    assert adapt(params, lambda theta, k: 1 / 0, quadratic, inner_lr=0.1, num_steps=0)[0] is params


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_on_a_quadratic_k_steps_shrink_the_distance_by_the_kth_power(num_steps):
    """theta_K = c + (I - alpha Q)^K (theta_0 - c)."""
    alpha, (q, c), params = 0.2, quadratic_batch(), start()
    trajectory = adapt(params, [(q, c)] * num_steps, quadratic, inner_lr=alpha)
    assert len(trajectory) == num_steps + 1 and trajectory[0] is params
    contraction = torch.eye(DIM, dtype=torch.float64) - alpha * q
    for k, theta in enumerate(trajectory):
        power = torch.linalg.matrix_power(contraction, k)
        expected = c + (power @ (flat(params) - c).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(flat(theta), expected, rtol=1e-12, atol=1e-13)


def test_input_parameters_are_untouched_and_the_result_detached():
    params = start()
    copy = {name: value.clone() for name, value in params.items()}
    trajectory = adapt(params, [quadratic_batch()] * 2, quadratic, inner_lr=0.3)
    assert equal_trees(params, copy)
    assert not any(value.requires_grad for theta in trajectory for value in theta.values())


def test_step_sizes_may_differ_from_step_to_step():
    batches = [quadratic_batch(0), quadratic_batch(1)]
    both = adapt(start(), batches, quadratic, inner_lr=[0.1, 0.05])
    first = adapt(start(), batches[:1], quadratic, inner_lr=0.1)[-1]
    second = adapt(first, batches[1:], quadratic, inner_lr=0.05)[-1]
    assert equal_trees(both[1], first) and equal_trees(both[2], second)


def test_step_sizes_may_differ_from_parameter_to_parameter_and_entry_to_entry():
    params, batch = start(), quadratic_batch()
    lr = {"w": torch.tensor([[0.1, 0.2], [0.3, 0.4]]).double(), "b": torch.tensor(0.5).double()}
    adapted = adapt(params, [batch], quadratic, inner_lr=lr)[-1]
    gradient = torch.einsum("ijk,ik->ij", batch[0], flat(params) - batch[1])
    rates = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).double()
    torch.testing.assert_close(flat(adapted), flat(params) - rates * gradient, rtol=1e-6, atol=1e-8)


def test_only_parameters_in_the_mask_are_adapted():
    params = start()
    adapted = adapt(params, [quadratic_batch()] * 3, quadratic, inner_lr=0.1, mask={"b": True, "w": False})[-1]
    assert torch.equal(adapted["w"], params["w"]) and not torch.equal(adapted["b"], params["b"])
    assert equal_trees(adapted, adapt(params, [quadratic_batch()] * 3, quadratic, inner_lr=0.1, mask={"b": True})[-1])


def test_a_function_of_batches_is_called_with_the_parameters_of_each_step():
    seen = []

    def fresh(theta, k):
        seen.append((theta, k))
        return quadratic_batch(k)

    trajectory = adapt(start(), fresh, quadratic, inner_lr=0.1, num_steps=3)
    assert [k for _, k in seen] == [0, 1, 2]
    assert all(theta is trajectory[k] for theta, k in seen)
    replay = adapt(start(), [quadratic_batch(k) for k in range(3)], quadratic, inner_lr=0.1)
    assert all(equal_trees(a, b) for a, b in zip(trajectory, replay, strict=True))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_chunks_and_threads_change_nothing(num_threads, chunk_size):
    batches = [quadratic_batch(0), quadratic_batch(1)]
    whole = adapt(start(), batches, quartic, inner_lr=0.1)
    chunked = adapt(start(), batches, quartic, inner_lr=0.1, chunks=TaskChunks(chunk_size, num_threads))
    for a, b in zip(whole, chunked, strict=True):
        assert_trees_close(b, a, rtol=1e-14, atol=1e-15)


def test_a_task_adapts_to_its_own_batch_alone():
    q, c = quadratic_batch()
    before = adapt(start(), [(q, c)] * 2, quartic, inner_lr=0.1)[-1]
    changed = c.clone()
    changed[1] += 5
    after = adapt(start(), [(q, changed)] * 2, quartic, inner_lr=0.1)[-1]
    for name in SHAPES:
        assert torch.equal(before[name][[0, 2]], after[name][[0, 2]])
        assert not torch.equal(before[name][1], after[name][1])


@pytest.mark.parametrize(
    ("batches", "settings", "says"),
    [
        (lambda theta, k: None, {"inner_lr": 0.1}, "num_steps"),
        ([None] * 2, {"inner_lr": 0.1, "num_steps": 3}, "number of batches is 2"),
        ([None] * 2, {"inner_lr": [0.1] * 3}, "inner_lr is 3"),
        (lambda theta, k: None, {"inner_lr": [0.1] * 3, "num_steps": 2}, "num_steps is 2"),
    ],
)
def test_contradictory_numbers_of_steps_are_refused(batches, settings, says):
    with pytest.raises(ValueError, match=says):
        adapt(start(), batches, quadratic, **settings)


def test_a_mask_that_adapts_nothing_leaves_everything():
    params = start()
    adapted = adapt(params, [quadratic_batch()], quadratic, inner_lr=0.1, mask={"w": False, "b": False})[-1]
    assert equal_trees(adapted, params)


def test_a_mask_that_names_no_parameter_is_refused():
    """A misspelt name would otherwise leave everything as it is, silently."""
    with pytest.raises(ValueError, match="haed"):
        adapt(start(), [quadratic_batch()], quadratic, inner_lr=0.1, mask={"haed": True})


# Derivatives.


def outer(params):
    """Some smooth function of adapted parameters, different for every task."""
    vector = flat(params)
    return (torch.sin(vector) * torch.arange(1, vector.numel() + 1, dtype=vector.dtype).reshape(vector.shape)).sum()


@pytest.mark.parametrize("loss", [quadratic, quartic])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_gradient_through_k_steps_equals_finite_differences(loss, num_steps):
    batches = [quadratic_batch(k) for k in range(num_steps)]

    def objective(params):
        return outer(adapt(params, batches, loss, inner_lr=0.1)[-1])

    params = start(requires_grad=True)
    gradient = torch.autograd.grad(objective(params), list(params.values()))
    expected = finite_difference(lambda p: objective(p), start())
    assert_trees_close(dict(zip(params, gradient, strict=True)), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_gradient_through_reinforce_steps_of_a_tanh_policy_equals_finite_differences(kind, num_steps):
    policy = GaussianMLPPolicy(2, 2, (3,)) if kind == "gaussian" else CategoricalMLPPolicy(2, 3, (3,))
    batches = [random_samples(kind, TASKS, 6, 2, policy.action_dim, k, [6, 3, 1]) for k in range(num_steps)]
    loss = policy_inner_loop(policy).loss

    def objective(shared):
        adapted = adapt(expand_tasks(shared, TASKS), batches, loss, inner_lr=[0.1, 0.06, 0.04][:num_steps])[-1]
        return sum((torch.sin(3 * value) * (1 + i)).sum() for i, value in enumerate(adapted.values()))

    params = double_params(policy)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    gradient = dict(zip(leaves, torch.autograd.grad(objective(leaves), list(leaves.values())), strict=True))
    assert_trees_close(gradient, finite_difference(objective, params), rtol=1e-6, atol=1e-7)


def test_first_order_makes_the_jacobian_the_identity():
    batches = [quadratic_batch(k) for k in range(3)]
    params = start(requires_grad=True)
    adapted = adapt(params, batches, quartic, inner_lr=0.1, first_order=True)[-1]
    cotangent = {name: torch.randn_like(value) for name, value in adapted.items()}
    pulled = torch.autograd.grad(list(adapted.values()), list(params.values()), list(cotangent.values()))
    assert equal_trees(dict(zip(params, pulled, strict=True)), cotangent)
    exact = adapt(start(), batches, quartic, inner_lr=0.1)[-1]
    assert_trees_close({n: v.detach() for n, v in adapted.items()}, exact, rtol=1e-14, atol=1e-15)


def test_the_difference_to_first_order_is_alpha_times_the_hessian():
    """On a quadratic, J^T v with one step is v - alpha Q v exactly; FOMAML's is v."""
    (q, c), params = quadratic_batch(), start(requires_grad=True)
    v = torch.randn(TASKS, DIM, dtype=torch.float64)
    outcomes = []
    for first_order in (False, True):
        adapted = adapt(params, [(q, c)], quadratic, inner_lr=0.3, first_order=first_order)[-1]
        outcomes.append(
            torch.cat([g.flatten(1) for g in torch.autograd.grad((flat(adapted) * v).sum(), list(params.values()))], 1)
        )
    torch.testing.assert_close(outcomes[1] - outcomes[0], 0.3 * (q @ v.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize("params_require_grad", [True, False])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_gradient_for_learned_step_sizes_equals_finite_differences(num_steps, params_require_grad):
    batches = [quadratic_batch(k) for k in range(num_steps)]
    rates = {"w": torch.tensor([[0.1, 0.2], [0.05, 0.15]]).double(), "b": torch.tensor([0.12]).double()}

    def objective(lr, params):
        return outer(adapt(params, batches, quartic, inner_lr=lr)[-1])

    learned = {name: value.clone().requires_grad_() for name, value in rates.items()}
    value = objective(learned, start(requires_grad=params_require_grad))
    gradient = dict(zip(learned, torch.autograd.grad(value, list(learned.values())), strict=True))
    assert_trees_close(gradient, finite_difference(lambda lr: objective(lr, start()), rates), rtol=1e-6, atol=1e-7)


def test_a_learned_step_size_of_one_parameter_alone_is_differentiable_too():
    batches = [quadratic_batch(0), quadratic_batch(1)]

    def objective(rate):
        return outer(adapt(start(), batches, quartic, inner_lr={"w": rate, "b": torch.tensor(0.1).double()})[-1])

    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(rate), rate)
    expected = finite_difference(lambda p: objective(p["rate"]), {"rate": rate.detach()})["rate"]
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


def test_frozen_meta_parameters_do_not_disturb_the_gradient_of_the_others():
    """Meta-learning only some parameters (the others do not require a gradient) while all of them are adapted."""
    batches = [quadratic_batch(0), quadratic_batch(1)]
    everything = start(requires_grad=True)
    expected = torch.autograd.grad(outer(adapt(everything, batches, quartic, inner_lr=0.1)[-1]), everything["w"])[0]
    some = start()
    some["w"].requires_grad_()
    gradient = torch.autograd.grad(outer(adapt(some, batches, quartic, inner_lr=0.1)[-1]), some["w"])[0]
    torch.testing.assert_close(gradient, expected)


# Products with the Jacobian.

PER_ENTRY = {"w": torch.tensor([[0.1, 0.2], [0.05, 0.15]]).double()}
SETTINGS = {
    "one number": {"inner_lr": 0.2},
    "one per step": {"inner_lr": [0.2, 0.1, 0.05]},
    "one per entry": {"inner_lr": PER_ENTRY | {"b": torch.tensor([0.3]).double()}},
    "head only": {"inner_lr": 0.2, "mask": {"b": True}},
    "body only, one per entry": {
        "inner_lr": PER_ENTRY, "mask": {"w": True}
    },
    "first order": {"inner_lr": 0.2, "first_order": True},
}  # fmt: skip


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_jacobian_products_equal_the_dense_jacobian_of_adapt(settings, num_steps):
    settings = dict(settings)
    if isinstance(settings["inner_lr"], list):
        settings["inner_lr"] = settings["inner_lr"][:num_steps]
    batches = [quadratic_batch(k) for k in range(num_steps)]
    params = start()

    def adapted(vector):
        return tuple(flat(theta) for theta in adapt(unflat(vector), batches, quartic, **settings))

    dense = torch.autograd.functional.jacobian(adapted, flat(params))  # [task, 5, task, 5] after each step
    trajectory = adapt(params, batches, quartic, **settings)
    jacobian = AdaptationJacobian(params, batches, quartic, **settings)
    for a, b in zip(jacobian.points, trajectory, strict=True):
        assert_trees_close(a, b, rtol=1e-12, atol=1e-14)
    v, w = torch.randn(2, TASKS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    last_only = [None] * num_steps
    for _ in range(2):  # the kept graph serves again
        products = jacobian.products(unflat(v))
        for product, matrix in zip(products, dense, strict=True):
            torch.testing.assert_close(flat(product), torch.einsum("iajb,jb->ia", matrix, v))
        torch.testing.assert_close(
            flat(jacobian.transposed_product([*last_only, unflat(w)])[0]), torch.einsum("iajb,ia->jb", dense[-1], w)
        )
    left = float((flat(products[-1]) * w).sum())
    right = float((v * flat(jacobian.transposed_product([*last_only, unflat(w)])[0])).sum())
    assert left == pytest.approx(right, rel=1e-12)
    assert not any(matrix[i, :, j].any() for matrix in dense for i in range(TASKS) for j in range(TASKS) if i != j)

    # Cotangents at several steps at once: the sum of each one's own transposed product.
    for chosen in itertools.product([False, True], repeat=num_steps + 1):
        if any(chosen):
            given = [unflat((k + 1.0) * w) if use else None for k, use in enumerate(chosen)]
            expected = sum((k + 1.0) * torch.einsum("iajb,ia->jb", dense[k], w) for k, use in enumerate(chosen) if use)
            torch.testing.assert_close(flat(jacobian.transposed_product(given)[0]), expected)


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("mask", [None, "last layer"])
def test_jacobian_products_through_reinforce_equal_automatic_differentiation(kind, mask):
    policy = GaussianMLPPolicy(2, 2, (3,)) if kind == "gaussian" else CategoricalMLPPolicy(2, 3, (3,))
    batches = [random_samples(kind, TASKS, 6, 2, policy.action_dim, k, [6, 3, 1]) for k in range(2)]
    params, loss = double_params(policy), policy_inner_loop(policy).loss
    settings = {"inner_lr": [0.1, 0.05], "mask": mask and {name: "layers.1" in name for name in params}}
    points = adapt(expand_tasks(params, TASKS), batches, loss, **settings)
    jacobian = AdaptationJacobian(expand_tasks(params, TASKS), batches, loss, **settings)
    w = {name: torch.randn_like(value) for name, value in points[-1].items()}
    v = {name: torch.randn_like(value) for name, value in params.items()}
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    adapted = adapt(expand_tasks(leaves, TASKS), batches, loss, **settings)[-1]
    expected = torch.autograd.grad(list(adapted.values()), list(leaves.values()), list(w.values()))
    pulled = sum_tasks(jacobian.transposed_product([None, None, w])[0])
    assert_trees_close(pulled, dict(zip(leaves, expected, strict=True)), rtol=1e-9, atol=1e-11)
    pushed = jacobian.products(expand_tasks(v, TASKS))[-1]
    left = sum(float((pushed[name] * w[name]).sum()) for name in w)
    assert left == pytest.approx(float(flatten(v)[0] @ flatten(pulled)[0]), rel=1e-10)


def test_a_loss_that_ignores_some_parameters_or_is_linear_in_them_has_no_curvature_there():
    def loss(params, batch):
        return 3 * params["b"].sum(-1)

    params = start()
    jacobian = AdaptationJacobian(params, [0], loss, inner_lr=0.1)
    assert_trees_close(adapt(params, [0], loss, inner_lr=0.1)[-1], {"w": params["w"], "b": params["b"] - 0.3})
    v = start(1)
    assert equal_trees(jacobian.products(v)[-1], v) and equal_trees(jacobian.transposed_product([None, v])[0], v)


def test_no_cotangent_at_all_is_refused():
    params = start()
    jacobian = AdaptationJacobian(params, [quadratic_batch()], quadratic, inner_lr=0.1)
    with pytest.raises(ValueError, match="no cotangent"):
        jacobian.transposed_product([None, None])
