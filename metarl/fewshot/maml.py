r"""MAML and its relatives: gradient steps on the support set from a learnt start (Finn, Abbeel and Levine 2017).

    theta_0 = start(meta),     theta_{k+1} = theta_k - A_k * grad L(theta_k; support),     k = 0 .. K-1
    meta-loss = 1/M sum_i L(theta_iK; query_i)

The inner steps are those of every learner of this package (`metarl.inner_loop`); what is learnt and adapted makes the
method:

| method    | switch of the inner loop | meaning                                                                    |
|-----------|--------------------------|----------------------------------------------------------------------------|
| MAML      | -                        | exact gradient through the inner steps, (I - A H) included (eq. 1)         |
| FOMAML    | first_order              | inner gradients are constants: the gradient at theta_K (section 5.2)       |
| Meta-SGD  | learned_lr               | A_k is learnt, one entry per parameter entry (Li et al. 2017, eq. 1)       |
| ANIL      | adapted "head"           | inner steps change the last layer alone (Raghu et al. 2020, section 4.1)   |

| symbol   | here           | shape                | meaning                                       |
|----------|----------------|----------------------|-----------------------------------------------|
| meta     | params         | {name: [...]}        | what the outer loop learns                    |
| theta_k  | trajectory[k]  | {name: [task, ...]}  | task's parameters after k inner steps         |
| L        | prediction_loss | [task]              | cross-entropy or mean squared error           |

Departures: initial weights are those of He et al. (2015) and Glorot and Bengio (2010). With running statistics
(`networks`), inner steps still normalise by the support batch, in training and in testing; only queries at meta-test
are normalised by the running average.
"""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from metarl.fewshot.method import Direction, Outcome, descent
from metarl.fewshot.networks import Network
from metarl.fewshot.supervised import prediction_loss
from metarl.fewshot.tasks import Examples, Tasks
from metarl.inner_loop import InnerLoop
from metarl.types import Params


def supervised_inner_loop(network: Network, **switches: Any) -> InnerLoop[Any]:
    """How a network adapts on labelled examples.

    Args:
        network: The network.
        **switches: Fields of `InnerLoop`: inner_lr, first_order, learned_lr, adapted, ...
    """

    def loss(params: Params, examples: Examples) -> Tensor:
        return prediction_loss(network.learning(params, examples.x), examples.y)

    return InnerLoop(network.module, loss, **switches)


@final
class MAML:
    """MAML, FOMAML, Meta-SGD and ANIL; a `Method`.

    Args:
        network: The network that adapts.
        num_inner_steps: K in training; with 0 the network is trained on all tasks at once, without adaptation.
        **switches: Fields of `InnerLoop`; see the table above.
    """

    def __init__(self, network: Network, num_inner_steps: int = 1, **switches: Any) -> None:
        self.network, self.num_inner_steps = network, num_inner_steps
        # Every step takes the same step size, in training and in testing, as published.
        self.inner = supervised_inner_loop(
            network, **{"later_lr_factor": 1.0, "num_learned_steps": max(1, num_inner_steps), **switches}
        )

    def initial_params(self) -> Params:
        """See `Method`."""
        return self.inner.initial_meta()

    def initial_buffers(self) -> Params:
        """See `Method`."""
        return self.network.initial_buffers()

    def direction(self, params: Params, buffers: Params, tasks: Tasks) -> Direction:
        """See `Method`."""
        return descent(self.meta_loss, params, buffers, tasks)

    def meta_loss(self, params: Params, buffers: Params, tasks: Tasks) -> Outcome:
        """Loss of every task's queries after the inner steps."""
        theta = self._adapt(params, tasks.support, self.num_inner_steps)[-1]
        predictions, buffers = self.network.learning_statistics(theta, tasks.query.x, buffers)
        return Outcome(prediction_loss(predictions, tasks.query.y), predictions, buffers)

    def predictions(
        self, params: Params, buffers: Params, support: Examples, query_x: Tensor, num_steps: int
    ) -> list[Tensor]:
        """See `Method`."""
        return self.network.predictions(self._adapt(params, support, num_steps), support.x, query_x, buffers)

    def _adapt(self, params: Params, support: Examples, num_steps: int) -> list[Params]:
        return self.inner.adapt(params, [support] * num_steps, len(support.x), num_steps)
