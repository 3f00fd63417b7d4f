"""Time-aware linear value function, fitted per task by regularised least squares (Duan et al. 2016, rllab).

Features of step t with observation o: clip(o, -10, 10), its square, t/100, (t/100)^2, (t/100)^3 and 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

OBSERVATION_CLIP = 10.0
TIME_SCALE = 100.0


def features(
    observations: Float[Tensor, "task episode time obs_dim"], valid: Bool[Tensor, "task episode time"]
) -> Float[Tensor, "task episode time features"]:
    """Baseline features in float64, `2 obs_dim + 4` of them; rows of padding are 0."""
    obs_dim = observations.shape[-1]
    # Written in place, block by block: this is the largest array of an iteration, and every copy of it shows.
    phi = observations.new_empty(*valid.shape, 2 * obs_dim + 4, dtype=torch.float64)
    clipped = phi[..., :obs_dim].copy_(observations).clamp_(-OBSERVATION_CLIP, OBSERVATION_CLIP)
    if not bool(valid.all()):
        clipped.masked_fill_(~valid.unsqueeze(-1), 0.0)
    torch.square(clipped, out=phi[..., obs_dim : 2 * obs_dim])
    t = torch.arange(valid.shape[-1], dtype=torch.float64, device=observations.device) / TIME_SCALE
    torch.mul(
        torch.stack([t, t**2, t**3, torch.ones_like(t)], dim=-1), valid.unsqueeze(-1), out=phi[..., 2 * obs_dim :]
    )
    return phi


def fit(
    phi: Float[Tensor, "task episode time features"],
    targets: Float[Tensor, "task episode time"],
    valid: Bool[Tensor, "task episode time"],
    regularisation: float = 1e-5,
    max_tries: int = 5,
) -> Float[Tensor, "task features"]:
    r"""Solves $(\Phi^T\Phi + \rho I) w = \Phi^T R$ for each task, in float64.

    Args:
        phi: Features from `features`.
        targets: Regression targets; padding is ignored.
        valid: Steps that were taken.
        regularisation: $\rho$; keeps the system solvable where features are collinear (a fixed start state).
        max_tries: A task whose system is not positive definite to rounding gets 10 times the regularisation, up to
            this many times; one that never becomes so gets zero weights, and with them no baseline.
    """
    rows = phi.flatten(1, 2)
    gram = rows.mT @ rows
    moment = (rows.mT @ torch.where(valid, targets, 0.0).double().flatten(1).unsqueeze(-1)).squeeze(-1)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weights = torch.zeros_like(moment)
    unsolved = torch.ones(gram.shape[0], dtype=torch.bool, device=gram.device)
    for attempt in range(max_tries):
        factor, info = torch.linalg.cholesky_ex(gram + regularisation * 10**attempt * eye)
        solution = torch.cholesky_solve(moment.unsqueeze(-1), factor).squeeze(-1)
        good = unsolved & (info == 0) & torch.isfinite(solution).all(-1)
        weights = torch.where(good.unsqueeze(-1), solution, weights)
        unsolved = unsolved & ~good
        if not bool(unsolved.any()):
            break
    return weights


def predict(
    phi: Float[Tensor, "task *steps features"], weights: Float[Tensor, "task features"]
) -> Float[Tensor, "task *steps"]:
    """Values `phi @ weights`, float64."""
    return (phi.flatten(1, -2) @ weights.unsqueeze(-1)).reshape(phi.shape[:-1])
