r"""Meta-LSTM: an optimiser that is learnt, and the start that it sets out from (Ravi and Larochelle 2017, ICLR).

A step of gradient descent (eq. 1) is a step of an LSTM's cell (eq. 2) whose candidate is the negative gradient and
whose gates are constants. Here the gates are learnt: the learner's parameters theta are the cell of a trained LSTM.

    theta_t = f_t * theta_{t-1} - i_t * g_t,           t = 1 .. T,   theta_0 = c_0 learnt
    i_t = sigma(w_I . [h_t, theta_{t-1}, i_{t-1}] + b_I)
    f_t = sigma(w_F . [h_t, theta_{t-1}, f_{t-1}] + b_F)
    h_t, a_t = LSTM([pre(g_t), pre(L_t)], h_{t-1}, a_{t-1})
    meta-loss = L(theta_T; query)

i is a step size, f a decay of the weights. All coordinates of theta share the weights, and each has a state of its own.
With p = 10, magnitude and sign of a number are told apart (Andrychowicz et al. 2016, appendix A):

    pre(x) = (log|x| / p, sign x)  if |x| >= e^-p,   else (-1, e^p x)

| symbol  | here            | shape                | meaning                                                   |
|---------|-----------------|----------------------|-----------------------------------------------------------|
| theta_t | State.theta     | [row]                | learner's parameters after t steps; row: task, coordinate |
| L_t     | Signal.loss     | [row]                | loss of the support set at theta_{t-1}, for every row     |
| g_t     | Signal.gradient | [row]                | its gradient                                              |
| h, a    | hidden, cell    | [row, hidden]        | an ordinary LSTM under the gates                          |
| i_t     | input_gate      | [row]                | step size                                                 |
| f_t     | forget_gate     | [row]                | share of theta that is kept                               |
| c_0     | params          | {name: [...]}        | the network's own entries                                 |

The paper takes g_t and L_t for constants in the meta-gradient. Given them, the coordinates do not depend on each other.
So the steps are taken without a graph, and the meta-gradient comes from a second pass over some rows at a time: what
is kept of a step is g_t alone, and what a pass works on stays in the processor's cache.

Departures from the paper:

- Every step reads the whole support set; the paper's algorithm 1 draws a batch from it (for one shot, the same).
- The paper names no numbers for the biases, but wants f to start near 1 and i small, so that training starts from
  gradient descent. Its published code draws b_F from U(4, 5), b_I from U(-5, -4), weights from U(-0.01, 0.01). Here
  b_F = 5 (f = 0.993), sigma(b_I) = inner_lr, and weights as there. f_0 = i_0 = 0.
- That code feeds the gates back as they are before the sigmoid, the equations after it; here as in the equations.
- Batch normalisation: steps and queries in training are normalised by their own batch, as in the paper. At meta-test,
  the paper normalises queries by averages over the passes on that task's support set; here by the queries themselves
  (transductive), or by averages over training (running).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from metarl.fewshot.method import Direction
from metarl.fewshot.networks import Network
from metarl.fewshot.supervised import prediction_loss, score
from metarl.fewshot.tasks import Examples, Tasks
from metarl.ops.lstm import lstm_cell
from metarl.ops.tree import add_all, flatten
from metarl.ops.tree import select_tasks as select_rows
from metarl.types import Params

PREFIX = "meta_lstm."
"""What the names of the optimiser's parameters begin with."""

LOG_SCALE = 10.0
"""p: gradients down to e^-p are told apart by their logarithm."""

FORGET_BIAS = 5.0
"""b_F at the start of training."""

ROWS_AT_ONCE = 8192
"""Rows of a pass; with a hidden state of 20, what a step reads and writes for them fits a processor's cache."""


class Signal(NamedTuple):
    """What the optimiser is told at a step, `[row]` each.

    Attributes:
        gradient: g_t.
        loss: L_t of the row's task.
    """

    gradient: Tensor
    loss: Tensor


class State(NamedTuple):
    """State of the optimiser, rows first.

    Attributes:
        theta: The learner's parameters.
        hidden, cell: State `[row, hidden]` of the ordinary LSTM.
        input_gate, forget_gate: Gates of the last step.
    """

    theta: Tensor
    hidden: Tensor
    cell: Tensor
    input_gate: Tensor
    forget_gate: Tensor

    @staticmethod
    def start(theta: Tensor, hidden_size: int) -> State:
        """Before the first step: all 0 but theta_0."""
        hidden, gate = theta.new_zeros(*theta.shape, hidden_size), torch.zeros_like(theta)
        return State(theta, hidden, hidden, gate, gate)


