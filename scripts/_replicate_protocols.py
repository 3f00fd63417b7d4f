"""What replicate.py trains, and how the records of several seeds become rows."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from metarl.algorithms.learners import LEARNERS
from metarl.experiment.comparison import CurveRow
from metarl.experiment.config import TrainConfig, preset

if TYPE_CHECKING:
    from replicate import Arguments

FAMILIES = {name: f"{name}@maml2017" for name in ("navigation-2d", "halfcheetah-vel")}
"""Family -> the variant that is trained."""

FULL_ITERATIONS = {"navigation-2d": 100, "halfcheetah-vel": 500}
"""Iterations of a full replication of MAML (the paper allows up to 500); --quick uses the preset's own number."""

QUICK_ITERATIONS = {"halfcheetah-vel": 30}
"""Where the preset's number is not a quick one."""

_HORIZONS = {"navigation-2d": 100, "halfcheetah-vel": 200}
_METRIC_SHARE = 0.25
"""`fvp_fraction` of trust-region learners in the protocol `learners`: for speed, and the same for all."""


def planned_runs(arguments: Arguments, family: str) -> dict[str, list[tuple[Path, TrainConfig]]]:
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
        config = equal_steps_config(name, family, arguments.env_steps // (10 if arguments.quick else 1))
        stem = f"learners-{config.iterations}-{name}-{family}"
        planned[name] = [
            (arguments.out / f"{stem}-seed{seed}", dataclasses.replace(config, seed=seed)) for seed in seeds
        ]
    return planned


def equal_steps_config(name: str, family: str, env_steps: int) -> TrainConfig:
    """The learner's published form on the family, for as many iterations as take `env_steps` environment steps."""
    config = preset(name, FAMILIES[family])
    learner = config.learner
    if name == "maml-trpo":
        # The preset trains two inner steps where it tests three; here every learner trains what its paper trains.
        learner = dataclasses.replace(learner, num_inner_steps=1, step_weights=())
    if learner.outer_optimizer == "trpo":
        learner = dataclasses.replace(learner, fvp_fraction=_METRIC_SHARE)
    phases = learner.num_inner_steps + (learner.outer_optimizer != "reptile")
    steps = learner.steps_per_task or learner.episodes_per_task * _HORIZONS[family]
    iterations = max(1, round(env_steps / (learner.meta_batch_size * steps * phases)))
    if not LEARNERS[name].is_trained:
        iterations = 1
    validation = dataclasses.replace(config.validation, every=max(1, iterations // 3))
    return dataclasses.replace(config, iterations=iterations, learner=learner, validation=validation)


@dataclass(frozen=True)
class Summary:
    """Several seeds of one learner.

    Attributes:
        label: Its name.
        records: Their evaluation records.
    """

    label: str
    records: list[dict[str, Any]]

    INTERVAL: ClassVar[str] = "95 % for the mean over seeds and tasks"

    @staticmethod
    def of(label: str, records: list[dict[str, Any]]) -> Summary:
        """The summary of at least one record."""
        return Summary(label, records)

    def _over_seeds(self) -> list[tuple[float, ...]]:
        return list(zip(*(record["return_mean"] for record in self.records), strict=True))

    def mean_row(self) -> CurveRow:
        """Mean over seeds; the interval takes both the spread of seeds and that of tasks for random.

        Its variance is the seeds' variance / seeds plus the tasks' variance / tasks: every seed is tested on the same
        tasks, so that more seeds do not make the second smaller. The first contains a share of the noise in measuring
        one seed, which makes the interval a little too wide.
        """
        over_seeds = self._over_seeds()
        count = len(self.records)
        of_tasks = [statistics.fmean(column) for column in zip(*(r["return_ci95"] for r in self.records), strict=True)]
        of_seeds = [1.96 * statistics.stdev(v) / math.sqrt(count) if count > 1 else 0.0 for v in over_seeds]
        interval = [math.hypot(a, b) for a, b in zip(of_tasks, of_seeds, strict=True)]
        return CurveRow(self.label, [statistics.fmean(values) for values in over_seeds], interval)

    def rows(self, with_seeds: bool) -> list[CurveRow]:
        """The mean over seeds, and if wanted each seed and the worst of them."""
        mean = self.mean_row()
        if not with_seeds:
            return [mean]
        seeds = [
            CurveRow.of_record(f"{self.label}, seed {record['seed']} (iteration {record['iteration']})", record)
            for record in self.records
        ]
        worst = [min(values) for values in self._over_seeds()]
        return [
            *seeds,
            dataclasses.replace(mean, label=f"{self.label}, mean of {len(seeds)} seeds"),
            CurveRow(f"{self.label}, worst seed", worst, [math.nan] * len(worst)),
        ]

    def record(self) -> dict[str, Any]:
        """The summary as JSON."""
        over_seeds = self._over_seeds()
        return {
            "seeds": self.records,
            "return_mean": [statistics.fmean(values) for values in over_seeds],
            "return_sd": [statistics.stdev(values) if len(values) > 1 else 0.0 for values in over_seeds],
            "return_worst": [min(values) for values in over_seeds],
            "interval": list(self.mean_row().interval),
        }
