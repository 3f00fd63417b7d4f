"""When a training validates, what it logs and which of its checkpoints are kept and called the best."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fewshot_protocol import WAVES
from witness import CONFIG, navigation

from metarl.experiment.config import TrainConfig
from metarl.experiment.errors import UserError
from metarl.experiment.fewshot_run import make_fewshot_learner, make_fewshot_trainer, make_source
from metarl.experiment.policy_run import PolicyValidation, make_learner, make_trainer
from metarl.experiment.run_directory import RunDirectory, metrics_of

STILL = dataclasses.replace(
    CONFIG,
    algorithm="random-init",
    iterations=5,
    keep_every=3,
    validation=dataclasses.replace(CONFIG.validation, every=2),
    learner=dataclasses.replace(
        CONFIG.learner, outer_optimizer="none", cg_iters=10, meta_batch_size=1, episodes_per_task=1, num_inner_steps=1
    ),
)
"""Nothing is learnt, and an iteration costs next to nothing."""


def train(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: Mapping[int, float],
    config: TrainConfig = STILL,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Trains, or goes on training, with the given scores by iteration; returns the lines of metrics."""
    config = dataclasses.replace(config, **changes)
    learner = make_learner(navigation(), config)
    monkeypatch.setattr(PolicyValidation, "__call__", lambda self: (scores[learner.iteration], {}))
    resume = (path / "config.json").exists()
    with RunDirectory.resume(path) if resume else RunDirectory.create(path, config) as run:
        assert make_trainer(learner, config, run, resume).train()
    return metrics_of(path)


def checkpoints(path: Path) -> dict[str, int]:
    """Name of each checkpoint -> the iteration it is of."""
    states = {file.stem: torch.load(file, weights_only=True) for file in (path / "checkpoints").glob("*.pt")}
    return {name: state["learner"]["iteration"] for name, state in states.items()}


def test_validation_comes_every_so_often_and_at_the_end_and_the_best_score_keeps_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = train(tmp_path / "run", monkeypatch, {2: 1.0, 4: 3.0, 5: 2.0})
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5]
    found = {line["iteration"]: line["validation/score"] for line in lines if "validation/score" in line}
    assert found == {2: 1.0, 4: 3.0, 5: 2.0}
    assert [line["validation/best_score"] for line in lines if "validation/score" in line] == [1.0, 3.0, 3.0]
    assert checkpoints(tmp_path / "run") == {"best": 4, "last": 5, "iteration_3": 3}


def test_the_best_of_a_resumed_run_is_the_best_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    train(run, monkeypatch, {2: 1.0, 4: 3.0, 5: 2.0})
    lines = train(run, monkeypatch, {6: 2.5, 7: 2.9}, iterations=7)
    assert checkpoints(run) == {"best": 4, "last": 7, "iteration_3": 3, "iteration_6": 6}
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    steps = [line["env_steps"] for line in lines]
    assert steps == sorted(set(steps)), "counted from the beginning"
    train(run, monkeypatch, {8: 3.1}, iterations=8)
    assert checkpoints(run)["best"] == 8
    with pytest.raises(UserError, match="has done 8 already"):
        train(run, monkeypatch, {}, iterations=5)


def test_a_resumed_run_keeps_the_step_size_that_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choosing(self: PolicyValidation) -> tuple[float, dict[str, float]]:
        self.inner_lr = 2.0
        return 1.0, {}

    chosen = []
    for validate, iterations in ((choosing, 3), (lambda self: (0.0, {}), 5)):
        config = dataclasses.replace(STILL, iterations=iterations)
        monkeypatch.setattr(PolicyValidation, "__call__", validate)
        with RunDirectory.resume(tmp_path / "run") if chosen else RunDirectory.create(tmp_path / "run", config) as run:
            make_trainer(make_learner(navigation(), config), config, run, resume=bool(chosen)).train()
        chosen.append(torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["inner_lr"])
    assert chosen == [2.0, 2.0] and CONFIG.learner.inner_lr != 2.0


def test_a_score_that_is_no_number_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = train(tmp_path / "run", monkeypatch, {2: math.nan, 4: -7.0, 5: math.nan})
    assert checkpoints(tmp_path / "run")["best"] == 4
    assert [line["validation/score"] for line in lines if "validation/score" in line] == [None, -7.0, None]


def test_without_validation_the_last_checkpoint_is_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = dataclasses.replace(STILL.validation, every=0)
    lines = train(tmp_path / "run", monkeypatch, {}, validation=never)
    assert checkpoints(tmp_path / "run") == {"best": 5, "last": 5, "iteration_3": 3}
    assert not any("validation/score" in line for line in lines)


def test_a_line_holds_the_means_since_the_last_one_and_the_counts_so_far(tmp_path: Path) -> None:
    config = dataclasses.replace(
        WAVES, iterations=5, log_every=3, validation=dataclasses.replace(WAVES.validation, every=0)
    )
    alone = make_fewshot_learner(config, make_source(config))
    rows = [alone.iterate() for _ in range(5)]
    learner, test = make_fewshot_learner(config, make_source(config)), make_source(config, test=True)
    with RunDirectory.create(tmp_path / "run", config) as run:
        make_fewshot_trainer(learner, test, config, run, resume=False).train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [3, 5]
    for line, part in zip(lines, (rows[:3], rows[3:]), strict=True):
        for name in ("loss", "score", "gradient_norm"):
            assert line[name] == pytest.approx(sum(row[name] for row in part) / len(part))
        assert line["tasks"] == part[-1]["tasks"] and line["skipped_updates"] == 0
