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
        action_limit: Actions are kept within -action_limit .. action_limit, in policy units, beyond which an
            environment clips them; None leaves them as they are. Choices among several actions have no limit.

    Attributes:
        constants: What else the policy computes with (buffers, frozen parameters), as it was when the agent was made.

    Raises:
        ValueError: If a parameter is not finite.
    """

    def __init__(self, policy: Policy, params: Params, action_limit: float | None = None) -> None:
        if not all_finite(params):
            raise ValueError("An agent was given parameters that are not all finite.")
        self.policy = policy
        self.params = params
        self.action_limit = action_limit
        like = next(iter(params.values()))
        self.constants = {name: value.to(like.device, copy=True) for name, value in constants(policy).items()}

    @torch.no_grad()
    def act(self, observation: Any, generator: torch.Generator | None = None) -> np.ndarray:
        """The action for an observation `[obs_dim]`, or for a batch of them `[..., obs_dim]`, in policy units.

        Args:
            observation: Anything NumPy understands, e.g. what a Gymnasium environment returned.
            generator: Sample the action with it; None returns the distribution's mode.

        Raises:
            ValueError: If the observation is not finite, or not one that the policy takes.
        """
        parameter = next(iter(self.params.values()))
        try:
            observations = torch.as_tensor(np.asarray(observation), dtype=parameter.dtype, device=parameter.device)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{observation!r} is no observation: it must be an array of numbers.") from error
        if not bool(torch.isfinite(observations).all()):
            raise ValueError(f"The observation holds a number that is not finite: {observation}.")
        try:
            dist_params = call(self.policy, self.constants | self.params, observations)
        except RuntimeError as error:
            raise ValueError(
                f"The policy does not take an observation of shape {list(observations.shape)}: {error}"
            ) from error
        distribution = self.policy.distribution
        if generator is None:
            action = distribution.mode(dist_params)
        else:
            noise = distribution.draw_noise(observations.shape[:-1], self.policy.action_dim, generator)
            action = distribution.sample(dist_params, noise.to(observations))
        if self.action_limit is not None and action.is_floating_point():
            action = action.clamp(-self.action_limit, self.action_limit)
        return action.cpu().numpy()
