"""An adapted policy as a user holds it: observations in, actions out."""

from __future__ import annotations

from typing import Any, cast, final

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from metarl.types import Params, Policy


@final
class Agent:
    """A policy with one task's parameters.

    Args:
        policy: The policy module.
        params: Parameters of one task, without a task axis.
    """

    def __init__(self, policy: Policy, params: Params) -> None:
        self.policy = policy
        self.params = params

    @torch.no_grad()
    def act(self, observation: Any, generator: torch.Generator | None = None) -> np.ndarray:
        """The action for an observation `[obs_dim]`, or for a batch of them `[..., obs_dim]`, in policy units.

        Args:
            observation: Anything NumPy understands, e.g. what a Gymnasium environment returned.
            generator: Sample the action with it; None returns the distribution's mode.
        """
        parameter = next(iter(self.params.values()))
        observations = torch.as_tensor(np.asarray(observation), dtype=parameter.dtype, device=parameter.device)
        dist_params = functional_call(cast(nn.Module, self.policy), self.params, (observations,))
        distribution = self.policy.distribution
        if generator is None:
            return distribution.mode(dist_params).cpu().numpy()
        noise = distribution.draw_noise(observations.shape[:-1], self.policy.action_dim, generator)
        return distribution.sample(dist_params, noise.to(observations)).cpu().numpy()
