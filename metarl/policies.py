"""Policies: modules from observations to the parameters of an action distribution, and nothing else.

Sampling, log-probabilities and divergences live in the distribution (`ops.gaussian`, `ops.categorical`) that a
policy names in its `distribution` attribute. `metarl.functional.per_task` applies one with different parameters per
task; `check_policy` makes sure that a module is one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, cast, final, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from metarl.functional import check_follows, check_pure
from metarl.ops import categorical, gaussian
from metarl.ops.categorical import Categorical
from metarl.ops.gaussian import Gaussian
from metarl.ops.layer import ACTIVATIONS, LayerActivation, layer
from metarl.types import Distribution, Policy

Activation = Literal["relu", "tanh"]


@final
class MLP(nn.Module):
    """Fully connected network; Xavier-uniform weights and zero biases, as in the published runs.

    Args:
        sizes: Width of the input, of each hidden layer, and of the output.
        activation: Between layers.
        generator: Source of the initial weights.

    Attributes:
        head: Names of the parameters of the last layer.
    """

    takes_task_axis = True

    def __init__(self, sizes: Sequence[int], activation: Activation, generator: torch.Generator) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(get_args(Activation))}.")
        self.activation: Activation = activation
        # Without torch's own initial weights, which would come from its global generator.
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, *widths) for widths in itertools.pairwise(sizes))
        self.head = (f"layers.{len(sizes) - 2}.weight", f"layers.{len(sizes) - 2}.bias")
        for linear in self.layers:
            assert isinstance(linear, nn.Linear)
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., n_out]` for `[..., n_in]`; with per-task parameters (`functional_call`) `[task, ..., n_in]`."""
        *hidden, last = cast(list[nn.Linear], list(self.layers))
        for linear in hidden:
            x = _apply(linear, x, self.activation)
        return _apply(last, x, "identity")


def _apply(linear: nn.Linear, x: Tensor, activation: LayerActivation) -> Tensor:
    """f(W x + b); where W is `[task, n_out, n_in]`, b `[task, n_out]` and x `[task, ..., n_in]`, of every task."""
    weight, bias = linear.weight, linear.bias
    if not isinstance(weight, Tensor) or weight.ndim == 2:  # torch.fx has a stand-in for it
        return ACTIVATIONS[activation](nn.functional.linear(x, weight, bias))
    rows = x.reshape(len(weight), -1, weight.shape[2])
    return layer(rows, weight, bias, activation).reshape(*x.shape[:-1], weight.shape[1])


@final
class GaussianMLPPolicy(nn.Module):
    """Gaussian policy: the mean is an MLP of the observation, the log standard deviation one free vector.

    Args:
        observation_dim: Width of the observation.
        action_dim: Width of the action.
        hidden_sizes: Hidden layers.
        activation: Between layers.
        init_std: Initial standard deviation, in policy units.
        min_std: The standard deviation never falls below this; its gradient is 0 there.
        context_dim: Length of a parameter `context`, 0 at first, that stands beside the observation in the input
            (Zintgraf et al. 2019); 0 for none.
        generator: Source of the initial weights; None seeds one with 0.

    Attributes:
        head: Names of the parameters of the output layer, the standard deviation included.
    """

    distribution: Distribution = cast(Distribution, gaussian)
    takes_task_axis = True

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_sizes: Sequence[int] = (100, 100),
        activation: Activation = "tanh",
        init_std: float = 1.0,
        min_std: float = 1e-6,
        context_dim: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not init_std >= min_std > 0:
            raise ValueError(f"init_std ({init_std}) must be at least min_std ({min_std}), and both positive.")
        self.action_dim = action_dim
        sizes = (observation_dim + context_dim, *hidden_sizes, action_dim)
        self.mean = MLP(sizes, activation, generator or torch.Generator().manual_seed(0))
        self.log_std = nn.Parameter(torch.full((action_dim,), math.log(init_std)))
        self.min_log_std = math.log(min_std)
        self.context = nn.Parameter(torch.zeros(context_dim)) if context_dim else None
        self.head = (*(f"mean.{name}" for name in self.mean.head), "log_std")

    def forward(self, observations: Tensor) -> Gaussian:
        """Distribution `[..., act_dim]` for observations `[..., obs_dim]`."""
        if self.context is not None:
            observations = torch.cat([observations, _like_rows(self.context, observations)], -1)
        mean = self.mean(observations)
        return Gaussian(mean, _like_rows(self.log_std.clamp(min=self.min_log_std), mean))


def _like_rows(vector: Tensor, rows: Tensor) -> Tensor:
    """A parameter `[n]`, or `[task, n]` of every task, once for every row of `[task, ..., m]`: `[task, ..., n]`."""
    if isinstance(vector, Tensor) and vector.ndim == 2:
        vector = vector.reshape(len(vector), *[1] * (rows.ndim - 2), -1)
    return vector.expand(rows.shape[:-1] + vector.shape[-1:])


