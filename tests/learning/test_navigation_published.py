"""2D navigation learns what was published, under the published protocol (Finn et al. 2017, figure 4)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import envs
from metarl.experiment.evaluate_run import evaluate_run
from metarl.experiment.evaluate_run import test_tasks as published_tasks
from metarl.experiment.loading import load_run
from metarl.experiment.policy_run import make_learner, make_trainer
from metarl.experiment.presets import preset
from metarl.experiment.run_directory import RunDirectory

NAME = "navigation-2d@maml2017"


@pytest.mark.slow
def test_the_demo_run_adapts_to_the_published_goals(tmp_path: Path) -> None:
    """The bars of `make demo`: at least -13 after one inner step and -7 after two (published: -11.7 and -3.3)."""
    config = dataclasses.replace(preset("maml-trpo", NAME), seed=0)
    family = envs.make(NAME)
    with RunDirectory.create(tmp_path / "run", config) as run:
        assert make_trainer(make_learner(family, config), config, run, resume=False).train()
    loaded = load_run(tmp_path / "run", lambda _: family)
    tasks, _ = published_tasks(loaded, None, 0)
    assert len(tasks) == 40
    curve, _ = evaluate_run(loaded, tasks, num_steps=3, episodes_per_task=None)
    before, one_step, two_steps, _ = curve.mean.tolist()
    assert before < -30
    assert one_step >= -13
    assert two_steps >= -7


def test_the_pretrained_policy_beats_the_published_returns() -> None:
    """The checkpoint in the repository is the one its model card describes (published: -11.68 and -3.33)."""
    loaded = load_run(Path(__file__).parents[2] / "pretrained" / NAME, lambda _: envs.make(NAME))
    tasks, _ = published_tasks(loaded, None, 0)
    curve, _ = evaluate_run(loaded, tasks, num_steps=2, episodes_per_task=None)
    assert float(curve.mean[1]) > -11.68
    assert float(curve.mean[2]) > -3.33
