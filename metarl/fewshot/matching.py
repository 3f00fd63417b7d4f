r"""Matching networks (Vinyals et al. 2016): a query takes the labels of the support examples that it resembles.

    p(y=k | x, S) = sum_i a(x, x_i) [y_i = k]                                           (equation 1)
    a(x, x_i)     = softmax_i( s cos(f(x), g(x_i)) )                                    (section 2.1.1, with s = 1)
    loss          = - mean over queries (x, y) of log p(y | x, S)                       (equation 2)

so that log p(y=k | x, S) is the log-sum-exp of log a over the support examples of class k: no probability is ever
rounded to 0 before its logarithm. Without full context, f and g are one and the same network. With it, g' and f' are
the network, and the embeddings see the whole support set (section 2.1.2):

    g(x_i, S) = fwd h_i + bwd h_i + g'(x_i),                                            (appendix A.2)
        fwd h_i, fwd c_i = LSTM(g'(x_i), fwd h_{i-1}, fwd c_{i-1}),  bwd the same from the last example to the first
    f(x, S)   = h_K, K reads of the support set, for k = 1 .. K:                        (appendix A.1)
        a_i       = softmax_i( h_{k-1} . g(x_i) )                                       (equation 6)
        r_{k-1}   = sum_i a_i g(x_i)                                                    (equation 5)
        z_k, c_k  = LSTM(f'(x), [h_{k-1}, r_{k-1}], c_{k-1})                            (equation 3)
        h_k       = z_k + f'(x)                                                         (equation 4)

| symbol | here                    | shape                    | meaning                                  |
|--------|-------------------------|--------------------------|------------------------------------------|
| f', g' | Network.embed           | [task, example, feature] | embeddings of the network                |
| f, g   | query_context,          | [task, example, feature] | the same in the context of the support   |
|        | support_context         |                          | set                                      |
| a      | log_attention           | [task, query, support]   | attention (its logarithm)                |
| s      | exp(matching.log_scale) | number                   | how sharp the attention is               |
| K      | num_reads               | number                   | reads of the support set for each query  |

Departures from the paper:

* s is learnt, from 10 on; the paper's softmax is over bare cosines. Those lie in [-1, 1], so that even a perfect
  embedding of N ways with one shot has p <= e^2 / (e^2 + N - 1), 0.65 at 5 ways and 0.28 at 20 ways, and training
  goes on pulling at queries that are classified well. Glyphs, 1-shot: 96.6 % with it against 91.5 % on 5 ways after
  1200 small batches (intervals 0.6 and 1.0), 75.2 % against 60.2 % on 20 ways after 150 (0.8 and 1.0).
  `learn_scale=False` is the paper's.
* The paper leaves h_0 and c_0 open: here they are f'(x) (equation 4 with z_0 = 0) and 0, so that the first read already
  asks for what resembles the query. K is open too; 1 and 5 did not differ (92.0 % both, 5-way, 300 batches).

Full context makes a prediction depend on the order of the support set, without it the order means nothing.
"""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from metarl.fewshot.method import Direction, Outcome, descent
from metarl.fewshot.networks import Network
from metarl.fewshot.supervised import prediction_loss
from metarl.fewshot.tasks import Examples, Tasks
from metarl.ops.lstm import lstm_cell
from metarl.types import Params

# Added to |v|^2, so that an embedding of zeros (every unit of a ReLU layer off) has cosine 0 and a finite gradient.
# Embeddings have norms of about 1 and more: in float32 it changes nothing there.
NORM_EPS = 1e-8

# With it, cosines a few tenths apart already tell classes apart. From 1, 300 steps of Adam at 1e-3 take it to 1.4.
INITIAL_SCALE = 10.0


def cosines(a: Float[Tensor, "task n feature"], b: Float[Tensor, "task m feature"]) -> Float[Tensor, "task n m"]:
    """Cosine of the angle between a_i and b_j."""

    def unit(v: Tensor) -> Tensor:
        return v * (v.square().sum(-1, keepdim=True) + NORM_EPS).rsqrt()

    return unit(a) @ unit(b).mT


def log_attention(
    queries: Float[Tensor, "task query feature"], support: Float[Tensor, "task support feature"], scale: Tensor | float
) -> Float[Tensor, "task query support"]:
    """log a of every query on every support example; a sums to 1 over the support set."""
    return (scale * cosines(queries, support)).log_softmax(-1)


def class_log_probabilities(
    log_a: Float[Tensor, "task query support"], y: Int[Tensor, "task support"], ways: int
) -> Float[Tensor, "task query class"]:
    """log p of equation 1 for any number of examples of each class; minus infinity for a class without any."""
    belongs = F.one_hot(y, ways).bool().unsqueeze(1)
    return log_a.unsqueeze(-1).masked_fill(~belongs, -math.inf).logsumexp(2)


