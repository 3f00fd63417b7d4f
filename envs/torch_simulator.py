"""Worlds whose dynamics are a torch function: any device, no physics engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
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
        self._state: dict[str, Tensor] = {}
        self.memory_generation = 0

    def state(self) -> State:
        return {name: value.clone() for name, value in self._state.items()}

    def reset(self, initial: State, lanes: Tensor | None) -> None:
        if not self._state:
            # Copies, so that what the caller does to its own tensors later moves no world.
            self._state = {name: value.clone() for name, value in initial.items()}
        self._put(initial, lanes)

    def step(self, control: Tensor, lanes: Tensor | None) -> None:
        self._put(self._transition(self._state, control), lanes)

    def _put(self, values: State, lanes: Tensor | None) -> None:
        """Into the memory the state already has: a captured CUDA graph goes on reading it there."""
        for name, value in (values if lanes is None else _select(lanes, values, self._state)).items():
            self._state[name].copy_(value)

    def capturing(self) -> AbstractContextManager[None]:
        """Nothing but torch runs here, which knows of its own captures."""
        return contextlib.nullcontext()

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
