r"""The inner loop: what is adapted, from where, on which loss, by which steps.

    theta_0 = start(meta),     theta_{k+1} = theta_k - A_k * grad_{theta_k} L(theta_k; batch k)

An `InnerLoop` is the same in training, validation and evaluation, for policies on rollouts (`metarl.policy_gradient`)
and for any other module on labelled examples (`metarl.fewshot`). The numbers it starts from are the meta-parameters,
one flat dictionary: the module's parameters and, where they are learned, the inner step sizes, named
`inner_lr.<k>.<parameter>`. `MetaJacobian` gives products with d theta_k / d meta.

| symbol   | here                | shape             | meaning                                                     |
|----------|---------------------|-------------------|-------------------------------------------------------------|
| meta     | meta                | {name: [...]}     | what the outer loop learns                                   |
| theta_k  | trajectory[k]       | {name: [task, ...]} | a task's parameters after k inner steps                    |
| A_k      | step_sizes(meta, K)[k] | number or {name: [...]} | step size of inner step k                           |
| L        | loss                | [task]            | inner loss                                                   |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, final, get_args

import torch

from metarl.adaptation import AdaptationJacobian, Loss, StepSize, adapt
from metarl.functional import HasParameters, initial_params, trainable_params
from metarl.ops.tree import expand_tasks, sum_tasks
from metarl.parallel import TaskChunks
from metarl.types import Params

Adapted = Literal["all", "head", "context"]
LearnedLR = Literal["no", "shared", "per_step"]
Module = TypeVar("Module", bound=HasParameters)

CONTEXT = "context"
"""The parameter of a module that adapts alone in CAVIA: 0 before the first inner step, and no meta-parameter."""


@final
@dataclass(frozen=True)
class InnerLoop(Generic[Module]):
    """How a module adapts.

    Attributes:
        module: The module. Its parameters without `requires_grad` and its buffers stay as they are.
        loss: Inner loss `[task]` of (per-task params, batch).
        inner_lr: Step size of the first inner step; where step sizes are learned, what they start from.
        later_lr_factor: Step size of every later inner step as a share of the first one's. Step sizes learned per step
            only start from it.
        learned_lr: Whether step sizes are meta-parameters, one for every entry of every adapted parameter: "shared"
            by all inner steps, or "per_step".
        num_learned_steps: How many steps have their own learned sizes; later ones take those of the last.
        adapted: What inner steps change: all parameters, the head (output layer and standard deviation), or the
            context.
        first_order: Take the inner gradients for constants.

    Raises:
        ValueError: If a name is unknown, or the module has no such part, or a context that does not adapt.
    """

    module: Module
    loss: Loss
    inner_lr: float = 0.1
    later_lr_factor: float = 0.5
    learned_lr: LearnedLR = "no"
    num_learned_steps: int = 1
    adapted: Adapted = "all"
    first_order: bool = False

    def __post_init__(self) -> None:
        known = {"adapted": get_args(Adapted), "learned_lr": get_args(LearnedLR)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(values)}.")
        _ = self.mask  # refuses a module without the part that should adapt
        if self.adapted != "context" and CONTEXT in trainable_params(self.module):
            raise ValueError(f"adapted is {self.adapted!r}, but this module has a context, which nothing else reads.")

    def initial_meta(self) -> Params:
        """The meta-parameters that training starts from: the module's own numbers, and the initial step sizes."""
        params = initial_params(self.module)
        meta = {name: value for name, value in params.items() if not self._is_reset(name)}
        if self.learned_lr == "no":
            return meta
        mask = self.mask
        for k in range(self.num_learned_steps if self.learned_lr == "per_step" else 1):
            for name, value in params.items():
                if mask is None or mask[name]:
                    meta[f"inner_lr.{k}.{name}"] = torch.full_like(value, self._fixed_lr(k))
        return meta

    @property
    def mask(self) -> Mapping[str, bool] | None:
        """Parameter name -> whether inner steps change it; None: they change all."""
        if self.adapted == "all":
            return None
        names = list(trainable_params(self.module))
        head = [CONTEXT] if self.adapted == "context" else getattr(self.module, "head", ())
        if not set(head) & set(names):
            what = "context (context_dim is 0)" if self.adapted == "context" else "`head` naming its output layer"
            raise ValueError(f"adapted is {self.adapted!r}, but this module has no {what}.")
        return {name: name in head for name in names}

    def start(self, meta: Params, num_tasks: int) -> Params:
        """theta_0 of every task, `{name: [task, ...]}`."""
        like = next(iter(meta.values()))
        params = {
            name: like.new_zeros(value.shape) if self._is_reset(name) else meta[name]
            for name, value in trainable_params(self.module).items()
        }
        return expand_tasks(params, num_tasks)

    def step_sizes(self, meta: Params, num_steps: int) -> list[StepSize]:
        """Step sizes of `num_steps` inner steps; any number, whatever training took."""
        return [self._lr(meta, k) for k in range(num_steps)]

    def adapt(
        self,
        meta: Params,
        batches: Sequence[Any] | Callable[[Params, int], Any],
        num_tasks: int,
        num_steps: int,
        chunks: TaskChunks | None = None,
        keep: bool = True,
    ) -> list[Params]:
        """Takes K inner steps: `[theta_0, ..., theta_K]`, differentiable in `meta` if that requires a gradient.

        Args:
            meta: Meta-parameters.
            batches: Recorded batches of each step, or a function that collects them; see `metarl.adaptation.adapt`.
            num_tasks: Tasks.
            num_steps: K.
            chunks: How to split tasks over threads where nothing has to be differentiable.
            keep: Return all parameter sets; without it theta_K alone.

        Raises:
            ValueError: If K is negative.
        """
        if num_steps < 0:
            raise ValueError(f"num_steps is {num_steps}; it must be zero or more.")
        return adapt(
            self.start(meta, num_tasks),
            batches,
            self.loss,
            inner_lr=self.step_sizes(meta, num_steps),
            first_order=self.first_order,
            mask=self.mask,
            chunks=chunks,
            keep=keep,
        )

    def _is_reset(self, name: str) -> bool:
        """Whether a parameter starts every adaptation at 0 instead of at a meta-parameter."""
        return self.adapted == "context" and name == CONTEXT

    def _factor(self, k: int) -> float:
        return 1.0 if k == 0 else self.later_lr_factor

    def _fixed_lr(self, k: int) -> float:
        return self.inner_lr * self._factor(k)

    def _lr(self, meta: Params, k: int) -> Any:
        if self.learned_lr == "no":
            return self._fixed_lr(k)
        index, factor = self.learned_index(k)
        prefix = f"inner_lr.{index}."
        return {n.removeprefix(prefix): factor * v for n, v in meta.items() if n.startswith(prefix)}

    def learned_index(self, k: int) -> tuple[int, float]:
        """Which learned step sizes inner step k takes, and times what."""
        if self.learned_lr == "per_step":
            return min(k, self.num_learned_steps - 1), 1.0
        return 0, self._factor(k)


