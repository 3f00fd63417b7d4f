"""What replicate.py trains, how it trains it, and how the records of several seeds become rows."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _common
import torch
from _training import check_learned
from torch import Tensor

from metarl.algorithms.learners import LEARNERS
from metarl.experiment.checks import read_config
from metarl.experiment.comparison import CurveRow
from metarl.experiment.config import TrainConfig
from metarl.experiment.errors import UserError
from metarl.experiment.presets import preset
from metarl.experiment.run_directory import RunDirectory

if TYPE_CHECKING:
    from replicate import Arguments

    from metarl.experiment.trainer import Trainer

FAMILIES = {name: f"{name}@maml2017" for name in ("navigation-2d", "halfcheetah-vel")}
"""Family -> the variant that is trained."""

FULL_ITERATIONS = {"navigation-2d": 100, "halfcheetah-vel": 500}
"""Iterations of a full replication of MAML (the paper allows up to 500); --quick uses the preset's own number."""

QUICK_ITERATIONS = {"halfcheetah-vel": 30}
"""Where the preset's number is not a quick one."""

_METRIC_SHARE = 0.25
"""`fvp_fraction` of trust-region learners in the protocol `learners`: for speed, and the same for all."""


def planned_runs(arguments: Arguments, family: str, horizon: int) -> dict[str, list[tuple[Path, TrainConfig]]]:
    """Label -> the runs of its seeds, each a directory and what is trained there."""
    seeds = range(arguments.seeds)
    if arguments.protocol == "maml2017":
        config = preset("maml-trpo", FAMILIES[family])
        quick = QUICK_ITERATIONS.get(family, config.iterations)
        config = dataclasses.replace(config, iterations=quick if arguments.quick else FULL_ITERATIONS[family])
        stem = f"maml2017-{'quick' if arguments.quick else 'full'}-{family}"
        runs = [(arguments.out / f"{stem}-seed{seed}", dataclasses.replace(config, seed=seed)) for seed in seeds]
        return {"ours": runs}
    planned = {}
    for name in arguments.learners or LEARNERS:
        config = equal_steps_config(name, family, horizon, arguments.env_steps // (10 if arguments.quick else 1))
        stem = f"learners-{config.iterations}-{name}-{family}"
        planned[name] = [
            (arguments.out / f"{stem}-seed{seed}", dataclasses.replace(config, seed=seed)) for seed in seeds
        ]
    return planned


def equal_steps_config(name: str, family: str, horizon: int, env_steps: int) -> TrainConfig:
    """The learner's published form on the family, for as many iterations as take `env_steps` environment steps."""
    config = preset(name, FAMILIES[family])
    learner = config.learner
    if name == "maml-trpo":
        # The preset trains two inner steps where it tests three; here every learner trains what its paper trains.
        learner = dataclasses.replace(learner, num_inner_steps=1, step_weights=())
    if learner.outer_optimizer == "trpo":
        learner = dataclasses.replace(learner, fvp_fraction=_METRIC_SHARE)
    phases = learner.num_inner_steps + (learner.outer_optimizer != "reptile")
    steps = learner.steps_per_task or learner.episodes_per_task * horizon
    iterations = max(1, round(env_steps / (learner.meta_batch_size * steps * phases)))
    if not LEARNERS[name].is_trained:
        iterations = 1
    validation = dataclasses.replace(config.validation, every=max(1, iterations // 3))
    return dataclasses.replace(config, iterations=iterations, learner=learner, validation=validation)


def trained_run(path: Path, config: TrainConfig) -> Path:
    """Trains, or continues, or finds finished, the run at `path`."""
    from metarl.experiment.policy_run import make_learner, make_trainer

    exists = found_run(path, config, read_config)
    learner = make_learner(_common.make_family(config.family, config.observe_task), config)
    with RunDirectory.resume(path) if exists else RunDirectory.create(path, config) as run:
        train_to_end(make_trainer(learner, config, run, resume=exists))
    return path


def found_run(path: Path, config: Any, read: Callable[[Path], Any]) -> bool:
    """Whether there is a run at `path` already.

    Raises:
        UserError: If it has other settings.
    """
    exists = (path / "config.json").exists()
    if exists and read(path) != config:
        raise UserError(f"{path} holds a run with other settings; choose another --out.")
    return exists


def train_to_end(trainer: Trainer) -> None:
    """Trains to the last iteration, or leaves after Ctrl-C."""
    done, total = trainer.learner.iteration, trainer.config.iterations
    print(f"{trainer.run.path}: training iterations {done} to {total}", flush=True)
    if not trainer.train():
        print(f"Stopped; the same command continues from iteration {trainer.learner.iteration}.")
        sys.exit(130)
    check_learned(trainer)


def evaluation_of(path: Path, num_steps: int | None) -> dict[str, Any]:
    """Evaluation record of a finished run on the published tasks."""
    from _evaluation import evaluated

    from metarl.experiment.evaluate_run import default_steps, test_tasks

    run = _common.load_run(path)
    tasks, _ = test_tasks(run, None, 0)
    steps = default_steps(run) if num_steps is None else num_steps
    # As evaluate.py does: a run's own table is always one of the same protocol.
    return evaluated(run, tasks, steps=steps, keep=steps == default_steps(run))[0]


_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""


def interval95(per_task: Tensor) -> Tensor:
    """Half-widths `[K + 1]` of 95 % intervals for the mean over seeds and tasks, of returns `[seed, task, K + 1]`.

    Seeds and tasks are both drawn, and every seed is tested on the same tasks: more seeds do not make the tasks'
    variance smaller. It is taken from each task's mean over seeds, the seeds' from each seed's mean over tasks, with
    Student's quantile, as it is estimated from a few; one seed gives the interval over tasks alone.
    """
    seeds, tasks = per_task.shape[:2]
    of_tasks = 1.96 * per_task.mean(0).std(0) / math.sqrt(tasks)
    if seeds == 1:
        return of_tasks
    quantile = _STUDENT[seeds - 2] if seeds - 2 < len(_STUDENT) else 1.96
    return torch.hypot(of_tasks, quantile * per_task.mean(1).std(0) / math.sqrt(seeds))


@dataclass(frozen=True)
class Summary:
    """Several seeds of one learner.

    Attributes:
        label: Its name.
        records: Their evaluation records, one or more.
    """

    label: str
    records: list[dict[str, Any]]

    @property
    def _per_task(self) -> Tensor:
        """Returns `[seed, task, K + 1]`."""
        return torch.tensor([record["per_task"] for record in self.records], dtype=torch.float64)

    @property
    def interval_label(self) -> str:
        """What the interval of `mean_row` is of."""
        return "95 % over tasks and seeds (Student's t for the seeds)" if len(self.records) > 1 else "95 % over tasks"

    def mean_row(self) -> CurveRow:
        """Mean over seeds with its interval; NaN where a seed's evaluation was not finite."""
        per_task = self._per_task
        return CurveRow(self.label, per_task.mean((0, 1)).tolist(), interval95(per_task).tolist())

    def rows(self, with_seeds: bool) -> list[CurveRow]:
        """The mean over seeds, and if wanted each seed and the worst of them."""
        mean = self.mean_row()
        if not with_seeds:
            return [mean]
        seeds = [
            CurveRow.of_record(f"{self.label}, seed {record['seed']} (iteration {record['iteration']})", record)
            for record in self.records
        ]
        worst = self._per_task.mean(1).min(0).values.tolist()
        return [
            *seeds,
            dataclasses.replace(mean, label=f"{self.label}, mean of {len(seeds)} seeds"),
            CurveRow(f"{self.label}, worst seed", worst, [math.nan] * len(worst)),
        ]

    def record(self) -> dict[str, Any]:
        """The summary as JSON."""
        of_seeds, mean = self._per_task.mean(1), self.mean_row()
        return {
            "seeds": self.records,
            "return_mean": list(mean.mean),
            "return_sd": of_seeds.std(0, correction=min(1, len(of_seeds) - 1)).tolist(),
            "return_worst": of_seeds.min(0).values.tolist(),
            "interval": list(mean.interval),
        }
