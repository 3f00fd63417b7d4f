"""Categorical distributions over discrete actions, as functions of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Categorical(NamedTuple):
    """Parameters of a categorical distribution.

    Attributes:
        logits: Unnormalised log-probabilities, `[..., num_actions]`.
    """

    logits: Tensor


def log_prob(params: Categorical, actions: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Log-probability of each action index."""
    return params.logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def sample(params: Categorical, noise: Float[Tensor, "*batch num_actions"]) -> Int[Tensor, "*batch"]:
    """Gumbel-max: argmax of logits + Gumbel noise."""
    return (params.logits + noise).argmax(-1)


def mode(params: Categorical) -> Int[Tensor, "*batch"]:
    """The most probable action."""
    return params.logits.argmax(-1)


def entropy(params: Categorical) -> Float[Tensor, "*batch"]:
    r"""$-\sum_a p_a \log p_a$."""
    log_p = params.logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def kl(old: Categorical, new: Categorical) -> Float[Tensor, "*batch"]:
    r"""$KL(\text{old} \| \text{new}) = \sum_a p_a (\log p_a - \log p'_a)$."""
    log_old = old.logits.log_softmax(-1)
    return (log_old.exp() * (log_old - new.logits.log_softmax(-1))).sum(-1)


def fisher_product(params: Categorical, tangent: Categorical) -> Categorical:
    r"""Fisher information in logits times a vector: $(\mathrm{diag}(p) - p p^T)\,\dot\ell$."""
    p = params.logits.softmax(-1)
    return Categorical(p * (tangent.logits - (p * tangent.logits).sum(-1, keepdim=True)))


def draw_noise(
    shape: Sequence[int], action_dim: int, generator: torch.Generator
) -> Float[Tensor, "*batch num_actions"]:
    """Standard Gumbel noise `[*shape, num_actions]` for `sample`."""
    # -log of an exponential variate is Gumbel; exponential_ never returns 0, so nothing infinite comes out.
    exponential = torch.empty(*shape, action_dim, device=generator.device).exponential_(generator=generator)
    return -exponential.log()
