"""Diagonal Gaussian distributions over actions, as functions of their parameters.

Log-probabilities, divergences and entropies are summed over action dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Gaussian(NamedTuple):
    """Parameters of a diagonal Gaussian.

    Attributes:
        mean: `[..., act_dim]`.
        log_std: Logarithm of the standard deviation, `[..., act_dim]`.
    """

    mean: Tensor
    log_std: Tensor


def log_prob(params: Gaussian, actions: Float[Tensor, "*batch act_dim"]) -> Float[Tensor, "*batch"]:
    r"""$\log \pi(a) = -\sum_i \tfrac12 ((a_i - \mu_i)/\sigma_i)^2 + \log\sigma_i + \tfrac12\log 2\pi$."""
    z = (actions - params.mean) * torch.exp(-params.log_std)
    return -(0.5 * z.square() + params.log_std).sum(-1) - 0.5 * math.log(2 * math.pi) * actions.shape[-1]


def sample(params: Gaussian, noise: Float[Tensor, "*batch act_dim"]) -> Float[Tensor, "*batch act_dim"]:
    """mean + std * noise, for standard normal noise."""
    return params.mean + torch.exp(params.log_std) * noise


def mode(params: Gaussian) -> Float[Tensor, "*batch act_dim"]:
    """The mean."""
    return params.mean


def entropy(params: Gaussian) -> Float[Tensor, "*batch"]:
    r"""$\sum_i \log\sigma_i + \tfrac12\log 2\pi e$."""
    return (params.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def kl(old: Gaussian, new: Gaussian) -> Float[Tensor, "*batch"]:
    r"""Kullback-Leibler divergence $KL(\text{old} \| \text{new})$.

    $\sum_i \log\frac{\sigma'_i}{\sigma_i} + \frac{\sigma_i^2 + (\mu_i-\mu'_i)^2}{2\sigma'^2_i} - \frac12$, primes: new.
    """
    ratio = torch.exp(2 * (old.log_std - new.log_std))
    shift = ((old.mean - new.mean) * torch.exp(-new.log_std)).square()
    return (new.log_std - old.log_std + 0.5 * (ratio + shift - 1)).sum(-1)


def fisher_product(params: Gaussian, tangent: Gaussian) -> Gaussian:
    r"""Fisher information in (mean, log std) times a vector: $(\dot\mu/\sigma^2,\ 2\,\dot{\log\sigma})$.

    It is the Hessian of `kl(old, new)` with respect to `new` at `new = old`.
    """
    return Gaussian(tangent.mean * torch.exp(-2 * params.log_std), 2 * tangent.log_std)


def draw_noise(shape: Sequence[int], action_dim: int, generator: torch.Generator) -> Float[Tensor, "*batch act_dim"]:
    """Standard normal noise `[*shape, action_dim]` for `sample`."""
    return torch.randn(*shape, action_dim, generator=generator, device=generator.device)
