"""Few-shot tasks: a support set to learn from and a query set to be judged on, regression and classification alike.

| symbol | shape                                      | meaning                                                   |
|--------|--------------------------------------------|-----------------------------------------------------------|
| x      | [task, example, *input]                    | inputs                                                    |
| y      | [task, example] or [task, example, output] | number of the class in the task (int64), or real target   |
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, TypeAlias

from torch import Tensor

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Examples(NamedTuple):
    """Labelled examples of several tasks.

    Attributes:
        x: Inputs `[task, example, *input]`, float32.
        y: Class numbers `[task, example]` (int64), or targets `[task, example, output]`.
    """

    x: Tensor
    y: Tensor


class Tasks(NamedTuple):
    """A batch of few-shot tasks.

    Attributes:
        support: What a task is learnt from.
        query: What it is judged on; its `y` is read by losses and metrics alone.
    """

    support: Examples
    query: Examples


class TaskSource(Protocol):
    """A distribution of few-shot tasks.

    Attributes:
        input_shape: Shape of one input.
        num_outputs: Classes of a task, or width of a target.
        is_classification: Whether `y` holds class numbers.
        num_examples: Support and query examples of a task.
        fingerprint: Changes where the data change that tasks are drawn from.
    """

    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def num_outputs(self) -> int: ...
    @property
    def is_classification(self) -> bool: ...
    @property
    def num_examples(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def sample(self, num_tasks: int, split: Split, seed: int, start: int = 0) -> Tasks:
        """Tasks `start` to `start + num_tasks - 1` of a stream; each is a pure function of (split, seed, its index)."""
        ...
