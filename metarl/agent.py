"""An adapted policy as a user holds it: observations in, actions out."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch

from metarl.functional import call, constants
from metarl.ops.tree import all_finite
from metarl.types import Params, Policy


@final
class Agent:
    """A policy with one task's parameters.

    Args:
        policy: The policy module.
        params: Parameters of one task, without a task axis.

    Attributes:
        constants: What else the policy computes with (buffers, frozen parameters), as it was when the agent was made.

    Raises:
        ValueError: If a parameter is not finite.
    """

    def __init__(self, policy: Policy, params: Params) -> None:
        if not all_finite(params):
            raise ValueError("An agent was given parameters that are not all finite.")
        self.policy = policy
        self.params = params
        like = next(iter(params.values()))
        self.constants = {name: value.to(like.device, copy=True) for name, value in constants(policy).items()}

    @torch.no_grad()
    def act(self, observation: Any, generator: torch.Generator | None = None) -> np.ndarray:
        """The action for an observation `[obs_dim]`, or for a batch of them `[..., obs_dim]`, in policy units.

        Args:
            observation: Anything NumPy understands, e.g. what a Gymnasium environment returned.
            generator: Sample the action with it; None returns the distribution's mode.
        """
        parameter = next(iter(self.params.values()))
        observations = torch.as_tensor(np.asarray(observation), dtype=parameter.dtype, device=parameter.device)
        dist_params = call(self.policy, self.constants | self.params, observations)
        distribution = self.policy.distribution
        if generator is None:
            return distribution.mode(dist_params).cpu().numpy()
        noise = distribution.draw_noise(observations.shape[:-1], self.policy.action_dim, generator)
        return distribution.sample(dist_params, noise.to(observations)).cpu().numpy()
