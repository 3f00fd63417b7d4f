"""Policies as functions: batched over tasks equals one by one, from any number of threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.func import functional_call, vmap

from metarl.functional import initial_params, per_task
from metarl.ops.tree import expand_tasks
from metarl.policies import CategoricalMLPPolicy, GaussianMLPPolicy

TASKS = 4
POLICIES = {
    "gaussian": lambda: GaussianMLPPolicy(3, 2, (5, 4), generator=torch.Generator().manual_seed(1)),
    "gaussian relu": lambda: GaussianMLPPolicy(3, 2, (5,), "relu"),
    "categorical": lambda: CategoricalMLPPolicy(3, 4, (5,)),
    "linear": lambda: GaussianMLPPolicy(3, 2, ()),
}


def task_params(policy, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(TASKS, *v.shape, generator=generator) for n, v in policy.named_parameters()}


@pytest.fixture(params=POLICIES.values(), ids=POLICIES.keys())
def policy(request):
    return request.param()


def loop(policy, params, observations):
    """One task after another on a single thread."""
    results = [functional_call(policy, {n: v[i] for n, v in params.items()}, (observations[i],)) for i in range(TASKS)]
    return [torch.stack(parts) for parts in zip(*results, strict=True)]


@pytest.mark.parametrize("shape", [(7,), (2, 3)])
def test_batched_over_tasks_equals_one_task_after_another(policy, shape):
    params, observations = task_params(policy), torch.randn(TASKS, *shape, 3)
    for a, b in zip(per_task(policy)(params, observations), loop(policy, params, observations), strict=True):
        assert a.shape == (TASKS, *shape, policy.action_dim)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_own_task_axis_equals_vmap_up_to_second_derivatives(policy):
    """A policy that batches over tasks itself must be the function, and the curvature, that `vmap` makes of it."""
    policy = policy.double()
    params = {n: v.double().requires_grad_() for n, v in task_params(policy).items()}
    observations = torch.randn(TASKS, 7, 3, dtype=torch.float64)
    direction = {n: torch.randn_like(v) for n, v in params.items()}

    def derivatives(apply):
        outputs = apply(params, observations)
        loss = sum(value.sin().sum() for value in outputs)
        first = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        along = sum((g * d).sum() for g, d in zip(first, direction.values(), strict=True))
        return [*outputs, *first, *torch.autograd.grad(along, list(params.values()), materialize_grads=True)]

    assert policy.takes_task_axis
    by_vmap = vmap(lambda p, x: functional_call(policy, p, (x,)))
    for a, b in zip(derivatives(per_task(policy)), derivatives(by_vmap), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_policy_that_takes_no_task_axis_runs_under_vmap():
    class Plain(torch.nn.Module):
        distribution, action_dim = GaussianMLPPolicy.distribution, 2

        def __init__(self):
            super().__init__()
            self.inner = GaussianMLPPolicy(3, 2, (5,))

        def forward(self, observations):
            assert self.inner.log_std.shape == (2,)
            return self.inner(observations)

    policy = Plain()
    params, observations = task_params(policy), torch.randn(TASKS, 7, 3)
    for a, b in zip(per_task(policy)(params, observations), loop(policy, params, observations), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_several_threads_do_not_see_one_anothers_parameters(policy):
    apply = per_task(policy)
    observations = torch.randn(TASKS, 50, 3)
    before = initial_params(policy)
    jobs = [task_params(policy, seed) for seed in range(40)]
    expected = [apply(params, observations) for params in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            results = list(pool.map(lambda params: apply(params, observations), jobs))
            for a, b in zip(results, expected, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in policy.named_parameters())


def test_a_task_reads_its_own_parameters_and_observations_alone(policy):
    params, observations = task_params(policy), torch.randn(TASKS, 6, 3)
    before = per_task(policy)(params, observations)
    changed = {name: torch.cat([value[:1], value[1:] + 1]) for name, value in params.items()}
    after = per_task(policy)(changed, torch.cat([observations[:1], observations[1:] - 1]))
    assert all(torch.allclose(a[0], b[0], atol=1e-6) for a, b in zip(before, after, strict=True))


def test_initial_parameters_are_a_copy_and_a_function_of_the_generator():
    first, second = (GaussianMLPPolicy(3, 2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    other = GaussianMLPPolicy(3, 2, generator=torch.Generator().manual_seed(6))
    a, b, c = initial_params(first), initial_params(second), initial_params(other)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["mean.layers.0.weight"], c["mean.layers.0.weight"])
    a["mean.layers.0.weight"].zero_()
    assert first.mean.layers[0].weight.abs().sum() > 0
    assert not any(value.requires_grad for value in a.values())


def test_initial_weights_do_not_depend_on_the_global_generator():
    outcomes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outcomes.append(initial_params(GaussianMLPPolicy(3, 2)))
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


def test_the_standard_deviation_is_shared_by_all_states_starts_at_init_std_and_keeps_its_floor():
    policy = GaussianMLPPolicy(3, 2, (4,), init_std=0.7, min_std=0.1)
    dist_params = policy(torch.randn(5, 3))
    torch.testing.assert_close(dist_params.log_std.exp(), torch.full((5, 2), 0.7))
    params = expand_tasks(initial_params(policy), 1)
    low = params | {"log_std": torch.tensor([[-10.0, -1.0]], requires_grad=True)}
    std = per_task(policy)(low, torch.randn(1, 5, 3)).log_std.exp()
    torch.testing.assert_close(std, torch.tensor([0.1, torch.tensor(-1.0).exp()]).expand(1, 5, 2))
    (gradient,) = torch.autograd.grad(std.sum(), low["log_std"])
    assert gradient[0, 0] == 0 and gradient[0, 1] > 0


@pytest.mark.parametrize(("init_std", "min_std"), [(0.1, 0.5), (1.0, 0.0), (-1.0, -2.0), (float("nan"), 1e-6)])
def test_impossible_standard_deviations_are_refused(init_std, min_std):
    with pytest.raises(ValueError, match="init_std"):
        GaussianMLPPolicy(3, 2, init_std=init_std, min_std=min_std)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="relu, tanh"):
        GaussianMLPPolicy(3, 2, activation="gelu")  # type: ignore[arg-type]
