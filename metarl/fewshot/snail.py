r"""SNAIL: a task is a sequence of labelled examples, read by convolutions and attention (Mishra et al. 2018, ICLR).

    (e_1, y_1), ..., (e_S, y_S), (e_query, none)  ->  blocks  ->  prediction for the query

No parameter changes at meta-test: what a support set teaches is in the activations behind it. Each block (section 3.1)
appends channels to the C that it is given, and position t reads positions up to t alone:

    dense block      u_t = [x_{t-d}, x_t];   out_t = [x_t,  tanh(W_f u_t + b_f) * sigmoid(W_g u_t + b_g)],   x_{<1} = 0
    TC block         ceil(log2 T) dense blocks with dilation d = 1, 2, 4, ...
    attention block  out_t = [x_t,  sum_{s <= t} p_ts v_s],   p_t = softmax_{s <= t}(k_s . q_t / sqrt(width of k))

TC blocks let neighbours in time mix, attention looks any example up; the two alternate, and a linear layer ends them.

| symbol  | here              | shape                  | meaning                                                    |
|---------|-------------------|------------------------|------------------------------------------------------------|
| e       | features          | [task, row, width]     | embedding of an input by the network                       |
| y       | labels            | [task, row, label]     | one-hot class, or real target with a 1 behind it; none = 0 |
| x       | Sequences.rows    | [task, row, C]         | what a block is given                                      |
| T       | num_examples      | number                 | longest sequence: a support set and one query              |
| k, q, v | AttentionBlock    | [task, row, key/value] | keys, queries, values, all affine in x                     |
| p       | attention weights | [task, row, row]       | where a row looks                                          |

All queries of a task follow the same support set. As support positions cannot see what comes behind them, they are
computed once; each query is then the last position of a sequence of its own (`Sequences`). That is exact.

Departures from the paper:

- Dilations are 1, 2, 4, ...; the paper's pseudocode counts them from 2, so that a block would skip every other example.
- Training tasks have the number of shots, and support sets the order, that they come with. The paper draws the number
  from 1 to 5, and a random order.
- For targets that are real numbers, which the paper does not treat, a 1 behind the target tells 0 from no target.
- Weights start as Glorot and Bengio (2010) have it, biases at 0; the paper says nothing on it.
- The paper's embedding is pooled and ends in a linear layer of width 64; here it is any network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metarl.fewshot.method import Direction, Outcome, descent
from metarl.fewshot.networks import Network, linear_layer
from metarl.fewshot.supervised import prediction_loss
from metarl.fewshot.tasks import Examples, Tasks
from metarl.functional import initial_params, per_task
from metarl.types import Params

PREFIX = "snail."
"""What the names of the parameters behind the embedding begin with."""


class Sequences(NamedTuple):
    """Sequences with a common beginning.

    Attributes:
        rows: `[task, row, channel]`. The first `num_support` rows are the support examples in their order; each further
            row is the last position of a sequence of its own that begins with them.
        num_support: How many rows are common.
    """

    rows: Tensor
    num_support: int

    def visible(self) -> Tensor:
        """Boolean `[row, row]`: whether a row may read another, which is itself and what comes before it."""
        row = torch.arange(self.rows.shape[1], device=self.rows.device)
        return (row < row.clamp(max=self.num_support)[:, None]) | (row == row[:, None])

    def earlier(self, distance: int) -> Tensor:
        """What stands `distance` positions before each row, `[task, row, channel]`; 0 before the sequence begins."""
        # Entry k of this is what stood at position k - distance.
        shifted = F.pad(self.rows[:, : self.num_support], (0, 0, distance, 0))
        last = shifted[:, self.num_support, None].expand(-1, self.rows.shape[1] - self.num_support, -1)
        return torch.cat([shifted[:, : self.num_support], last], 1)

    def append(self, channels: Tensor) -> Sequences:
        """The same rows with further channels."""
        return Sequences(torch.cat([self.rows, channels], -1), self.num_support)


@final
class DenseBlock(nn.Module):
    """A causal convolution of two positions with a gate, appended to its input."""

    def __init__(self, in_channels: int, dilation: int, filters: int, generator: torch.Generator) -> None:
        super().__init__()
        self.dilation = dilation
        self.convolution = linear_layer(2 * in_channels, 2 * filters, generator)

    def forward(self, x: Sequences) -> Sequences:
        """Appends `filters` channels."""
        activation, gate = self.convolution(torch.cat([x.earlier(self.dilation), x.rows], -1)).chunk(2, -1)
        return x.append(activation.tanh() * gate.sigmoid())


@final
class TCBlock(nn.Sequential):
    """Dense blocks whose dilations double until the last position reads the first of `num_examples`.

    Attributes:
        out_channels: Number of channels behind it.
    """

    def __init__(self, in_channels: int, num_examples: int, filters: int, generator: torch.Generator) -> None:
        depth = math.ceil(math.log2(num_examples))
        super().__init__(*(DenseBlock(in_channels + i * filters, 2**i, filters, generator) for i in range(depth)))
        self.out_channels = in_channels + depth * filters


@final
class AttentionBlock(nn.Module):
    """A look-up among a position and those before it, appended to its input.

    Attributes:
        out_channels: Number of channels behind it.
    """

    def __init__(self, in_channels: int, key_width: int, value_width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.keys = linear_layer(in_channels, key_width, generator)
        self.queries = linear_layer(in_channels, key_width, generator)
        self.values = linear_layer(in_channels, value_width, generator)
        self.out_channels = in_channels + value_width

    def weights(self, x: Sequences) -> Float[Tensor, "task row row"]:
        """How much each row (second axis) takes from each (third)."""
        keys = self.keys(x.rows)
        logits = self.queries(x.rows) @ keys.mT / math.sqrt(keys.shape[-1])
        return logits.masked_fill(~x.visible(), -math.inf).softmax(-1)

    def forward(self, x: Sequences) -> Sequences:
        """Appends `value_width` channels."""
        return x.append(self.weights(x) @ self.values(x.rows))


@final
class CausalNetwork(nn.Module):
    """Attention and TC blocks by turns, an attention block first and last, and a linear layer for the queries.

    Args:
        in_channels: Width of a row: embedding and label.
        num_outputs: Width of a prediction.
        num_examples: Longest sequence.
        filters: Filters of each dense block.
        attention: Widths (key, value) of each attention block.
        generator: Source of the initial weights.
    """

    takes_task_axis = True

    def __init__(
        self,
        in_channels: int,
        num_outputs: int,
        num_examples: int,
        filters: int,
        attention: Sequence[tuple[int, int]],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        for i, (key_width, value_width) in enumerate(attention):
            if i > 0:
                self.blocks.append(tc_block := TCBlock(in_channels, num_examples, filters, generator))
                in_channels = tc_block.out_channels
            self.blocks.append(attention_block := AttentionBlock(in_channels, key_width, value_width, generator))
            in_channels = attention_block.out_channels
        self.linear = linear_layer(in_channels, num_outputs, generator)

    def forward(self, x: Sequences) -> Tensor:
        """Predictions `[task, query, output]` at the last position of each sequence."""
        return self.linear(self.blocks(x).rows[:, x.num_support :])


@final
class SNAIL:
    """SNAIL; a `Method`. It takes no steps at meta-test.

    Parameters are the network's under its own names, and the blocks' with the prefix "snail.".

    Args:
        network: Embeds inputs.
        num_features: Width of its embedding.
        num_outputs: Classes of a task, or width of a target.
        num_examples: T, the support examples of the largest task, and one.
        is_classification: Whether labels are class numbers.
        filters: Filters of each dense block.
        attention: Widths (key, value) of each attention block. The defaults of both are the paper's for images.
        generator: Source of the blocks' initial weights.
    """

    def __init__(
        self,
        network: Network,
        num_features: int,
        num_outputs: int,
        num_examples: int,
        is_classification: bool = True,
        filters: int = 128,
        attention: Sequence[tuple[int, int]] = ((64, 32), (256, 128), (512, 256)),
        generator: torch.Generator | None = None,
    ) -> None:
        self.network, self.num_outputs, self.num_examples = network, num_outputs, num_examples
        self.is_classification = is_classification
        label_width = num_outputs if is_classification else num_outputs + 1
        self.blocks = CausalNetwork(
            num_features + label_width,
            num_outputs,
            num_examples,
            filters,
            attention,
            generator or torch.Generator().manual_seed(0),
        )
        self._predict = cast(Callable[[Params, Sequences], Tensor], per_task(self.blocks))

    def initial_params(self) -> Params:
        """See `Method`."""
        own = {PREFIX + name: value for name, value in initial_params(self.blocks).items()}
        return self.network.initial_params() | own

    def initial_buffers(self) -> Params:
        """See `Method`."""
        return self.network.initial_buffers()

    def direction(self, params: Params, buffers: Params, tasks: Tasks) -> Direction:
        """See `Method`."""
        return descent(self.meta_loss, params, buffers, tasks)

    def meta_loss(self, params: Params, buffers: Params, tasks: Tasks) -> Outcome:
        """Loss of every task's queries, each at the end of its sequence."""
        predictions, buffers = self._pass(params, buffers, tasks.support, tasks.query.x, learning=True)
        return Outcome(prediction_loss(predictions, tasks.query.y), predictions, buffers)

    def predictions(
        self, params: Params, buffers: Params, support: Examples, query_x: Tensor, num_steps: int
    ) -> list[Tensor]:
        """See `Method`."""
        with torch.no_grad():
            return [self._pass(params, buffers, support, query_x, learning=False)[0]]

    def _pass(
        self, params: Params, buffers: Params, support: Examples, query_x: Tensor, learning: bool
    ) -> tuple[Tensor, Params]:
        """Predictions for the queries, and the running statistics behind them."""
        num_support = support.x.shape[1]
        if num_support >= self.num_examples:
            raise ValueError(
                f"SNAIL was built for at most {self.num_examples - 1} support examples (num_examples is "
                f"{self.num_examples}, a query included); a task has {num_support}."
            )
        of_network = {name: value for name, value in params.items() if not name.startswith(PREFIX)}
        own = {name.removeprefix(PREFIX): value for name, value in params.items() if name.startswith(PREFIX)}
        seen, asked, buffers = self.network.embed(of_network, support.x, query_x, buffers, learning)
        labels = self._labels(support.y).to(seen)
        no_label = asked.new_zeros(*asked.shape[:2], labels.shape[-1])
        rows = torch.cat([torch.cat([seen, labels], -1), torch.cat([asked, no_label], -1)], 1)
        return self._predict(own, Sequences(rows, num_support)), buffers

    def _labels(self, y: Tensor) -> Tensor:
        """Labels as channels; those of no example are all 0."""
        return F.one_hot(y, self.num_outputs) if self.is_classification else F.pad(y, (0, 1), value=1.0)
