"""Random streams: everything random in a run is a function of (seed, iteration, phase, task).

No two streams have the same key, and a coincidence among the 63-bit seeds made of the keys is out of the question
(5e-10 for a long run of 1e5 streams). torch's CPU generator, though, keeps only the low 32 bits of a seed, so that
about one pair of those 1e5 streams holds the same numbers by chance. As the two belong to different iterations, phases
or tasks, this does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from metarl.types import Distribution

TRAINING, VALIDATION, EVALUATION, MEASUREMENT = range(4)
"""First key of every stream: what the numbers are used for. No two uses share a key."""


def task_seeds(key: Sequence[int], num_tasks: int, start: int = 0) -> list[int]:
    """One 63-bit seed per task from a key such as (purpose, seed, iteration, phase).

    The module's docstring says how much of it torch's CPU generator keeps.

    Args:
        key: Non-negative integers.
        num_tasks: How many seeds.
        start: Index of the first task, where a worker holds only some of them.
    """
    return [
        int(np.random.SeedSequence((*key, start + i)).generate_state(1, np.uint64)[0] >> 1) for i in range(num_tasks)
    ]


@final
class TaskNoise:
    """The noise of one collection: one stream per task, so that it does not matter which tasks share a batch.

    Args:
        key: Key of the collection, e.g. (purpose, seed, iteration, phase).
        num_tasks: Number of tasks.
        start: Index of the first task.
    """

    def __init__(self, key: Sequence[int], num_tasks: int, start: int = 0) -> None:
        self._key = tuple(key)
        self._num_tasks = num_tasks
        self._start = start

    def reset_seeds(self, wave: int) -> list[int]:
        """One seed per task for the initial states of wave `wave` of episodes."""
        return task_seeds((*self._key, wave, 0), self._num_tasks, self._start)

    def action_noise(
        self, wave: int, episodes: int, horizon: int, distribution: Distribution, action_dim: int
    ) -> Tensor:
        """Action noise `[task, episode, time, act_dim]` of wave `wave`, drawn on the CPU."""
        seeds = task_seeds((*self._key, wave, 1), self._num_tasks, self._start)
        return torch.stack(
            [
                distribution.draw_noise((episodes, horizon), action_dim, torch.Generator().manual_seed(seed))
                for seed in seeds
            ]
        )


@final
class DeviceNoise:
    """The noise of one collection drawn where the worlds are: one stream per wave for all tasks.

    Args:
        key: Key of the collection, e.g. (purpose, seed, iteration, phase).
        num_tasks: Number of tasks.
        device: Where the numbers are drawn.
    """

    def __init__(self, key: Sequence[int], num_tasks: int, device: torch.device) -> None:
        self._key = tuple(key)
        self._num_tasks = num_tasks
        self._device = device

    def reset_seeds(self, wave: int) -> list[int]:
        """One seed per task for the initial states of wave `wave` of episodes."""
        return task_seeds((*self._key, wave, 0), self._num_tasks)

    def action_noise(
        self, wave: int, episodes: int, horizon: int, distribution: Distribution, action_dim: int
    ) -> Tensor:
        """Action noise `[task, episode, time, act_dim]` of wave `wave`, drawn on the device."""
        generator = torch.Generator(self._device).manual_seed(task_seeds((*self._key, wave, 1), 1)[0])
        return distribution.draw_noise((self._num_tasks, episodes, horizon), action_dim, generator)


def collection_noise(key: Sequence[int], num_tasks: int, device: torch.device) -> TaskNoise | DeviceNoise:
    """Where a collection on `device` gets its noise: one stream per task on the CPU, one for all on a GPU."""
    return TaskNoise(key, num_tasks) if device.type == "cpu" else DeviceNoise(key, num_tasks, device)
