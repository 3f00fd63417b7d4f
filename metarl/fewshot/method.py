"""What every few-shot learner is to the training loop and to evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metarl.fewshot.networks import Network
from metarl.fewshot.supervised import score
from metarl.fewshot.tasks import Examples, Tasks
from metarl.types import Params


class Outcome(NamedTuple):
    """A pass over tasks with the meta-parameters, differentiable in them.

    Attributes:
        loss: What the outer loop lowers, `[task]`.
        predictions: For the query examples, `[task, query, output]`: logits, or predicted targets.
        buffers: Running statistics after the pass, `{name: [task, ...]}`; empty if the network keeps none.
    """

    loss: Tensor
    predictions: Tensor
    buffers: Params


class Direction(NamedTuple):
    """What a chunk of tasks says about where the meta-parameters should go.

    Attributes:
        gradient: What the outer loop goes against, summed over the chunk's tasks.
        buffers: Running statistics after it, `{name: [task, ...]}`.
        measured: Metrics by name, `[task]` each; "loss" and, where queries were predicted, "score".
    """

    gradient: Params
    buffers: Params
    measured: dict[str, Tensor]


class Method(Protocol):
    """A few-shot learner: pure functions of meta-parameters, running statistics and tasks.

    Tensors lead with a task axis, and no task's result depends on another task. Everything that is learnt across tasks
    is in `params`; running statistics of batch normalisation are in `buffers`.

    Attributes:
        network: What is applied to examples.
    """

    network: Network

    def initial_params(self) -> Params:
        """Meta-parameters that training starts from, by name."""
        ...

    def initial_buffers(self) -> Params:
        """Running statistics that training starts from."""
        ...

    def direction(self, params: Params, buffers: Params, tasks: Tasks) -> Direction:
        """Where these tasks pull the meta-parameters. Called from several threads, each with its own tasks."""
        ...

    def predictions(
        self, params: Params, buffers: Params, support: Examples, query_x: Tensor, num_steps: int
    ) -> list[Tensor]:
        """Predictions `[task, query, output]` for queries at meta-test after 0, 1, ... `num_steps` steps on support.

        A method that takes no steps gives one prediction, whatever `num_steps` is.
        """
        ...


def descent(
    outcome: Callable[[Params, Params, Tasks], Outcome], params: Params, buffers: Params, tasks: Tasks
) -> Direction:
    """The direction of a method with a meta-loss: the gradient of its sum over the tasks.

    Args:
        outcome: The method's pass over tasks with (params, buffers, tasks).
        params, buffers, tasks: As for `Method.direction`.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        result = outcome(leaves, buffers, tasks)
        gradients = torch.autograd.grad(result.loss.sum(), list(leaves.values()), materialize_grads=True)
    measured = {"loss": result.loss.detach(), "score": score(result.predictions.detach(), tasks.query.y)}
    return Direction(dict(zip(leaves, gradients, strict=True)), result.buffers, measured)
