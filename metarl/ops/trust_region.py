"""Natural-gradient steps inside a KL trust region (Schulman et al. 2015): conjugate gradient and line search.

The direction (`conjugate_gradient`) and its acceptance (`trust_region_step`) are apart. Both are pure functions of
flat vectors or parameter dictionaries; what the metric and the objective are is the caller's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metarl.ops.tree import flatten
from metarl.types import Params


class ConjugateGradientResult(NamedTuple):
    """Solution of a linear system.

    Attributes:
        solution: `[n]`.
        residual: b - A x by the recurrence, `[n]`.
        relative_residual: ||b - A x|| / ||b||; 0 for b = 0, NaN where b or a product was not finite.
        iterations: Products that were needed.
    """

    solution: Tensor
    residual: Tensor
    relative_residual: float
    iterations: int


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], rhs: Float[Tensor, " n"], iters: int, tolerance: float = 0.0
) -> ConjugateGradientResult:
    """Solves `A x = rhs` for a symmetric positive definite A given by its product (Hestenes and Stiefel 1952).

    Exact after n iterations up to rounding. `rhs` is only read. Stops early when the relative residual falls to
    `tolerance`, when the residual vanishes, or when a direction has no positive curvature (A is then not positive
    definite to rounding, and going on would diverge).

    Args:
        product: `x -> A x`.
        rhs: Right-hand side b.
        iters: Largest number of products.
        tolerance: Relative residual at which to stop; 0 runs all iterations.
    """
    solution = torch.zeros_like(rhs)
    residual = rhs.clone()
    direction = rhs.clone()
    squared = torch.dot(residual, residual)
    start = float(squared)
    iterations = 0
    while iterations < iters and float(squared) > tolerance * tolerance * start:
        image = product(direction)
        curvature = torch.dot(direction, image)
        iterations += 1
        if not float(curvature) > 0:
            break
        step = squared / curvature
        solution = solution + step * direction
        residual = residual - step * image
        following = torch.dot(residual, residual)
        direction = residual + following / squared * direction
        squared = following
    # A product that is not finite must not pass for one without curvature, nor such a right-hand side for zero.
    if not math.isfinite(start) or (iterations > 0 and not math.isfinite(float(curvature))):
        return ConjugateGradientResult(solution, residual, math.nan, iterations)
    relative = math.sqrt(float(squared) / start) if start > 0 else 0.0
    return ConjugateGradientResult(solution, residual, relative, iterations)


class TrustRegionStep(NamedTuple):
    """Outcome of `trust_region_step`.

    Attributes:
        params: New parameters; the input ones, bitwise, where no step was accepted.
        accepted: Whether a step was accepted.
        step_fraction: Accepted share of the full natural-gradient step, 0 if none.
        kl: KL divergence at `params`.
        expected_gain: First-order gain of the accepted step (of the full one if none was accepted).
        actual_gain: Objective at `params` minus objective before.
        cg_residual: Relative residual of the conjugate gradient.
        line_search_steps: Points that were evaluated.
    """

    params: Params
    accepted: bool
    step_fraction: float
    kl: float
    expected_gain: float
    actual_gain: float
    cg_residual: float
    line_search_steps: int


def trust_region_step(
    params: Params,
    gradient: Params,
    fisher_product: Callable[[Params], Params],
    evaluate: Callable[[Params], tuple[float, float]],
    objective: float,
    *,
    max_kl: float,
    cg_iters: int = 10,
    cg_damping: float = 1e-5,
    cg_tolerance: float = 0.0,
    line_search_steps: int = 15,
    line_search_decay: float = 0.8,
) -> TrustRegionStep:
    r"""Maximises an objective within KL <= max_kl: $\theta + \beta^j s$, $s = \sqrt{2\delta / x^T A x}\;x$, $A x = g$.

    A = F + damping I. The first j = 0, 1, ... whose objective is higher than before and whose KL is within the bound
    is taken (Schulman et al. 2015, appendix C).

    Args:
        params: $\theta$.
        gradient: $g$, of the objective at params.
        fisher_product: `v -> F v`, the Hessian of the KL divergence at params.
        evaluate: `params -> (objective, kl)`.
        objective: Objective at params.
        max_kl: $\delta$.
        cg_iters: Conjugate-gradient iterations.
        cg_damping: Added to F's diagonal: F is singular along directions that change no action probability.
        cg_tolerance: See `conjugate_gradient`.
        line_search_steps: Largest number of points tried.
        line_search_decay: $\beta$.
    """
    theta, unflatten = flatten(params)

    def in_order(tree: Params) -> Tensor:
        return flatten({name: tree[name] for name in params})[0]

    # Vectors of the size of the parameters cost nothing in float64, and the recurrence then adds no error of its own.
    g = in_order(gradient).double()

    def product(vector: Tensor) -> Tensor:
        return in_order(fisher_product(unflatten(vector.to(theta.dtype)))).double() + cg_damping * vector

    cg = conjugate_gradient(product, g, cg_iters, cg_tolerance)
    # x^T A x = x^T (b - r): the recurrence's residual spares one more product.
    curvature = float(torch.dot(cg.solution, g - cg.residual))
    slope = float(torch.dot(g, cg.solution))
    if not (math.isfinite(curvature) and curvature > 0 and math.isfinite(slope)):
        return TrustRegionStep(params, False, 0.0, 0.0, 0.0, 0.0, cg.relative_residual, 0)
    scale = math.sqrt(2 * max_kl / curvature)
    full_step = (scale * cg.solution).to(theta.dtype)
    for tried in range(line_search_steps):
        fraction = line_search_decay**tried
        candidate = unflatten(theta + fraction * full_step)
        value, kl = evaluate(candidate)
        # Written so that NaN in either refuses the step.
        if value > objective and kl <= max_kl:
            gain, expected = value - objective, fraction * scale * slope
            return TrustRegionStep(candidate, True, fraction, kl, expected, gain, cg.relative_residual, tried + 1)
    return TrustRegionStep(params, False, 0.0, 0.0, scale * slope, 0.0, cg.relative_residual, line_search_steps)
