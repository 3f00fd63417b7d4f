"""Worlds whose dynamics are a torch function: any device, no physics engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from envs.family import State

Transition = Callable[[State, Tensor], State]


@final
class TorchSimulator:
    """Advances `num_lanes` worlds with a transition function.

    Args:
        num_lanes: Number of worlds.
        device: Where they live.
        transition: `(state, control [lane, control_dim]) -> next state`, pure and batched over lanes.
    """

    def __init__(self, num_lanes: int, device: torch.device, transition: Transition) -> None:
        self.num_lanes = num_lanes
        self.device = device
        self.dtype = torch.float64 if device.type == "cpu" else torch.float32
        self._transition = transition
        self._state: State = {}

    def state(self) -> State:
        return self._state

    def reset(self, initial: State, lanes: Tensor | None) -> None:
        if lanes is None or not self._state:
            # Copies, so that what the caller does to its own tensors later moves no world.
            self._state = {name: value.clone() for name, value in initial.items()}
        else:
            self._state = _select(lanes, initial, self._state)

    def step(self, control: Tensor, lanes: Tensor | None) -> None:
        following = self._transition(self._state, control)
        self._state = following if lanes is None else _select(lanes, following, self._state)

    def failed(self) -> Tensor:
        failed = torch.zeros(self.num_lanes, dtype=torch.bool, device=self.device)
        for value in self._state.values():
            failed |= ~torch.isfinite(value.reshape(self.num_lanes, -1)).all(-1)
        return failed


def _select(lanes: Tensor, chosen: State, other: State) -> State:
    """Rows of `chosen` where `lanes` is set, of `other` elsewhere."""
    return {
        key: torch.where(lanes.reshape(-1, *[1] * (value.ndim - 1)), chosen[key], value) for key, value in other.items()
    }
