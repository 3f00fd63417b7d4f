"""A task family that says what it was asked: the protocol of a run as its worlds see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from envs.family import TaskFamily
from envs.navigation import Navigation2D, Navigation2DConfig
from metarl import noise
from metarl.algorithms.config import LearnerConfig
from metarl.experiment.config import PolicyConfig, TrainConfig, ValidationConfig
from metarl.inner_loop import InnerLoop
from metarl.types import Params

HORIZON = 5
SEED = 7
VALIDATION_SEED = 2**31 - 1
LEARNER = LearnerConfig(
    meta_batch_size=3, episodes_per_task=2, num_inner_steps=2, inner_lr=0.3, later_lr_factor=0.25, gamma=0.9,
    gae_lambda=0.8, cg_iters=2,
)  # fmt: skip
CONFIG = TrainConfig(
    algorithm="maml-trpo",
    family="navigation-2d@maml2017",
    iterations=3,
    seed=SEED,
    num_threads=1,
    keep_every=1,
    policy=PolicyConfig(hidden_sizes=(4,), init_std=0.5),
    validation=ValidationConfig(every=2, num_tasks=5, steps=3),
    learner=LEARNER,
)


class Draw(NamedTuple):
    """Tasks drawn from a family: `num_tasks` of a split, from index `start` on, under a task seed."""

    num_tasks: int
    split: str
    seed: int
    start: int


class Worlds(NamedTuple):
    """A batch of worlds that was built."""

    tasks: Tensor
    episodes: int
    device: str
    num_threads: int | None


class Start(NamedTuple):
    """Episodes that were started together."""

    tasks: Tensor
    seeds: list[int]
    episodes: int


class Adaptation(NamedTuple):
    """Inner steps on fresh rollouts: from which meta-parameters, of which sizes, and where they led."""

    meta: Params
    num_tasks: int
    sizes: list[Any]
    trajectory: list[Params]


@dataclass
class Log:
    """Everything that was asked, in order.

    Attributes:
        streams: Key of every random stream, once per task it was used for: what for, seed, ..., phase, wave, and 0 for
            initial states or 1 for actions.
    """

    draws: list[Draw] = field(default_factory=list)
    worlds: list[Worlds] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    streams: list[tuple[int, ...]] = field(default_factory=list)
    adaptations: list[Adaptation] = field(default_factory=list)
    steps: int = 0

    def clear(self) -> None:
        self.__init__()


class WitnessedWorlds:
    """A batch of worlds that logs its episodes."""

    def __init__(self, env: Any, log: Log) -> None:
        self._env, self._log = env, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, seed: Any, lanes: Tensor | None = None) -> Tensor:
        everything = self._env.num_tasks * self._env.episodes_per_task
        count = everything if lanes is None else int(lanes.sum())
        self._log.starts.append(Start(self._env.tasks.clone(), list(seed), count))
        return self._env.reset(seed, lanes)

    def step(self, actions: Tensor) -> Any:
        self._log.steps += 1
        return self._env.step(actions)


class WitnessedFamily:
    """A task family that logs what is drawn and built."""

    def __init__(self, family: TaskFamily, log: Log) -> None:
        self._family, self.log = family, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def sample_tasks(self, num_tasks: int, split: Any = "train", seed: int = 0, start: int = 0) -> Tensor:
        self.log.draws.append(Draw(num_tasks, split, seed, start))
        return self._family.sample_tasks(num_tasks, split, seed, start)

    def batch(
        self, tasks: Tensor, episodes_per_task: int, device: Any = "cpu", *, num_threads: int | None = None
    ) -> Any:
        self.log.worlds.append(Worlds(tasks.clone(), episodes_per_task, str(device), num_threads))
        env = self._family.batch(tasks, episodes_per_task, device, num_threads=num_threads)
        return WitnessedWorlds(env, self.log)


def navigation(num_published: int = 4, observe_task: bool = False, **settings: Any) -> TaskFamily:
    """2D navigation of five steps, in which a wide goal ends some episodes early."""
    config = Navigation2DConfig(
        **{
            "horizon": HORIZON,
            "goal_tolerance": 0.2,
            "published_seed": 1 if num_published else None,
            "num_published_tasks": num_published,
            **settings,
        }
    )
    return TaskFamily(Navigation2D(config), observe_task)


@contextmanager
def witnessed(family: TaskFamily | None = None) -> Iterator[WitnessedFamily]:
    """A family whose log also holds the random streams and the inner steps of everything that runs meanwhile."""
    log = Log()
    task_seeds, adapt = noise.task_seeds, InnerLoop.adapt

    def logged_seeds(key: Any, num_tasks: int, start: int = 0) -> list[int]:
        log.streams.append(tuple(key))
        return task_seeds(key, num_tasks, start)

    def logged_adapt(
        self: InnerLoop, meta: Params, batches: Any, num_tasks: int, num_steps: int, *args: Any, **kwargs: Any
    ) -> list[Params]:
        if not callable(batches):  # the outer loop's repetition of recorded rollouts
            return adapt(self, meta, batches, num_tasks, num_steps, *args, **kwargs)
        trajectory: list[Params] = []

        def logged_batches(theta: Params, k: int) -> Any:
            trajectory.append(theta)
            return batches(theta, k)

        copy = {name: value.clone() for name, value in meta.items()}
        log.adaptations.append(Adaptation(copy, num_tasks, self.step_sizes(meta, num_steps), trajectory))
        found = adapt(self, meta, logged_batches, num_tasks, num_steps, *args, **kwargs)
        trajectory.append(found[-1])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "task_seeds", logged_seeds)
        patch.setattr(InnerLoop, "adapt", logged_adapt)
        yield WitnessedFamily(family or navigation(), log)


def phases(*key: int, last: int) -> set[tuple[int, ...]]:
    """Streams of the phases 0 to `last` of a collection of one wave, for initial states and for actions."""
    return {(*key, phase, 0, use) for phase in range(last + 1) for use in (0, 1)}


def equal(a: Params, b: Params) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)
