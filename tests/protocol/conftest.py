"""Runs that were trained under watch, for every test of the folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from witness import CONFIG, Log, witnessed

from metarl.experiment.policy_run import make_learner, make_trainer
from metarl.experiment.run_directory import RunDirectory


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log]:
    """A run that chose its step size by validation, and everything that its training asked for. It is only read."""
    path = tmp_path_factory.mktemp("trained") / "run"
    validation = dataclasses.replace(CONFIG.validation, inner_lrs=(0.01, 2.0))
    config = dataclasses.replace(CONFIG, validation=validation)
    with witnessed() as family:
        learner = make_learner(family, config)
        with RunDirectory.create(path, config) as run:
            make_trainer(learner, config, run, resume=False).train()
        return path, family.log
