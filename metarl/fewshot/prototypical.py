r"""Prototypical networks (Snell, Swersky and Zemel 2017): a class is the mean of its embedded support examples.

    c_k        = 1/|S_k| sum_{(x_i, y_i) in S_k} f_phi(x_i)                             (equation 1)
    p(y=k | x) = softmax_k( -d(f_phi(x), c_k) ),   d(a, b) = |a - b|^2                  (equation 2)
    loss       = - mean over queries (x, y) of log p(y | x)                             (algorithm 1)

The squared distance (not the distance) is the Bregman divergence of Gaussian classes with equal variance: with it the
mean is the best single representative of a class, and the classifier is linear in f_phi(x), as |f_phi(x)|^2 is the same
for every class (their sections 2.3 and 2.4).

| symbol | here              | shape                    | meaning                                |
|--------|-------------------|--------------------------|----------------------------------------|
| f_phi  | Network.embed     | [task, example, feature] | embedding; phi are the meta-parameters |
| S_k    | support.y == k    | [task, support]          | support examples of class k            |
| c_k    | class_means       | [task, class, feature]   | prototypes                             |
| d      | squared_distances | [task, query, class]     | squared Euclidean distance             |

Departures from the paper: none in the method. How many ways and queries a training task has (the paper trains on more
ways than it tests on) is the task source's affair; `ways` must be what its tasks have.
"""

from __future__ import annotations

from typing import final

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from metarl.fewshot.method import Direction, Outcome, descent
from metarl.fewshot.networks import Network
from metarl.fewshot.supervised import prediction_loss
from metarl.fewshot.tasks import Examples, Tasks
from metarl.types import Params


def class_means(
    values: Float[Tensor, "task support feature"], y: Int[Tensor, "task support"], ways: int
) -> Float[Tensor, "task class feature"]:
    """Mean over the examples of each class, however many each has; NaN for a class without any."""
    belongs = F.one_hot(y, ways).to(values.dtype)
    return belongs.mT @ values / belongs.sum(1).unsqueeze(-1)


def squared_distances(
    a: Float[Tensor, "task n feature"], b: Float[Tensor, "task m feature"]
) -> Float[Tensor, "task n m"]:
    """|a_i - b_j|^2, from the differences: |a|^2 - 2 ab + |b|^2 would lose near points to rounding."""
    return (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)


@final
class Prototypical:
    """Prototypical networks; meta-parameters and running statistics are the network's own.

    Args:
        network: f_phi.
        ways: Classes of a task; each has at least one support example.
    """

    def __init__(self, network: Network, ways: int) -> None:
        self.network = network
        self.ways = ways

    def initial_params(self) -> Params:
        """See `Method`."""
        return self.network.initial_params()

    def initial_buffers(self) -> Params:
        """See `Method`."""
        return self.network.initial_buffers()

    def direction(self, params: Params, buffers: Params, tasks: Tasks) -> Direction:
        """See `Method`."""
        return descent(self._outcome, params, buffers, tasks)

    def predictions(
        self, params: Params, buffers: Params, support: Examples, query_x: Tensor, num_steps: int
    ) -> list[Tensor]:
        """See `Method`: one prediction, as there are no steps."""
        return [self._logits(params, buffers, support, query_x, learning=False)[0]]

    def _outcome(self, params: Params, buffers: Params, tasks: Tasks) -> Outcome:
        logits, buffers = self._logits(params, buffers, tasks.support, tasks.query.x, learning=True)
        return Outcome(prediction_loss(logits, tasks.query.y), logits, buffers)

    def _logits(
        self, params: Params, buffers: Params, support: Examples, query_x: Tensor, learning: bool
    ) -> tuple[Tensor, Params]:
        """Logits `[task, query, class]` of equation 2, and the running statistics after the pass."""
        embedded, queries, buffers = self.network.embed(params, support.x, query_x, buffers, learning)
        return -squared_distances(queries, class_means(embedded, support.y, self.ways)), buffers