def support_context(
    features: Float[Tensor, "task support feature"], forward: tuple[Tensor, Tensor], backward: tuple[Tensor, Tensor]
) -> Float[Tensor, "task support feature"]:
    """g of appendix A.2: a bidirectional LSTM over the support set, and a skip connection.

    Args:
        features: g'(x_i), in the order in which they are read.
        forward, backward: (weight, bias) of `lstm_cell` for each way of reading.
    """

    def outputs(sequence: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        h = c = torch.zeros_like(sequence[:, 0])
        every_h: list[Tensor] = []
        for x in sequence.unbind(1):
            h, c = lstm_cell(x, h, c, weight, bias)
            every_h.append(h)
        return torch.stack(every_h, 1)

    return features + outputs(features, *forward) + outputs(features.flip(1), *backward).flip(1)


def query_context(
    features: Float[Tensor, "task query feature"],
    support: Float[Tensor, "task support feature"],
    weight: Tensor,
    bias: Tensor,
    num_reads: int,
) -> Float[Tensor, "task query feature"]:
    """f of appendix A.1: an LSTM that reads the support set by attention; no query sees another one.

    Args:
        features: f'(x).
        support: g(x_i).
        weight, bias: Of `lstm_cell`, whose hidden part is twice as wide as the cell: [h, r].
        num_reads: K.
    """
    h, c = features, torch.zeros_like(features)
    for _ in range(num_reads):
        read = (h @ support.mT).softmax(-1) @ support
        z, c = lstm_cell(features, torch.cat([h, read], -1), c, weight, bias)
        h = z + features
    return h


@final
class Matching:
    """Matching networks.

    Meta-parameters are the network's and, where they are on, `matching.log_scale` and for full context the weight and
    bias of three LSTMs, `matching.forward.*`, `matching.backward.*` and `matching.read.*`.

    Args:
        network: f' and g'.
        ways: Classes of a task; each has at least one support example.
        num_features: Width of the network's outputs; the LSTMs are as wide. Read with full context alone.
        full_context: Embed support and queries in the context of the support set.
        num_reads: K, with full context.
        learn_scale: Learn s; otherwise it is 1, as published.
        generator: Source of the LSTMs' initial weights.
    """

    def __init__(
        self,
        network: Network,
        ways: int,
        num_features: int,
        full_context: bool = False,
        num_reads: int = 5,
        learn_scale: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        self.network = network
        self.ways = ways
        self.full_context = full_context
        self.num_reads = num_reads
        self._own: Params = {}
        if learn_scale:
            self._own["matching.log_scale"] = torch.tensor(math.log(INITIAL_SCALE))
        if full_context:
            generator = generator or torch.Generator().manual_seed(0)
            for name, hidden in (("forward", 1), ("backward", 1), ("read", 2)):
                weight, bias = _initial_lstm(num_features, hidden * num_features, generator)
                self._own |= {f"matching.{name}.weight": weight, f"matching.{name}.bias": bias}

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
        """See `Method`: one prediction (log-probabilities), as there are no steps."""
        return [self._log_probabilities(params, buffers, support, query_x, learning=False)[0]]

    def _outcome(self, params: Params, buffers: Params, tasks: Tasks) -> Outcome:
        log_p, buffers = self._log_probabilities(params, buffers, tasks.support, tasks.query.x, learning=True)
        # The cross-entropy's own softmax changes nothing on logarithms of probabilities.
        return Outcome(prediction_loss(log_p, tasks.query.y), log_p, buffers)

    def _log_probabilities(
        self, params: Params, buffers: Params, support: Examples, query_x: Tensor, learning: bool
    ) -> tuple[Tensor, Params]:
        """log p `[task, query, class]` of equation 1, and the running statistics after the pass."""
        of_network = {name: value for name, value in params.items() if name not in self._own}
        embedded, queries, buffers = self.network.embed(of_network, support.x, query_x, buffers, learning)
        if self.full_context:
            forward, backward, read = (
                (params[f"matching.{name}.weight"], params[f"matching.{name}.bias"])
                for name in ("forward", "backward", "read")
            )
            embedded = support_context(embedded, forward, backward)
            queries = query_context(queries, embedded, *read, self.num_reads)
        scale = params["matching.log_scale"].exp() if "matching.log_scale" in self._own else 1.0
        log_a = log_attention(queries, embedded, scale)
        return class_log_probabilities(log_a, support.y, self.ways), buffers


def _initial_lstm(width: int, hidden: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight and bias of an LSTM: uniform within 1 / sqrt(fan-in), and 0."""
    bound = (width + hidden) ** -0.5
    weight = torch.empty(4 * width, width + hidden).uniform_(-bound, bound, generator=generator)
    return weight, torch.zeros(4 * width)
