r"""Siamese networks: twins with the same weights tell whether two examples are of one class.

Two published losses of a pair (i, j), with same_ij = [y_i = y_j]:

"contrastive" (Hadsell, Chopra and LeCun 2006), of embeddings e = network(x):

    d_ij = |e_i - e_j|                                                                  (equation 1)
    loss = same_ij 1/2 d_ij^2 + (1 - same_ij) 1/2 max(0, m - d_ij)^2                    (equation 4, where Y = 1 - same)

A step against the gradient moves e_i towards e_j by (e_i - e_j) for a pair of one class, and away from it by
(m - d_ij) (e_i - e_j) / d_ij for a pair of two classes until they are the margin m apart, and not at all beyond.

"cross_entropy" (Koch, Zemel and Salakhutdinov 2015, section 3), of features h = sigma(network(x)):

    p_ij = sigma( sum_f alpha_f |h_if - h_jf| + beta )
    loss = - same_ij log p_ij - (1 - same_ij) log(1 - p_ij)

A query's class is that of the most similar support example; for several shots, the class of the greatest mean
similarity: -d_ij, or the log-odds of p_ij.

| symbol | here           | shape                    | meaning                                       |
|--------|----------------|--------------------------|-----------------------------------------------|
| e      | Network.embed  | [task, example, feature] | embeddings                                    |
| h      | sigmoid of it  | [task, example, feature] | features of the pairwise cross-entropy        |
| d      | distances      | [task, n, m]             | Euclidean distances                           |
| m      | margin         | number                   | where pairs of two classes no longer repel    |
| alpha  | siamese.weight | [feature]                | what a difference in a feature adds           |
| beta   | siamese.bias   | number                   | log-odds where no feature differs             |

Departures from the papers:

* Pairs come from few-shot tasks: all pairs of two examples of a task, support and queries alike. (Pairs of a query and
  a support example alone, as at meta-test, taught less: contrastive, m = 1, glyphs 5-way 1-shot after 1200 small
  batches, 93.1 % against 94.7 %, intervals 0.9.)
* In the loss of a task, pairs of one class and pairs of two classes weigh one half each (means of each kind). With N
  ways there are about N times as many of two classes; in a plain mean over all pairs they decide, and a margin and a
  beta that are good for 5 ways are bad for 20. Glyphs, 32 features, 1-shot, after 600 and 300 small batches, per cent
  right (intervals 0.7 to 1.2):

    | contrastive   | halves, m = 1  | halves, m = 3  | plain, m = 1  | plain, m = 3  |
    |---------------|----------------|----------------|---------------|---------------|
    | 5-way         | 89.2           | 94.0           | 93.7          | 96.1          |
    | 20-way        | 64.7           | 81.0           | 81.0          | 77.8          |

    | cross_entropy | halves, beta 0 | halves, beta 2 | plain, beta 0 | plain, beta 2 |
    |---------------|----------------|----------------|---------------|---------------|
    | 5-way         | 85.5           | 94.4           | 93.4          | 94.8          |
    | 20-way        | 61.0           | 79.9           | 81.3          | 60.0          |

* beta: the published p of two equal examples is sigma(0) = 1/2, whatever is learnt. It starts at 2, p = 0.88 for equal
  features. And alpha starts at -1 (any difference speaks against one class, equally) rather than from random numbers of
  either sign: 78.5 % against 60.6 % on 5-way glyphs after 300 batches, 85.1 % against 82.8 % after 1200.
* The margin is in units of the embeddings. Those of a new ConvNet of 32 channels lie 0.5 to 3.4 apart, hence 3 where
  none is given; far smaller or larger ones cost much (300 batches, 5-way: m = 0.3 68.9 %, m = 3 91.3 %, m = 10 80.9 %).
* No weight decay, affine distortions or schedules of learning rates: those are the training loop's and the data's.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from metarl.fewshot.method import Direction, Outcome, descent
from metarl.fewshot.networks import Network
from metarl.fewshot.prototypical import class_means, squared_distances
from metarl.fewshot.tasks import Examples, Tasks
from metarl.types import Params

PairLoss = Literal["contrastive", "cross_entropy"]


def distances(a: Float[Tensor, "task n feature"], b: Float[Tensor, "task m feature"]) -> Float[Tensor, "task n m"]:
    """d_ij = |a_i - b_j|, with gradient 0 where it is 0 (it has none there)."""
    squared = squared_distances(a, b)
    equal = squared == 0
    # The inner `where` keeps the square root's infinite slope at 0 out of the graph: 0 times infinity is NaN.
    return torch.where(equal, 0.0, torch.where(equal, 1.0, squared).sqrt())


def log_odds(
    a: Float[Tensor, "task n feature"],
    b: Float[Tensor, "task m feature"],
    alpha: Float[Tensor, " feature"],
    beta: Float[Tensor, ""],
) -> Float[Tensor, "task n m"]:
    """Log-odds of a_i and b_j being of one class, from features h."""
    return (a.unsqueeze(2) - b.unsqueeze(1)).abs() @ alpha + beta


def same_class(y: Int[Tensor, "task n"]) -> Bool[Tensor, "task n n"]:
    """Which pairs are of one class."""
    return y.unsqueeze(2) == y.unsqueeze(1)


def contrastive_loss(
    distance: Float[Tensor, "*pairs"], same: Bool[Tensor, "*pairs"], margin: float
) -> Float[Tensor, "*pairs"]:
    """Equation 4 of Hadsell et al."""
    return 0.5 * torch.where(same, distance, (margin - distance).clamp(min=0)).square()


def pairwise_cross_entropy(log_odds: Float[Tensor, "*pairs"], same: Bool[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
    """-log p for pairs of one class, -log(1 - p) for pairs of two."""
    return F.binary_cross_entropy_with_logits(log_odds, same.to(log_odds.dtype), reduction="none")


def balanced_mean(losses: Float[Tensor, "task n n"], y: Int[Tensor, "task n"]) -> Float[Tensor, " task"]:
    """Mean of two means: that of a task's losses of pairs of one class, and that of its pairs of two.

    Args:
        losses: Of every pair (i, j), the same for (j, i); an example and itself are no pair.
        y: Classes of the examples.
    """
    same = same_class(y)
    paired = ~torch.eye(y.shape[1], dtype=torch.bool, device=y.device)

    def mean(chosen: Tensor) -> Tensor:
        # A task may have no pair of a kind; that kind then counts 0.
        return (losses * chosen).sum((1, 2)) / chosen.sum((1, 2)).clamp(min=1)

    return 0.5 * (mean(same & paired) + mean(~same))


@final
class Siamese:
    """Siamese networks.

    Meta-parameters are the network's and, with the pairwise cross-entropy, `siamese.weight` (alpha) and `siamese.bias`
    (beta).

    Args:
        network: The twins.
        ways: Classes of a task; each has at least one support example.
        num_features: Width of the network's outputs; read with the pairwise cross-entropy alone.
        loss: Which loss, see the module's docstring.
        margin: m of the contrastive loss, in units of the network's outputs.
    """

    def __init__(self, network: Network, ways: int, num_features: int, loss: PairLoss, margin: float = 3.0) -> None:
        self.network = network
        self.ways = ways
        self.loss: PairLoss = loss
        self.margin = margin
        self._own: Params = {}
        if loss == "cross_entropy":
            self._own = {"siamese.weight": -torch.ones(num_features), "siamese.bias": torch.tensor(2.0)}

    def initial_params(self) -> Params:
        """See `Method`."""
        return self.network.initial_params() | {name: value.clone() for name, value in self._own.items()}

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
        embedded, queries, _ = self._embed(params, buffers, support.x, query_x, learning=False)
        return [self._class_similarities(params, queries, embedded, support.y)]

    def _outcome(self, params: Params, buffers: Params, tasks: Tasks) -> Outcome:
        support, query = tasks
        embedded, queries, buffers = self._embed(params, buffers, support.x, query.x, learning=True)
        every, y = torch.cat([embedded, queries], 1), torch.cat([support.y, query.y], 1)
        similarities, same = self._similarities(params, every, every), same_class(y)
        if self.loss == "contrastive":
            losses = contrastive_loss(-similarities, same, self.margin)
        else:
            losses = pairwise_cross_entropy(similarities, same)
        predictions = self._class_similarities(params, queries, embedded, support.y)
        return Outcome(balanced_mean(losses, y), predictions, buffers)

    def _embed(
        self, params: Params, buffers: Params, support_x: Tensor, query_x: Tensor, learning: bool
    ) -> tuple[Tensor, Tensor, Params]:
        """e or h of support and query examples, and the running statistics after the pass."""
        of_network = {name: value for name, value in params.items() if name not in self._own}
        embedded, queries, buffers = self.network.embed(of_network, support_x, query_x, buffers, learning)
        if self.loss == "cross_entropy":
            embedded, queries = embedded.sigmoid(), queries.sigmoid()
        return embedded, queries, buffers

    def _similarities(self, params: Params, a: Tensor, b: Tensor) -> Tensor:
        """Similarity `[task, n, m]` of a_i and b_j: minus the distance, or the log-odds of being of one class."""
        if self.loss == "contrastive":
            return -distances(a, b)
        return log_odds(a, b, params["siamese.weight"], params["siamese.bias"])

    def _class_similarities(self, params: Params, queries: Tensor, support: Tensor, y: Tensor) -> Tensor:
        """Mean similarity `[task, query, class]` of each query and the support examples of each class."""
        return class_means(self._similarities(params, support, queries), y, self.ways).mT
