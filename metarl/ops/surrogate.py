"""Policy-gradient objectives per task: masked means over a task's steps, to be maximised."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metarl.ops.masked import masked_mean


def reinforce(
    log_prob: Float[Tensor, "task *rows"], advantages: Float[Tensor, "task *rows"], valid: Bool[Tensor, "task *rows"]
) -> Float[Tensor, " task"]:
    r"""$\frac1N\sum_t \log\pi_\theta(a_t|s_t)\,A_t$ (Williams 1992; the inner objective of Finn et al. 2017, eq. 4).

    Its gradient at the behaviour parameters is the policy gradient; so is `likelihood_ratio`'s, but the Hessians
    differ.
    """
    # Both factors are zeroed in padding: the gradient of a masked product is 0 times the other factor, NaN if that is.
    return masked_mean(torch.where(valid, log_prob, 0.0) * torch.where(valid, advantages, 0.0), valid)


def likelihood_ratio(
    log_prob: Float[Tensor, "task *rows"],
    behaviour_log_prob: Float[Tensor, "task *rows"],
    advantages: Float[Tensor, "task *rows"],
    valid: Bool[Tensor, "task *rows"],
) -> Float[Tensor, " task"]:
    r"""$\frac1N\sum_t \frac{\pi_\theta(a_t|s_t)}{\pi_{old}(a_t|s_t)} A_t$ (Schulman et al. 2015, eq. 14).

    At the behaviour parameters the ratio is 1 and the value is the mean advantage.
    """
    # The difference is zeroed in padding before the exponential: exp of garbage can overflow, and the gradient of
    # a masked infinity is NaN.
    log_ratio = torch.where(valid, log_prob - behaviour_log_prob, 0.0)
    return masked_mean(log_ratio.exp() * torch.where(valid, advantages, 0.0), valid)