def preprocess(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 2"]:
    """pre(x): scaled logarithm and sign, or -1 and scaled value where x is tiny."""
    magnitude = x.abs()
    large = magnitude >= math.exp(-LOG_SCALE)
    # The branch not taken must be finite: log 0 is not.
    logarithm = magnitude.clamp(min=math.exp(-LOG_SCALE)).log() / LOG_SCALE
    return torch.stack([logarithm, torch.where(large, x.sign(), math.exp(LOG_SCALE) * x)], -1)


def optimizer_step(own: Params, state: State, signal: Signal) -> State:
    """One step of the learnt optimiser, each row by itself.

    Args:
        own: Its parameters, without their prefix.
        state: Before the step.
        signal: Gradient and loss at `state.theta`.
    """
    read = torch.cat([preprocess(signal.gradient), preprocess(signal.loss)], -1)
    hidden, cell = lstm_cell(read, state.hidden, state.cell, own["weight"], own["bias"])
    input_gate = _gate(own, "input_gate", hidden, state.theta, state.input_gate)
    forget_gate = _gate(own, "forget_gate", hidden, state.theta, state.forget_gate)
    theta = forget_gate * state.theta - input_gate * signal.gradient
    return State(theta, hidden, cell, input_gate, forget_gate)


def _gate(own: Params, name: str, hidden: Tensor, theta: Tensor, previous: Tensor) -> Tensor:
    """sigma(w . [h, theta, previous] + b)."""
    of_hidden, (of_theta, of_previous) = own[f"{name}.weight"][:-2], own[f"{name}.weight"][-2:]
    return (hidden @ of_hidden + of_theta * theta + of_previous * previous + own[f"{name}.bias"]).sigmoid()


@final
class MetaLSTM:
    """The learnt optimiser and the learner's start; a `Method`.

    Parameters are the network's under its own names (c_0), and the optimiser's:

    | name                                 | shape                              | meaning                           |
    |--------------------------------------|------------------------------------|-----------------------------------|
    | meta_lstm.weight, .bias              | [4 hidden, 4 + hidden], [4 hidden] | of the ordinary LSTM              |
    | meta_lstm.{input,forget}_gate.weight | [hidden + 2]                       | w, for h, theta and the last gate |
    | meta_lstm.{input,forget}_gate.bias   | []                                 | b                                 |

    Args:
        network: The learner.
        num_inner_steps: T in training.
        inner_lr: What the input gate starts as, between 0 and 1.
        hidden_size: Width of the LSTM under the gates.
        generator: Source of the optimiser's initial weights.
    """

    def __init__(
        self,
        network: Network,
        num_inner_steps: int = 5,
        inner_lr: float = 0.01,
        hidden_size: int = 20,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 < inner_lr < 1:
            raise ValueError(f"The input gate of Meta-LSTM is between 0 and 1; it cannot start as inner_lr {inner_lr}.")
        self.network, self.num_inner_steps, self.inner_lr, self.hidden_size = (
            network,
            num_inner_steps,
            inner_lr,
            hidden_size,
        )
        start = network.initial_params()
        self._names, self._unflatten = list(start), flatten(start)[1]
        self._own = self._initial_optimizer(generator or torch.Generator().manual_seed(0))

    def initial_params(self) -> Params:
        """See `Method`."""
        return self.network.initial_params() | {PREFIX + name: value.clone() for name, value in self._own.items()}

    def initial_buffers(self) -> Params:
        """See `Method`."""
        return self.network.initial_buffers()

    def direction(self, params: Params, buffers: Params, tasks: Tasks) -> Direction:
        """See `Method`; the gradient of the queries' loss after the last step, with g_t and L_t as constants."""
        num_tasks = len(tasks.support.x)
        trajectory, signals = self._learn(params, tasks.support, self.num_inner_steps)
        with torch.enable_grad():
            theta = trajectory[-1].detach().requires_grad_()
            predictions, buffers = self.network.learning_statistics(
                self._by_name(theta, num_tasks), tasks.query.x, buffers
            )
            loss = prediction_loss(predictions, tasks.query.y)
            (cotangent,) = torch.autograd.grad(loss.sum(), theta)
        gradient = self._pulled_back(params, signals, cotangent, num_tasks)
        measured = {"loss": loss.detach(), "score": score(predictions.detach(), tasks.query.y)}
        return Direction(gradient, buffers, measured)

    def predictions(
        self, params: Params, buffers: Params, support: Examples, query_x: Tensor, num_steps: int
    ) -> list[Tensor]:
        """See `Method`."""
        trajectory, _ = self._learn(params, support, num_steps)
        with torch.no_grad():
            by_name = [self._by_name(theta, len(support.x)) for theta in trajectory]
            return self.network.predictions(by_name, support.x, query_x, buffers)

    def _learn(self, params: Params, support: Examples, num_steps: int) -> tuple[list[Tensor], list[Signal]]:
        """theta_0 .. theta_T, and what the optimiser was told on the way; without a graph."""
        if num_steps < 0:
            raise ValueError(f"num_steps is {num_steps}; it must be zero or more.")
        with torch.no_grad():
            own = _optimizer(params)
            state = State.start(self._rows(params, len(support.x)), self.hidden_size)
            trajectory, signals = [state.theta], []
            for _ in range(num_steps):
                signals.append(self._signal(state.theta, support))
                parts = [
                    optimizer_step(own, select_rows(state, rows), select_rows(signals[-1], rows))
                    for rows in _blocks(state.theta)
                ]
                state = State(*(torch.cat(part) for part in zip(*parts, strict=True)))
                trajectory.append(state.theta)
        return trajectory, signals

    def _signal(self, theta: Tensor, support: Examples) -> Signal:
        """Loss of every task's support set, and its gradient."""
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            loss = prediction_loss(self.network.learning(self._by_name(theta, len(support.x)), support.x), support.y)
            (gradient,) = torch.autograd.grad(loss.sum(), theta)
        return Signal(gradient, loss.detach().repeat_interleave(len(theta) // len(loss)))

    def _pulled_back(self, params: Params, signals: list[Signal], cotangent: Tensor, num_tasks: int) -> Params:
        """The cotangent of theta_T taken through the steps: that of all parameters, summed over tasks."""
        own = {name: value.detach().requires_grad_() for name, value in _optimizer(params).items()}
        start = self._rows(params, num_tasks).detach()
        of_start, of_own = [], []
        for rows in _blocks(start):
            theta = start[rows].clone().requires_grad_()
            with torch.enable_grad():
                state = State.start(theta, self.hidden_size)
                for signal in signals:
                    state = optimizer_step(own, state, select_rows(signal, rows))
                gradients = torch.autograd.grad(
                    state.theta, [theta, *own.values()], cotangent[rows], materialize_grads=True
                )
            of_start.append(gradients[0])
            of_own.append(dict(zip(own, gradients[1:], strict=True)))
        of_optimizer = {PREFIX + name: value for name, value in add_all(of_own).items()}
        return self._unflatten(torch.cat(of_start).reshape(num_tasks, -1).sum(0)) | of_optimizer

    def _rows(self, params: Params, num_tasks: int) -> Tensor:
        """The learner's start, once for every task."""
        vector, _ = flatten({name: params[name] for name in self._names})
        return vector.repeat(num_tasks)

    def _by_name(self, rows: Tensor, num_tasks: int) -> Params:
        """The learner's parameters `{name: [task, ...]}`."""
        return vmap(self._unflatten)(rows.reshape(num_tasks, -1))

    def _initial_optimizer(self, generator: torch.Generator) -> Params:
        def small(*shape: int) -> Tensor:
            return torch.empty(shape).uniform_(-0.01, 0.01, generator=generator)

        hidden = self.hidden_size
        return {
            "weight": small(4 * hidden, 4 + hidden),
            "bias": small(4 * hidden),
            "input_gate.weight": small(hidden + 2),
            "input_gate.bias": torch.tensor(math.log(self.inner_lr / (1 - self.inner_lr))),
            "forget_gate.weight": small(hidden + 2),
            "forget_gate.bias": torch.tensor(FORGET_BIAS),
        }


def _optimizer(params: Params) -> Params:
    """The optimiser's parameters, without their prefix."""
    return {name.removeprefix(PREFIX): value for name, value in params.items() if name.startswith(PREFIX)}


def _blocks(rows: Tensor) -> Iterator[slice]:
    for first in range(0, len(rows), ROWS_AT_ONCE):
        yield slice(first, first + ROWS_AT_ONCE)
