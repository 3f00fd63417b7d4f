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

    Raises:
        ValueError: In a step or a reset, if names or shapes are not those of the state there is.
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
        self._put("The state to start from", initial, lanes)

    def step(self, control: Tensor, lanes: Tensor | None) -> None:
        # A snapshot: an entry of the next state may be one of this state's own tensors.
        self._put("The state after a step", self._transition(self.state(), control), lanes)

    def _put(self, what: str, values: State, lanes: Tensor | None) -> None:
        """Into the memory the state already has: a captured CUDA graph goes on reading it there."""
        # A smaller tensor would be broadcast, and a missing one left as it was, without a word.
        if _shapes(values) != _shapes(self._state):
            raise ValueError(f"{what} has {_shapes(values)}; the state of these worlds has {_shapes(self._state)}.")
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


def _shapes(state: State) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}
