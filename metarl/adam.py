"""torch's Adam on a dictionary of tensors, with a state that is checked before it is loaded."""

from __future__ import annotations

import copy
from typing import Any, final

import torch

from metarl.ops.tree import all_finite
from metarl.types import Params


@final
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1).

    Args:
        params: What is to be optimised, for names, shapes and device.
        lr: Step size.
        maximize: Follow the gradient instead of going against it.
    """

    def __init__(self, params: Params, lr: float, maximize: bool = False) -> None:
        self._leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        self._adam = torch.optim.Adam(list(self._leaves.values()), lr=lr, maximize=maximize)
        # What Adam makes at its first step, so that a state is whole from the beginning and one without is damaged.
        for leaf in self._leaves.values():
            zeros = {name: torch.zeros_like(leaf, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
            self._adam.state[leaf] = {"step": torch.tensor(0.0), **zeros}

    def step(self, params: Params, gradient: Params, lr: float | None = None) -> Params | None:
        """Where one step leads from `params`, which is only read.

        Args:
            params: Where it starts.
            gradient: Gradient there.
            lr: Step size of this step and later ones; None leaves it.

        Returns:
            The new parameters; None if the gradient, or its square, which the second moment holds, is not finite. The
            state is then as before.
        """
        if not all_finite({name: value.square() for name, value in gradient.items()}):
            return None
        for name, leaf in self._leaves.items():
            leaf.data.copy_(params[name])
            leaf.grad = gradient[name]
        if lr is not None:
            self._adam.param_groups[0]["lr"] = lr
        self._adam.step()
        return {name: leaf.detach().clone() for name, leaf in self._leaves.items()}

    def state_dict(self) -> dict[str, Any]:
        """Moments and number of steps of every parameter, by name."""
        return copy.deepcopy({name: self._adam.state[leaf] for name, leaf in self._leaves.items()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` returned.

        Raises:
            ValueError: If it does not fit the parameters. The state is then as before.
        """
        if not isinstance(state, dict) or set(state) != set(self._leaves):
            raise ValueError("the saved Adam moments are missing or belong to other parameters")
        for name, leaf in self._leaves.items():
            shapes = {"step": torch.Size(), "exp_avg": leaf.shape, "exp_avg_sq": leaf.shape}
            if not _fits(state[name], shapes, leaf.dtype):
                raise ValueError(f"the saved Adam moments of {name} are not finite tensors of the parameter's shape")
        for name, entry in state.items():
            leaf = self._leaves[name]
            # Adam counts on the host wherever the parameters are.
            self._adam.state[leaf] = {
                key: value.clone() if key == "step" else value.to(leaf).clone() for key, value in entry.items()
            }


def _fits(entry: Any, shapes: dict[str, torch.Size], dtype: torch.dtype) -> bool:
    """Whether `entry` holds tensors of exactly these names and shapes, finite as numbers of `dtype`."""
    return (
        isinstance(entry, dict)
        and set(entry) == set(shapes)
        and all(isinstance(value, torch.Tensor) and value.shape == shapes[name] for name, value in entry.items())
        and all(value.is_floating_point() and bool(value.to(dtype).isfinite().all()) for value in entry.values())
    )
