"""Train over several seeds under a published protocol and print the published numbers beside ours.

    python scripts/replicate.py maml2017 --quick --seeds 5
    python scripts/replicate.py maml2017 --families navigation-2d halfcheetah-vel

Every seed is an ordinary run under --out: a killed replication continues where it stopped, a finished seed is only
evaluated again. Training, choice of checkpoint and test tasks are those of train.py and evaluate.py.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import _common
import tyro

from metarl.experiment.config import TrainConfig, check, preset
from metarl.experiment.errors import UserError, reports_errors
from metarl.experiment.evaluate_run import DEFAULT_STEPS
from metarl.experiment.files import check_writable, write_json
from metarl.experiment.run_directory import RunDirectory, read_config

FULL_ITERATIONS = {"navigation-2d": 100, "halfcheetah-vel": 500}
"""Iterations of a full replication (the paper allows up to 500); --quick uses the preset's own number."""

QUICK_ITERATIONS = {"halfcheetah-vel": 30}
"""Where the preset's number is not a quick one."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of replicate.py.

    Attributes:
        protocol: Which publication: maml2017 is Finn, Abbeel and Levine, ICML 2017.
        families: Families to train, each in the protocol's variant.
        seeds: Number of seeds: 0, 1, ...
        quick: A few minutes per seed instead of the full number of iterations.
        steps: Inner steps in evaluation.
        out: Where the runs are kept.
        json: Where to write the table as JSON as well.
    """

    protocol: tyro.conf.Positional[Literal["maml2017"]]
    families: tuple[Literal["navigation-2d", "halfcheetah-vel"], ...] = ("navigation-2d",)
    seeds: int = 5
    quick: bool = False
    steps: int = DEFAULT_STEPS
    out: Path = Path("runs")
    json: Path | None = None


def run_config(family: str, seed: int, protocol: str, quick: bool) -> TrainConfig:
    """The preset of MAML-TRPO on the family, with this seed and length."""
    config = preset("maml-trpo", f"{family}@{protocol}")
    iterations = QUICK_ITERATIONS.get(family, config.iterations) if quick else FULL_ITERATIONS[family]
    return dataclasses.replace(config, seed=seed, iterations=iterations)


def trained_run(path: Path, config: TrainConfig) -> Path:
    """Trains, or continues, or finds finished, the run at `path`.

    Raises:
        UserError: If something else is there.
    """
    from metarl.experiment.trainer import Trainer, make_learner

    exists = (path / "config.json").exists()
    if exists and read_config(path) != config:
        raise UserError(f"{path} holds a run with other settings; choose another --out.")
    learner = make_learner(_common.make_family(config.family), config)
    with RunDirectory.resume(path) if exists else RunDirectory.create(path, config) as run:
        trainer = Trainer(learner, config, run, resume=exists)
        print(f"{path}: training iterations {learner.iteration} to {config.iterations}", flush=True)
        finished = trainer.train()
    if not finished:
        print(f"Stopped; the same command continues from iteration {learner.iteration}.")
        sys.exit(130)
    return path


def evaluated(path: Path, num_steps: int) -> dict[str, Any]:
    """Evaluation record of a finished run on the published tasks."""
    from metarl.experiment.evaluate_run import evaluate_run, evaluation_record, test_tasks

    run = _common.load_run(path)
    tasks, _ = test_tasks(run, None, 0)
    curve, data = evaluate_run(run, tasks, num_steps=num_steps, episodes_per_task=None)
    record = evaluation_record(run, tasks, 0, curve, data)
    if num_steps == DEFAULT_STEPS:
        # As evaluate.py does: a run's own table is always one of the same protocol.
        write_json(path / f"evaluation_{run.checkpoint}.json", record)
    if record["nonfinite_steps"]:
        print(f"{path}: {record['nonfinite_steps']:,} steps of the evaluation were not finite; it means little.")
    return record


def print_table(family: str, records: list[dict[str, Any]], summary: dict[str, Any], steps: int) -> None:
    """Published rows, one row per seed, and the mean over seeds."""

    def row(label: str, values: list[str]) -> None:
        print(label.ljust(34) + "".join(f"{value:>18}" for value in values))

    print(f"\n{family}@maml2017: return before each inner step, mean over the published test tasks")
    row("adaptation step", [str(k) for k in range(steps + 1)])
    spec = _common.make_family(f"{family}@maml2017").spec
    for curve in spec.published:
        row(f"published: {curve.label}", [f"{value:.2f}" for value in curve.returns[: steps + 1]])
    for record in records:
        label = f"ours, seed {record['seed']} (iteration {record['iteration']})"
        row(label, [f"{value:.2f}" for value in record["return_mean"]])
    pairs = zip(summary["return_mean"], summary["return_sd"], strict=True)
    row(f"ours, mean of {len(records)} seeds ± sd", [f"{mean:.2f} ± {sd:.2f}" for mean, sd in pairs])
    row("ours, worst seed", [f"{value:.2f}" for value in summary["return_worst"]])
    print(f"published numbers: {spec.published[0].source}")


@reports_errors
def main() -> None:
    _common.handle_list(sys.argv)
    arguments = tyro.cli(Arguments, description=__doc__, prog="replicate.py")
    if arguments.seeds < 1 or arguments.steps < 0 or not arguments.families:
        raise UserError("--seeds must be positive, --steps zero or more, and --families at least one family.")
    if arguments.json:
        check_writable(arguments.json)

    import torch

    results = {}
    for family in arguments.families:
        records = []
        for seed in range(arguments.seeds):
            config = run_config(family, seed, arguments.protocol, arguments.quick)
            check(config)
            kind = "quick" if arguments.quick else "full"
            path = arguments.out / f"{arguments.protocol}-{kind}-{family}-seed{seed}"
            records.append(evaluated(trained_run(path, config), arguments.steps))
            print(f"  seed {seed}: " + "  ".join(f"{value:.2f}" for value in records[-1]["return_mean"]), flush=True)
        returns = torch.tensor([record["return_mean"] for record in records], dtype=torch.float64)
        summary = {
            "return_mean": returns.mean(0).tolist(),
            "return_sd": returns.std(0, correction=min(1, len(records) - 1)).tolist(),
            "return_worst": returns.min(0).values.tolist(),
        }
        print_table(family, records, summary, arguments.steps)
        results[family] = {"seeds": records, **summary}
    if arguments.json:
        write_json(arguments.json, results)
        print(f"saved {arguments.json}")


if __name__ == "__main__":
    main()
