r"""The inner loop: gradient steps from shared parameters to each task's own (Finn et al. 2017, section 2.2).

    theta_{k+1} = theta_k - A_k grad L_task(theta_k; batch_k),      k = 0 .. K-1

One function serves collection (batches are fresh rollouts made with theta_k), the meta-objective (recorded batches,
differentiable through every step), evaluation, and supervised few-shot learning. `AdaptationJacobian` gives products
with d theta_k / d theta_0 = prod_{j<k} (I - A_j H_j), H_j the Hessian of the inner loss at theta_j.

| symbol   | shape                    | meaning                                                   |
|----------|--------------------------|-----------------------------------------------------------|
| theta_k  | {name: [task, ...]}      | a task's parameters before inner step k                    |
| A_k      | number or {name: tensor} | inner learning rate of step k                              |
| L_task   | [task]                   | inner loss; task i's entry depends on task i's row alone   |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, final

import torch
from torch import Tensor

from metarl.ops.tree import concatenate_tasks
from metarl.parallel import TaskChunks
from metarl.types import Params

Batch = TypeVar("Batch")
Loss: TypeAlias = Callable[[Params, Any], Tensor]
"""(per-task params, batch) -> loss `[task]`, to be minimised."""

StepSize: TypeAlias = float | Mapping[str, Tensor]
"""One number, or one tensor per parameter that broadcasts against it and may be learned."""

InnerLR: TypeAlias = StepSize | Sequence[StepSize]
"""One step size for all inner steps, or one for each."""


def adapt(
    params: Params,
    batches: Sequence[Batch] | Callable[[Params, int], Batch],
    loss: Loss,
    *,
    inner_lr: InnerLR,
    num_steps: int | None = None,
    first_order: bool = False,
    mask: Mapping[str, bool] | None = None,
    chunks: TaskChunks | None = None,
    keep: bool = True,
) -> list[Params]:
    """Takes K inner gradient steps and returns all K + 1 parameter sets `[theta_0, ..., theta_K]`.

    If any of `params` or of the step sizes requires a gradient the result is differentiable with respect to it,
    exactly, through every step; otherwise it is detached. With no batches, theta_0 comes back as it was given.

    Args:
        params: theta_0, per task: every entry leads with the task axis (see `ops.tree.expand_tasks`).
        batches: K recorded batches, or a function `(theta_k, k) -> batch` that collects a fresh one at every step.
        loss: Inner loss `[task]`.
        inner_lr: Step size(s).
        num_steps: K; needed where `batches` is a function and `inner_lr` is not a sequence.
        first_order: Treat the inner gradient as a constant: d theta_K / d theta_0 = I (FOMAML).
        mask: Parameter name -> whether it is adapted; None adapts all.
        chunks: How to split tasks over threads where nothing has to be differentiable.
        keep: Return all parameter sets; without it theta_K alone, so that memory does not grow with K.

    Raises:
        ValueError: If the number of steps is unknown, negative, or contradicts the number of batches or step sizes, if
            the mask names something that is no parameter, or if the loss is not one number per task.
    """
    num_steps = _number_of_steps(batches, inner_lr, num_steps)
    if unknown := sorted(set(mask or ()) - set(params)):
        raise ValueError(f"mask names {', '.join(unknown)}; the parameters are {', '.join(params)}.")
    adapted = [name for name in params if _is_adapted(name, mask)]
    differentiable = _requires_grad(params) or _is_learned(inner_lr)
    trajectory = [params]
    for k in range(num_steps):
        theta = trajectory[-1]
        batch = batches(theta, k) if callable(batches) else batches[k]
        lr = _step_size(inner_lr, k)
        if chunks is not None and not differentiable:
            num_tasks = next(iter(theta.values())).shape[0]
            gradient = concatenate_tasks(
                chunks.map(lambda p, b: _gradient(loss, p, b, adapted, False), num_tasks, theta, batch)
            )
        else:
            gradient = _gradient(loss, theta, batch, adapted, create_graph=differentiable and not first_order)
        moved = theta | {name: theta[name] - lr(name) * gradient[name] for name in adapted}
        trajectory = [*trajectory, moved] if keep else [moved]
    return trajectory


@final
class AdaptationJacobian:
    r"""Inner steps from given parameters, and products with $J_k = d\theta_k / d\theta_0 = \prod_{j<k} (I - A_j H_j)$.

    Each inner gradient is traced once and its graph kept; every product after that is one backward pass through it
    per step (Pearlmutter 1994). As H_j is symmetric, the same passes in the opposite order give the transposes.
    Learned step sizes have derivatives of their own: $d\theta_{k+1} / dA_k = -\mathrm{diag}(g_k)$, g_k the gradient.

    Args:
        start: theta_0, with a leading task axis.
        batches: The K recorded batches.
        loss, inner_lr, first_order, mask: As for `adapt`.

    Attributes:
        points: theta_0 .. theta_K, as `adapt` returns them.
    """

    def __init__(
        self,
        start: Params,
        batches: Sequence[Any],
        loss: Loss,
        *,
        inner_lr: InnerLR,
        first_order: bool = False,
        mask: Mapping[str, bool] | None = None,
    ) -> None:
        self._steps: list[tuple[Params, Params, Callable[[str], float | Tensor]]] = []
        self._adapted = [name for name in start if _is_adapted(name, mask)]
        of_steps = inner_lr if isinstance(inner_lr, Sequence) else [inner_lr]
        self._lr_per_parameter = any(isinstance(of_step, Mapping) for of_step in of_steps)
        self.points: list[Params] = [{name: value.detach() for name, value in start.items()}]
        for k, batch in enumerate(batches):
            theta, lr = self.points[-1], _step_size(inner_lr, k)
            leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
            gradient = _gradient(loss, leaves, batch, list(leaves), create_graph=not first_order)
            self._steps.append((leaves, gradient, lr))
            moved = {name: theta[name] - lr(name) * gradient[name].detach() for name in self._adapted}
            self.points.append(theta | {name: value.detach() for name, value in moved.items()})

    def products(self, tangent: Params, lr_tangents: Sequence[Params] | None = None) -> list[Params]:
        """`[v_0, ..., v_K]`, how theta_0 .. theta_K change to first order.

        Args:
            tangent: v_0, the change of theta_0, with a leading task axis. Alone it gives `[J_0 v, J_1 v, ..., J_K v]`.
            lr_tangents: Change of the step sizes of each step, by name; broadcasts against the parameters.
        """
        tangents = [tangent]
        for k, (leaves, gradient, lr) in enumerate(self._steps):
            v = tangents[-1]
            curvature = _hessian_product(leaves, gradient, v)
            moved = {name: v[name] - lr(name) * curvature[name] for name in self._adapted}
            for name, change in (lr_tangents[k] if lr_tangents else {}).items():
                moved[name] = moved[name] - change * gradient[name].detach()
            tangents.append(v | moved)
        return tangents

    def transposed_product(self, cotangents: Sequence[Params | None]) -> tuple[Params, list[Params]]:
        """The transpose of `products`, for cotangents `[w_0, ..., w_K]` (None: 0), in one backward sweep.

        Returns:
            `sum_k J_k^T w_k`, with a leading task axis, and for every inner step the cotangents of its step sizes,
            likewise, if there is one per parameter.
        """
        total = cotangents[-1]
        of_lr: list[Params] = [{} for _ in self._steps]
        for k in reversed(range(len(self._steps))):
            if total is not None:
                leaves, gradient, lr = self._steps[k]
                if self._lr_per_parameter:
                    of_lr[k] = {name: -gradient[name].detach() * total[name] for name in self._adapted}
                curvature = _hessian_product(leaves, gradient, {n: lr(n) * total[n] for n in self._adapted})
                total = {name: value - curvature[name] for name, value in total.items()}
            total = _add(total, cotangents[k])
        if total is None:
            raise ValueError("transposed_product() was given no cotangent at all.")
        return total, of_lr


def _add(a: Params | None, b: Params | None) -> Params | None:
    if a is None or b is None:
        return a if b is None else b
    return {name: value + b[name] for name, value in a.items()}


def _hessian_product(leaves: Params, gradient: Params, vector: Params) -> Params:
    """H v by a backward pass through the kept graph of `gradient` (H is symmetric); v is 0 where it has no entry."""
    # A gradient that does not depend on the parameters has no graph, and contributes nothing.
    names = [name for name in vector if gradient[name].requires_grad]
    if not names:
        return {name: torch.zeros_like(value) for name, value in leaves.items()}
    products = torch.autograd.grad(
        [gradient[name] for name in names],
        list(leaves.values()),
        [vector[name] for name in names],
        retain_graph=True,
        materialize_grads=True,
    )
    return dict(zip(leaves, products, strict=True))


def _gradient(loss: Loss, params: Params, batch: Any, names: list[str], create_graph: bool) -> Params:
    """Gradient of the inner loss for the named parameters, each task's own.

    Tasks are independent, so the gradient of the summed loss holds them all.
    """
    if not names:
        return {}
    with torch.enable_grad():
        # Some may belong to the graph of theta_0 or of a learned step size and others not; these become leaves here.
        # What nobody will differentiate by is a constant, so that no derivative by it is computed.
        params = {
            n: value if value.requires_grad else value.detach().requires_grad_(create_graph or n in names)
            for n, value in params.items()
        }
        losses, num_tasks = loss(params, batch), len(params[names[0]])
        if losses.shape != (num_tasks,):
            raise ValueError(f"The inner loss has shape {list(losses.shape)}; it must be [task] = [{num_tasks}].")
        gradients = torch.autograd.grad(
            losses.sum(), [params[n] for n in names], create_graph=create_graph, materialize_grads=True
        )
    return dict(zip(names, gradients, strict=True))


def _is_adapted(name: str, mask: Mapping[str, bool] | None) -> bool:
    return mask is None or mask.get(name, False)


def _requires_grad(params: Params) -> bool:
    return any(value.requires_grad for value in params.values())


def _is_learned(inner_lr: InnerLR) -> bool:
    for of_step in inner_lr if isinstance(inner_lr, Sequence) else [inner_lr]:
        values = of_step.values() if isinstance(of_step, Mapping) else [of_step]
        if any(isinstance(value, Tensor) and value.requires_grad for value in values):
            return True
    return False


def _number_of_steps(batches: Any, inner_lr: InnerLR, num_steps: int | None) -> int:
    known = {"num_steps": num_steps}
    if not callable(batches):
        known["the number of batches"] = len(batches)
    if isinstance(inner_lr, Sequence):
        known["the number of step sizes in inner_lr"] = len(inner_lr)
    counts = {what: count for what, count in known.items() if count is not None}
    if not counts:
        raise ValueError("adapt() was given a function for batches and one inner_lr; say num_steps as well.")
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{what} is {count}" for what, count in counts.items())
        raise ValueError(f"adapt() cannot tell how many inner steps to take: {said}.")
    count = next(iter(counts.values()))
    if count < 0:
        raise ValueError(f"num_steps is {count}; it must be zero or more.")
    return count


def _step_size(inner_lr: InnerLR, k: int) -> Callable[[str], float | Tensor]:
    """Parameter name -> step size of inner step k."""
    of_step = inner_lr[k] if isinstance(inner_lr, Sequence) else inner_lr
    if isinstance(of_step, Mapping):
        return lambda name: of_step[name]
    return lambda name: of_step
