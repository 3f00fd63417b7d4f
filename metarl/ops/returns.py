"""Returns and advantages of finite episodes with padding."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def discounted_returns(
    rewards: Float[Tensor, "*batch time"], valid: Bool[Tensor, "*batch time"], gamma: float
) -> Float[Tensor, "*batch time"]:
    r"""Return to the end of the episode, $R_t = \sum_{l \ge 0} \gamma^l r_{t+l}$; 0 in padding.

    It is `generalized_advantages` with a zero value function and lambda = 1, and is computed as that.
    """
    zeros = torch.zeros_like(rewards)
    return generalized_advantages(rewards, zeros, zeros[..., 0], valid, gamma, gae_lambda=1.0)


def generalized_advantages(
    rewards: Float[Tensor, "*batch time"],
    values: Float[Tensor, "*batch time"],
    bootstrap_value: Float[Tensor, "*batch"],
    valid: Bool[Tensor, "*batch time"],
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "*batch time"]:
    r"""Generalized advantage estimates (Schulman et al. 2016, eq. 16); 0 in padding.

    $\delta_t = r_t + \gamma V_{t+1} - V_t$ and $A_t = \sum_l (\gamma\lambda)^l \delta_{t+l}$, where $V_{t+1}$ after
    an episode's last valid step is `bootstrap_value`. lambda = 0 gives the one-step error, lambda = 1 the return
    minus the value.

    Args:
        rewards: Rewards; valid steps come first along time.
        values: $V(s_t)$.
        bootstrap_value: Value of the state after the last valid step: 0 where the episode terminated, and where a
            cut-off episode is treated as ending there.
        valid: Steps that were taken.
        gamma: Discount factor.
        gae_lambda: Lambda.
    """
    values = torch.where(valid, values, 0.0)
    is_last = valid & ~torch.nn.functional.pad(valid[..., 1:], (0, 1))
    following = torch.where(is_last, bootstrap_value.unsqueeze(-1), torch.nn.functional.pad(values[..., 1:], (0, 1)))
    deltas = torch.where(valid, rewards + gamma * following - values, 0.0)
    # Time-major, so that the loop reads whole rows; in padding, which comes last, the sum stays 0.
    running, sums = torch.zeros_like(bootstrap_value), []
    for delta in reversed(deltas.movedim(-1, 0).contiguous().unbind()):
        running = delta + gamma * gae_lambda * running
        sums.append(running)
    return torch.stack(sums[::-1]).movedim(0, -1).contiguous()