@final
class CategoricalMLPPolicy(nn.Module):
    """Categorical policy: an MLP from the observation to one logit per action.

    Args: as for `GaussianMLPPolicy`; `action_dim` is the number of actions.
    """

    distribution: Distribution = cast(Distribution, categorical)
    takes_task_axis = True

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_sizes: Sequence[int] = (100, 100),
        activation: Activation = "tanh",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        sizes = (observation_dim, *hidden_sizes, action_dim)
        self.logits = MLP(sizes, activation, generator or torch.Generator().manual_seed(0))
        self.head = tuple(f"logits.{name}" for name in self.logits.head)

    def forward(self, observations: Tensor) -> Categorical:
        """Distribution `[..., num_actions]` for observations `[..., obs_dim]`."""
        return Categorical(self.logits(observations))


_CHECKED_ROWS = 5
"""Rows that `check_policy` asks a policy about."""


def check_policy(policy: Policy, observation_dim: int, action_dim: int) -> None:
    """Makes sure that a module is a policy for these observations and actions, before anything is done with it.

    A policy is a function of its parameters and one observation at a time: what it does is computed once while
    collecting, for worlds side by side, and again in every loss, for the same steps in another arrangement.

    Args:
        policy: The module.
        observation_dim: Width of the observations.
        action_dim: Width of the actions, or their number if the policy chooses one of several.

    Raises:
        ValueError: In one sentence, if it has no distribution, takes or gives other widths, is random, has a memory,
            looks at other observations than the one it acts on, or is not finite.
    """
    for name in ("distribution", "action_dim"):
        if not hasattr(policy, name):
            raise ValueError(f"The policy has no attribute {name!r}; see metarl.types.Policy for what one has.")
    if policy.action_dim != action_dim:
        raise ValueError(f"The policy's action_dim is {policy.action_dim}; the task family's is {action_dim}.")
    values = dict(policy.named_parameters())
    if not any(value.requires_grad for value in values.values()):
        raise ValueError("The policy has no parameter that requires a gradient: there is nothing to learn.")
    broken = [name for name, value in values.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"The policy's parameter {broken[0]} holds a number that is not finite.")
    like = next(value for value in values.values() if value.requires_grad)
    rows = torch.randn(_CHECKED_ROWS, observation_dim, generator=torch.Generator().manual_seed(0), dtype=like.dtype)
    try:
        dist_params = check_pure(policy, rows, "The policy")
        one_by_one = [check_pure(policy, row, "The policy") for row in rows.split(1)]
    except (RuntimeError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The policy does not take observations [row, {observation_dim}]: {reason}") from error
    _check_output(policy, dist_params)
    check_follows(policy, rows.to(like.device), "The policy")
    for whole, parts in zip(tree_leaves(dist_params), zip(*map(tree_leaves, one_by_one), strict=True), strict=True):
        if not torch.allclose(whole, torch.cat(parts), rtol=1e-4, atol=1e-5):
            raise ValueError(
                "The policy's answer to one observation depends on the others beside it (a recurrent layer or a "
                "normalisation over rows); it must treat every observation by itself."
            )


def _check_output(policy: Policy, dist_params: Any) -> None:
    """Refuses what is not the distribution's parameters, one row for each of `_CHECKED_ROWS` observations."""
    leaves = [leaf if isinstance(leaf, Tensor) else torch.empty(0) for leaf in tree_leaves(dist_params)]
    ours = isinstance(dist_params, (Gaussian, Categorical))
    wanted = (_CHECKED_ROWS, policy.action_dim) if ours else (_CHECKED_ROWS,)
    fits = bool(leaves) and all(leaf.shape == wanted if ours else leaf.shape[:1] == wanted for leaf in leaves)
    try:
        distribution, generator = policy.distribution, torch.Generator().manual_seed(0)
        noise = distribution.draw_noise((_CHECKED_ROWS,), policy.action_dim, generator).to(leaves[0])
        log_prob = distribution.log_prob(dist_params, distribution.sample(dist_params, noise))
        fits &= log_prob.shape == (_CHECKED_ROWS,)
    except (AttributeError, IndexError, RuntimeError, TypeError):
        fits = False
    if not fits:
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
        raise ValueError(
            f"The policy's forward gives a {type(dist_params).__name__} of {shapes} for {_CHECKED_ROWS} observations; "
            f"it must give its distribution's parameters, a row for each, for actions of width {policy.action_dim}."
        )
    if not all(bool(torch.isfinite(leaf).all()) for leaf in leaves):
        raise ValueError("The policy gives numbers that are not finite for ordinary observations.")
