"""What a run must hold at once, against the memory there is: what cannot fit is refused before anything is made.

Estimates are lower bounds, so that nothing which could run is refused; what exceeds the memory by less is found by the
allocator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch

from metarl.algorithms.composition import as_words
from metarl.algorithms.config import LearnerConfig
from metarl.experiment.config import TrainConfig, check_device
from metarl.experiment.errors import UserError
from metarl.types import TaskFamily

Sizes: TypeAlias = Mapping[str, Any]
"""Field -> a count, or a tuple of them (the widths of layers)."""

FLOAT = 4
"""Bytes of a number in single precision."""


def available_bytes(device: str = "cpu") -> int:
    """Bytes of memory that this process may use on `device`, taken or not."""
    check_device(device)
    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [2**63]
    control_group = Path("/sys/fs/cgroup/memory.max")
    if control_group.is_file() and (limit := control_group.read_text().strip()).isdecimal():
        limits.append(int(limit))
    return min(limits)


def check_fits(
    sizes: Sizes, usual: Sizes, need: Callable[[Sizes], int], label: Callable[[str], str], device: str = "cpu"
) -> None:
    """Refuses sizes that need more memory than there is, and says what would fit.

    Args:
        sizes: The sizes.
        usual: Ordinary ones: the one that exceeds its own most is named.
        need: The least bytes that sizes take; grows with every one.
        label: A field as the person knows it.
        device: Whose memory.

    Raises:
        UserError: Naming the size to make smaller.
    """
    there, needed = available_bytes(device), need(sizes)
    if needed <= there:
        return

    def excess(name: str) -> Fraction:
        return Fraction(_largest(sizes[name]), max(1, _largest(usual[name])))

    by_excess = sorted(sizes, key=excess, reverse=True)
    for name in by_excess:
        value, most = sizes[name], _largest_that_fits(sizes, name, need, there)
        if 0 < most < _largest(value):
            raise UserError(
                f"{label(name)} is {as_words(value)}: that takes {_in_words(needed)} of memory or more, and there are "
                f"{_in_words(there)}; with the other settings as they are at most {most} fits."
            )
    together = " and ".join(label(name) for name in by_excess[:2])
    raise UserError(
        f"{together} are too large: together with the other settings they take {_in_words(needed)} of memory or more, "
        f"and there are {_in_words(there)}."
    )


def check_policy_fits(
    config: TrainConfig, family: TaskFamily, label: Callable[[str], str], *, training: bool = True
) -> None:
    """Refuses a run whose policy, or whose rollouts in training, do not fit into memory.

    Args:
        config: The run's settings.
        family: Its task family.
        label: A field as the person knows it.
        training: Whether it is to be trained; otherwise the policy alone must fit.

    Raises:
        UserError: Naming the size to make smaller.
    """
    names = ("meta_batch_size", "episodes_per_task", "steps_per_task", "num_inner_steps")

    def sizes_of(config: TrainConfig) -> Sizes:
        policy, validation = config.policy, config.validation
        return {
            "policy.hidden_sizes": policy.hidden_sizes,
            "policy.context_dim": policy.context_dim,
            "validation.num_tasks": validation.num_tasks,
            "validation.steps": validation.steps,
            **{f"learner.{name}": getattr(config.learner, name) for name in names},
        }

    def need(sizes: Sizes) -> int:
        hidden = sizes["policy.hidden_sizes"]
        policy = FLOAT * layer_numbers(
            (family.observation_dim + sizes["policy.context_dim"], *hidden, family.action_dim)
        )
        if not training:
            return policy
        tasks, episodes, steps, inner = (sizes[f"learner.{name}"] for name in names)
        worlds = LearnerConfig(episodes_per_task=episodes, steps_per_task=steps).worlds_per_task(family.horizon)
        # Of the phase that is being collected there is a second copy.
        phases = inner + (config.learner.outer_optimizer != "reptile") + 1
        adapted = tasks * inner * policy if config.learner.adapted == "all" else 0
        of_world = phases * family.horizon * step_bytes(family) + FLOAT * max(hidden, default=0)
        trained, validated = adapted + tasks * worlds * of_world, 0
        if config.validation.every:
            tests = (sizes[f"validation.{name}"] for name in ("num_tasks", "steps"))
            validated = evaluation_bytes(family, worlds, *tests)
        return policy + max(trained, validated)

    check_fits(sizes_of(config), sizes_of(TrainConfig()), need, label, config.device)


def check_evaluation_fits(
    family: TaskFamily, label: Callable[[str], str], *, num_tasks: int, worlds: int, steps: int, device: str
) -> None:
    """Refuses an evaluation that does not fit into memory.

    Args:
        family: Task family.
        label: `num_tasks`, `episodes` or `steps` as the person knows it.
        num_tasks: Tasks.
        worlds: Episodes of a task.
        steps: Inner steps.
        device: Where it runs.

    Raises:
        UserError: Naming the size to make smaller.
    """

    def need(sizes: Sizes) -> int:
        return evaluation_bytes(family, sizes["episodes"], sizes["num_tasks"], sizes["steps"])

    sizes = {"num_tasks": num_tasks, "episodes": worlds, "steps": steps}
    check_fits(sizes, {"num_tasks": 40, "episodes": 40, "steps": 3}, need, label, device)


def evaluation_bytes(family: TaskFamily, worlds: int, num_tasks: int, steps: int) -> int:
    """Least bytes of an evaluation: a phase's rollouts of `worlds` a task, twice, and every step's return."""
    return 2 * num_tasks * (worlds * family.horizon * step_bytes(family) + FLOAT * steps)


def step_bytes(family: TaskFamily) -> int:
    """Bytes that a rollout keeps of one time step of one world."""
    # Observation; action, its mean and its noise; reward and log-probability; three flags.
    return FLOAT * (family.observation_dim + 3 * family.action_dim + 2) + 3


def layer_numbers(widths: tuple[int, ...]) -> int:
    """Weights and biases of fully connected layers."""
    return sum(a * b + b for a, b in pairwise(widths))


def _largest(value: int | tuple[int, ...]) -> int:
    return max(value, default=0) if isinstance(value, tuple) else value


def _largest_that_fits(sizes: Sizes, name: str, need: Callable[[Sizes], int], there: int) -> int:
    """The largest value of one size, or width of its layers, that fits if the others stay; 0 if none does."""
    value = sizes[name]
    fits, fails = 0, _largest(value)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        tried = tuple(min(middle, width) for width in value) if isinstance(value, tuple) else middle
        if need({**sizes, name: tried}) <= there:
            fits = middle
        else:
            fails = middle
    return fits


def _in_words(number: int) -> str:
    """Bytes, rounded."""
    return f"{number // 10**9:,} GB" if number >= 10**10 else f"{number / 10**9:.1f} GB"
