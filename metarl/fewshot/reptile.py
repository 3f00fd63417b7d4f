r"""Reptile: move the start towards where some steps of gradient descent lead (Nichol, Achiam and Schulman 2018).

    theta_{k+1} = theta_k - alpha grad L(theta_k; mini-batch k),     k = 0 .. K-1        (algorithm 1, U = SGD)
    meta <- meta + eps (1/M sum_i theta_iK - meta)                                       (algorithm 2)

No gradient is taken through the inner steps; what makes it meta-learning is that the mini-batches differ (section 5).

| symbol   | here             | shape                | meaning                                               |
|----------|------------------|----------------------|-------------------------------------------------------|
| meta     | params           | {name: [...]}        | what the outer loop learns                            |
| theta_ik | trajectory[k]    | {name: [task, ...]}  | task i's parameters after k inner steps               |
| meta - theta_iK | gradient  | {name: [...]}        | what the outer loop goes against; eps its step size   |

Departures: the inner optimiser is gradient descent instead of Adam without momentum (the paper's is one of the choices
of algorithm 1; `metarl.adaptation` has one kind of step). In training, mini-batches come from support and query
examples together, which plays the part of the paper's larger number of shots in training.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from metarl.fewshot.maml import supervised_inner_loop
from metarl.fewshot.method import Direction
from metarl.fewshot.networks import Network
from metarl.fewshot.supervised import prediction_loss
from metarl.fewshot.tasks import Examples, Tasks
from metarl.types import Params


def mini_batches(examples: Examples, size: int, num_batches: int) -> list[Examples]:
    """`num_batches` mini-batches of `size` consecutive examples, from the first one on again when all were used.

    Args:
        examples: `[task, example, ...]`.
        size: Examples of a mini-batch; all of them if there are fewer.
        num_batches: How many.
    """
    num = examples.x.shape[1]
    size = min(size, num)
    order = torch.arange(size * max(num_batches, 0)) % num
    return [Examples(*(v[:, order[k * size : (k + 1) * size]] for v in examples)) for k in range(num_batches)]


@final
class Reptile:
    """Reptile; a `Method`.

    Args:
        network: The network that adapts.
        num_inner_steps: K in training.
        inner_lr: alpha.
        batch_size: Examples of a mini-batch.
    """

    def __init__(self, network: Network, num_inner_steps: int, inner_lr: float, batch_size: int) -> None:
        self.network, self.num_inner_steps, self.batch_size = network, num_inner_steps, batch_size
        self.inner = supervised_inner_loop(network, inner_lr=inner_lr, later_lr_factor=1.0)

    def initial_params(self) -> Params:
        """See `Method`."""
        return self.inner.initial_meta()

    def initial_buffers(self) -> Params:
        """See `Method`."""
        return self.network.initial_buffers()

    def direction(self, params: Params, buffers: Params, tasks: Tasks) -> Direction:
        """See `Method`."""
        examples = Examples(*(torch.cat(parts, 1) for parts in zip(tasks.support, tasks.query, strict=True)))
        theta = self._adapt(params, examples, self.num_inner_steps)[-1]
        with torch.no_grad():
            predictions, buffers = self.network.learning_statistics(theta, examples.x, buffers)
        gradient = {name: (value - theta[name]).sum(0) for name, value in params.items()}
        return Direction(gradient, buffers, {"loss": prediction_loss(predictions, examples.y)})

    def predictions(
        self, params: Params, buffers: Params, support: Examples, query_x: Tensor, num_steps: int
    ) -> list[Tensor]:
        """See `Method`."""
        return self.network.predictions(self._adapt(params, support, num_steps), support.x, query_x, buffers)

    def _adapt(self, params: Params, examples: Examples, num_steps: int) -> list[Params]:
        batches = mini_batches(examples, self.batch_size, num_steps)
        return self.inner.adapt(params, batches, len(examples.x), num_steps)