@final
class MetaJacobian:
    """A block of tasks adapted on recorded batches, and products with d theta_k / d meta, k = 0 .. K.

    Args:
        inner: The inner loop.
        meta: Meta-parameters.
        num_tasks: Tasks in the block.
        batches: The K recorded batches of the block.

    Attributes:
        points: theta_0 .. theta_K of the block.
    """

    def __init__(self, inner: InnerLoop[Any], meta: Params, num_tasks: int, batches: Sequence[Any]) -> None:
        self._inner, self._meta, self._num_steps, self._num_tasks = inner, meta, len(batches), num_tasks
        learned = inner.learned_lr != "no"
        self._lr_names = [name for name in meta if learned and name.startswith("inner_lr.")]
        self._jacobian = AdaptationJacobian(
            inner.start(meta, num_tasks),
            batches,
            inner.loss,
            inner_lr=inner.step_sizes(meta, len(batches)),
            first_order=inner.first_order,
            mask=inner.mask,
        )
        self.points = self._jacobian.points

    def products(self, vector: Params) -> list[Params]:
        """`[v_0, ..., v_K]`: how each task's theta_k moves to first order when the meta-parameters move by `vector`."""
        start = self._inner.start(vector, self._num_tasks)
        if not self._lr_names:
            return self._jacobian.products(start)
        # Step sizes enter each step linearly, so that their change is what `step_sizes` makes of the change.
        return self._jacobian.products(start, self._inner.step_sizes(vector, self._num_steps))  # pyright: ignore

    def transposed_product(self, cotangents: Sequence[Params | None]) -> Params:
        """The transpose of `products`, summed over the block's tasks."""
        of_start, of_lr = self._jacobian.transposed_product(cotangents)
        total = {name: value for name, value in sum_tasks(of_start).items() if name in self._meta}
        for name in self._lr_names:
            _, index, parameter = name.split(".", 2)
            total[name] = torch.zeros_like(self._meta[name])
            for k, of_step in enumerate(of_lr):
                source, factor = self._inner.learned_index(k)
                if source == int(index) and of_step:  # empty where the objective reads nothing after that step
                    total[name] += factor * of_step[parameter].sum(0)
        return total
