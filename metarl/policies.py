"""Policies: modules from observations to the parameters of an action distribution, and nothing else.

Sampling, log-probabilities and divergences live in the distribution (`ops.gaussian`, `ops.categorical`) that a
policy names in its `distribution` attribute. `metarl.functional.per_task` applies one with different parameters per
task.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, cast, final, get_args

import torch
from torch import Tensor, nn

from metarl.ops import categorical, gaussian
from metarl.ops.categorical import Categorical
from metarl.ops.gaussian import Gaussian
from metarl.ops.layer import ACTIVATIONS, LayerActivation, layer
from metarl.types import Distribution

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
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in itertools.pairwise(sizes))
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
    if weight.ndim == 2:
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
    if vector.ndim == 2:
        vector = vector.reshape(len(vector), *[1] * (rows.ndim - 2), -1)
    return vector.expand(*rows.shape[:-1], vector.shape[-1])


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
