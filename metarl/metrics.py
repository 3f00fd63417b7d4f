"""What one iteration reports, by the names that docs/learners.md explains."""

from __future__ import annotations

import torch

from metarl.ops.gaussian import Gaussian
from metarl.ops.masked import masked_mean
from metarl.rollout_adaptation import RolloutAdaptation
from metarl.types import Params, Policy


def rollout_metrics(policy: Policy, data: RolloutAdaptation) -> dict[str, float]:
    """Mean return, entropy and standard deviation before each inner step and after the last."""
    metrics = {}
    for k, rollout in enumerate(data.rollouts):
        metrics[f"return/step_{k}"] = data.returns[k].mean()
        entropy = policy.distribution.entropy(rollout.dist_params)
        metrics[f"entropy/step_{k}"] = masked_mean(entropy, rollout.valid).mean()
        if isinstance(rollout.dist_params, Gaussian):
            std = rollout.dist_params.log_std.exp().mean(-1)
            metrics[f"std/step_{k}"] = masked_mean(std, rollout.valid).mean()
    # One transfer for all of them: each would wait for the GPU.
    values = torch.stack(list(metrics.values())).tolist()
    return dict(zip(metrics, values, strict=True)) | {"nonfinite_steps": float(data.nonfinite_steps)}


def step_size_metrics(meta: Params) -> dict[str, float]:
    """Mean, smallest and largest of the learned inner step sizes; nothing where none are learned."""
    learned = [value.flatten() for name, value in meta.items() if name.startswith("inner_lr.")]
    if not learned:
        return {}
    sizes = torch.cat(learned)
    values = torch.stack([sizes.mean(), sizes.min(), sizes.max()]).tolist()
    return dict(zip(("inner_lr/mean", "inner_lr/min", "inner_lr/max"), values, strict=True))
