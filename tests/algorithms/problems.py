"""A small problem with everything in it, in float64, for tests of objectives, gradients and metrics."""

import functools

import torch
from torch.utils._pytree import tree_map
from toys import PointEnv, double_params

from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.objective import MetaBatch, meta_objective
from metarl.ops.tree import flatten
from metarl.parallel import TaskChunks
from metarl.policies import CategoricalMLPPolicy, GaussianMLPPolicy
from metarl.rollout_adaptation import AdvantageSettings, adapt_on_rollouts

NUM_TASKS = 4
TASKS = torch.randn(NUM_TASKS, 2, generator=torch.Generator().manual_seed(3))
ONE_BY_ONE = TaskChunks(1, 1)


@functools.lru_cache
def make_policy(kind, context_dim=0):
    if kind == "categorical":
        return CategoricalMLPPolicy(2, 2, (3,))
    return GaussianMLPPolicy(2, 2, (3,), context_dim=context_dim)


@functools.lru_cache
def problem(kind="gaussian", num_steps=1, inner_lr=0.1, hostile=False, step_weights=(), **settings):
    """Inner loop, float64 meta-parameters, settings, and what one iteration records (episodes of several lengths)."""
    policy = make_policy(kind, 2 if settings.get("adapted") == "context" else 0)
    weights = step_weights[:num_steps]
    config = LearnerConfig(num_inner_steps=num_steps, inner_lr=inner_lr, step_weights=weights, **settings)
    env = PointEnv(TASKS, 5, 6, min_length=1, discrete=kind == "categorical", hostile=hostile)
    inner = config.inner_loop(policy)
    params = {name: value.double() for name, value in inner.initial_meta().items()}
    params |= {name: value for name, value in double_params(policy, 0.4).items() if name in params}
    data = adapt_on_rollouts(
        env, inner, params, num_steps=num_steps, noise_key=(0, 5, 0), settings=AdvantageSettings(), chunks=ONE_BY_ONE
    )
    return inner, params, config, MetaBatch.of(data, config), data


def tasks_of(samples, tasks):
    return tree_map(lambda x: x[tasks], samples)


def mean_objective(which, kind, num_steps, **settings):
    inner, _, config, batch, _ = problem(kind, num_steps, **settings)
    return lambda shared: meta_objective(inner, shared, batch.samples, batch.credit, config)[which].mean()


def dense_hessian(function, params):
    """[n, n] by double backward."""
    theta, unflatten = flatten(params)
    return torch.autograd.functional.hessian(lambda vector: function(unflatten(vector)), theta)


def dense_metric(metric, params):
    theta, unflatten = flatten(params)
    return torch.stack([flatten(metric(unflatten(e)))[0] for e in torch.eye(len(theta), dtype=theta.dtype)])
