r"""Policy-gradient objectives per task: masked means over a task's steps, to be maximised.

`reinforce`, `likelihood_ratio` and `dice` have the same gradient at the behaviour parameters. They differ in their
Hessians, and so in the gradient of whatever is behind an inner step that ascends them: that of `reinforce` lacks the
outer products of scores, that of `likelihood_ratio` has those of each step with itself, that of `dice` has those of
every step with all steps before it too (Rothfuss et al. 2019, section 5).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metarl.ops.masked import masked_mean


def reinforce(
    log_prob: Float[Tensor, "task *rows"], advantages: Float[Tensor, "task *rows"], valid: Bool[Tensor, "task *rows"]
) -> Float[Tensor, " task"]:
    r"""$\frac1N\sum_t \log\pi_\theta(a_t|s_t)\,A_t$ (Williams 1992; the inner objective of Finn et al. 2017, eq. 4).

    Hessian: $\frac1N\sum_t A_t \nabla^2 \log\pi_\theta(a_t|s_t)$.
    """
    # Both factors are zeroed in padding: the gradient of a masked product is 0 times the other factor, NaN if that is.
    return masked_mean(torch.where(valid, log_prob, 0.0) * torch.where(valid, advantages, 0.0), valid)


def likelihood_ratio(
    log_prob: Float[Tensor, "task *rows"],
    behaviour_log_prob: Float[Tensor, "task *rows"],
    advantages: Float[Tensor, "task *rows"],
    valid: Bool[Tensor, "task *rows"],
    clip_range: float = 0.0,
) -> Float[Tensor, " task"]:
    r"""$\frac1N\sum_t \rho_t A_t$, $\rho_t = \pi_\theta(a_t|s_t) / \pi_{old}(a_t|s_t)$ (Schulman et al. 2015, eq. 14).

    As an inner objective it is the low-variance curvature estimator (LVC) of Rothfuss et al. 2019, eq. 9; its Hessian
    at the behaviour parameters is $\frac1N\sum_t A_t (\nabla^2 l_t + \nabla l_t \nabla l_t^T)$, $l_t$ the
    log-probability. There the ratio is 1 and the value is the mean advantage.

    Args:
        log_prob: Under the parameters in question.
        behaviour_log_prob: Under those that sampled the actions.
        advantages: $A_t$.
        valid: Steps that were taken.
        clip_range: $\epsilon > 0$ takes $\min(\rho_t A_t, \mathrm{clip}(\rho_t, 1 \pm \epsilon) A_t)$ instead
            (Schulman et al. 2017, eq. 7); 0 does not clip.
    """
    # The difference is zeroed in padding before the exponential: exp of garbage can overflow, and the gradient of
    # a masked infinity is NaN.
    ratio = torch.where(valid, log_prob - behaviour_log_prob, 0.0).exp()
    advantages = torch.where(valid, advantages, 0.0)
    gain = ratio * advantages
    if clip_range:
        gain = torch.minimum(gain, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
    return masked_mean(gain, valid)


def dice(
    log_prob: Float[Tensor, "task rows"],
    behaviour_log_prob: Float[Tensor, "task rows"],
    advantages: Float[Tensor, "task rows"],
    valid: Bool[Tensor, "task rows"],
    starts: Bool[Tensor, "task rows"],
) -> Float[Tensor, " task"]:
    r"""$\frac1N\sum_t (\Box_{\le t} - \Box_{<t}) A_t$ with $\Box_{\le t} = \exp(\tau_t - \tau_{old,t})$.

    $\tau_t$ is the sum of an episode's log-probabilities up to step t (Foerster et al. 2018; in this form, which takes
    any advantages, Farquhar et al. 2019). They stop the gradient through $\tau_{old}$ where the behaviour policy's is
    taken here: at the behaviour parameters the same, elsewhere the importance weight of the episode so far. With
    returns to go for advantages it is, by summation by parts, DiCE's own $\sum_t \Box_{\le t} r_t$ but for a constant.

    Its value there is 0. Its Hessian is $\frac1N\sum_t A_t (\nabla^2 l_t + \nabla l_t \nabla l_t^T + \nabla l_t
    \nabla\tau_{t-1}^T + \nabla\tau_{t-1} \nabla l_t^T)$: unbiased, as that of `likelihood_ratio` is not, at several
    times its variance.

    Args:
        log_prob: Under the parameters in question; rows in order of time, episode after episode.
        behaviour_log_prob: Under those that sampled the actions.
        advantages: $A_t$.
        valid: Steps that were taken.
        starts: First steps of episodes.
    """
    log_ratio = torch.where(valid, log_prob - behaviour_log_prob, 0.0)
    until = log_ratio.cumsum(-1)
    rows = torch.arange(starts.shape[-1], device=starts.device)
    first = torch.where(starts, rows, 0).cummax(-1).values
    before_episode = (until - log_ratio).gather(-1, first)
    until = until - before_episode
    return masked_mean((until.exp() - (until - log_ratio).exp()) * torch.where(valid, advantages, 0.0), valid)
