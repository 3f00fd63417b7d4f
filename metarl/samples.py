"""From a rollout to what a policy-gradient loss reads: baseline, advantages, rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarl.ops import linear_baseline
from metarl.ops.masked import normalise, valid_first
from metarl.ops.returns import discounted_returns, generalized_advantages
from metarl.types import Rollout, Samples


def advantages(rollout: Rollout, *, gamma: float, gae_lambda: float, bootstrap_truncated: bool = False) -> Tensor:
    """Normalised advantages `[task, episode, time]` from a linear baseline fitted to the same rollout, as published.

    The baseline sees time, which makes these finite-horizon problems: its target is the return to the end of the
    episode, and by default an episode cut off at the horizon is worth nothing beyond it.

    Args:
        rollout: Recorded episodes.
        gamma: Discount factor.
        gae_lambda: Lambda of generalized advantage estimation.
        bootstrap_truncated: Continue a truncated (never a terminated) episode with the baseline's value of its
            final observation.
    """
    valid = rollout.valid
    phi = linear_baseline.features(rollout.observations, valid)
    returns = discounted_returns(rollout.rewards.double(), valid, gamma)
    weights = linear_baseline.fit(phi, returns, valid)
    bootstrap = returns.new_zeros(returns.shape[:-1])
    if bootstrap_truncated:
        # Flags in padding mean nothing, and a step may carry both: then the task itself ended the episode.
        cut_off = (rollout.truncated & ~rollout.terminated & valid).any(-1)
        bootstrap = torch.where(cut_off, _final_value(rollout, weights), 0.0)
    values = linear_baseline.predict(phi, weights)
    estimates = generalized_advantages(rollout.rewards.double(), values, bootstrap, valid, gamma, gae_lambda)
    return normalise(estimates, valid).to(rollout.rewards.dtype)


def _final_value(rollout: Rollout, weights: Tensor) -> Tensor:
    """The baseline's value `[task, episode]` of each episode's final observation, at the time it was seen."""
    length = rollout.valid.sum(-1)
    # Features know time by position: put the final observation at index `length` of an otherwise empty episode.
    num_times = rollout.valid.shape[-1] + 1
    here = torch.arange(num_times, device=length.device) == length.unsqueeze(-1)
    placed = rollout.final_observation.unsqueeze(-2).expand(*here.shape, -1)
    return linear_baseline.predict(linear_baseline.features(placed, here), weights).sum(-1)


def to_samples(rollout: Rollout, advantage: Tensor) -> Samples:
    """The rollout's valid steps as rows, `[task, row, ...]`, padded at the end to the longest task or a little further.

    Args:
        rollout: Recorded episodes.
        advantage: `[task, episode, time]`.
    """
    starts = rollout.valid.clone()
    starts[..., 1:] = False
    flat = rollout.valid.flatten(1)
    num_rows = min(_one_of_few(max(int(flat.sum(-1).max()), 1)), flat.shape[1])
    columns = (
        rollout.observations,
        rollout.actions,
        advantage,
        rollout.valid,
        starts,
        rollout.log_prob,
        rollout.dist_params,
    )
    if bool(flat[:, :num_rows].all()) and num_rows == flat.shape[1]:
        return Samples(*tree_map(lambda x: x.flatten(1, 2), columns))
    take = valid_first(flat, num_rows)
    rows = Samples(*tree_map(lambda x: take(x.flatten(1, 2)), columns))
    # Where tasks have different numbers of steps the last rows of the shorter ones are padding. Zero them: a
    # network's gradient through a masked row is 0 * its input, and its input may be NaN.
    kept = take(flat)
    return tree_map(lambda x: torch.where(_like(kept, x), x, torch.zeros_like(x)), rows._replace(valid=kept))


def _one_of_few(number: int) -> int:
    """The number, or up to a sixteenth more, so that few occur: oneDNN prepares its products anew for every size."""
    step = 2 ** max(number.bit_length() - 5, 0)
    return -(-number // step) * step


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
