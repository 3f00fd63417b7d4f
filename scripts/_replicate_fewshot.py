"""The part of replicate.py that is for few-shot methods: all of them on one budget, beside chance and pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _evaluation import keep_record
from _replicate_protocols import found_run, interval95, train_to_end

from metarl.evaluation import AdaptationCurve
from metarl.experiment.fewshot_config import FewShotConfig, read_fewshot_config
from metarl.experiment.fewshot_presets import fewshot_preset
from metarl.experiment.fewshot_run import (
    EVALUATION_TASKS,
    fewshot_record,
    load_fewshot_run,
    load_images,
    make_fewshot_learner,
    make_fewshot_trainer,
    make_source,
)
from metarl.experiment.outputs import write_json_output
from metarl.experiment.run_directory import RunDirectory, metrics_of
from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.evaluation import nearest_neighbour
from metarl.fewshot.methods import METHODS
from metarl.fewshot.supervised import score

if TYPE_CHECKING:
    from replicate import Arguments

WAYS: dict[int, tuple[str, ...]] = {5: tuple(METHODS), 20: ("maml", "prototypical", "matching", "snail")}
"""Classes of a task -> the methods that are compared on it."""


def trained_fewshot_run(path: Path, config: FewShotConfig, images: ImageClasses) -> Path:
    """Trains, or continues, or finds finished, the run at `path`."""
    exists = found_run(path, config, read_fewshot_config)
    learner = make_fewshot_learner(config, make_source(config, images))
    with RunDirectory.resume(path) if exists else RunDirectory.create(path, config) as run:
        train_to_end(make_fewshot_trainer(learner, make_source(config, images, test=True), config, run, resume=exists))
    return path


def cpu_seconds(run: Path) -> float:
    """CPU time that a run's iterations took, without validation; each line of its metrics is the mean over some."""
    rows = metrics_of(run)
    before = [0, *(row["iteration"] for row in rows)]
    return sum(
        (row.get("time/cpu_seconds") or 0) * (row["iteration"] - b) for row, b in zip(rows, before, strict=False)
    )


def reference_rows(config: FewShotConfig, images: ImageClasses) -> list[tuple[str, float, float]]:
    """(label, accuracy, half-width of its interval) of what learns nothing, on the tasks of the evaluation."""
    tasks = make_source(config, images, test=True).sample(EVALUATION_TASKS, "test", 0)
    predictions = nearest_neighbour(tasks.support, tasks.query.x, config.ways)
    curve = AdaptationCurve(score(predictions, tasks.query.y).double().unsqueeze(1), env_steps=0)
    return [
        ("chance", 1 / config.ways, float("nan")),
        ("nearest neighbour in pixels", float(curve.mean[0]), float(curve.ci95[0])),
    ]


def replicate_fewshot(arguments: Arguments) -> None:
    """Trains every method on glyphs, 5-way and some of them 20-way, and prints a table of test accuracies."""
    images = load_images(FewShotConfig(dataset="glyphs"))
    results: dict[str, Any] = {}
    for ways, methods in WAYS.items():
        rows: list[tuple[str, float, float, str]] = [
            (*row, "") for row in reference_rows(fewshot_preset("maml", "glyphs", ways), images)
        ]
        for name in methods:
            if arguments.learners and name not in arguments.learners:
                continue
            records = []
            for seed in range(arguments.seeds):
                config = dataclasses.replace(fewshot_preset(name, "glyphs", ways), seed=seed)
                if arguments.quick:
                    config = dataclasses.replace(config, iterations=max(1, config.iterations // 10))
                path = arguments.out / f"fewshot-{ways}way-{config.iterations}-{name}-seed{seed}"
                run = load_fewshot_run(trained_fewshot_run(path, config, images))
                record = fewshot_record(run, run.evaluate(EVALUATION_TASKS, config.num_test_steps), 0)
                record["training_cpu_seconds"] = cpu_seconds(path)
                keep_record(path, record)
                records.append(record)
                accuracy = f"{100 * record['return_mean'][-1]:.2f} ± {100 * record['return_ci95'][-1]:.2f}"
                print(f"  {name}, {ways}-way, seed {seed}: {accuracy}", flush=True)
            rows.append(summary_row(name, records))
            results[f"{ways}-way 1-shot {name}"] = records
        print_scores(f"glyphs, {ways}-way 1-shot: accuracy in % on {EVALUATION_TASKS} tasks of the test split", rows)
        results |= {f"{ways}-way 1-shot {label}": value for label, value, *_ in rows[:2]}
    if arguments.json:
        write_json_output(arguments.json, results)
        print(f"saved {arguments.json}")


def summary_row(name: str, records: list[dict[str, Any]]) -> tuple[str, float, float, str]:
    """Mean over seeds of the accuracy after the last step, with its interval over tasks and seeds, and the cost."""
    per_task = torch.tensor([record["per_task"] for record in records], dtype=torch.float64)[..., -1:]
    steps = records[0]["steps"]
    cost = sum(record["training_cpu_seconds"] for record in records) / len(records)
    said = f"{'after ' + str(steps) + ' steps, ' if steps else ''}{cost:.0f} CPU-s of training"
    return name, float(per_task.mean()), float(interval95(per_task)[-1]), said


def print_scores(headline: str, rows: list[tuple[str, float, float, str]]) -> None:
    """A table of (label, accuracy, interval, words)."""
    print(f"\n{headline}; ± 95 %")
    for label, value, interval, words in rows:
        shown = f"{100 * value:.2f}" + ("" if interval != interval else f" ± {100 * interval:.2f}")
        print(f"{label:<30}{shown:>16}   {words}".rstrip())
