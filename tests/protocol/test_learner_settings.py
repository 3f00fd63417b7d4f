"""Settings that published numbers stand on, and that each of them reaches the inner loop."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from witness import witnessed

from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
from metarl.collect import collect
from metarl.noise import TaskNoise
from metarl.policies import GaussianMLPPolicy
from metarl.rollout_adaptation import AdvantageSettings
from metarl.samples import advantages, to_samples


def test_the_published_learners_are_what_they_were() -> None:
    """Numbers that results stand on: changing one changes what a name means."""
    settings = {name: dict(learner.settings) for name, learner in LEARNERS.items()}
    adam = {"outer_optimizer": "adam"}
    ppo = {**adam, "outer_epochs": 5, "clip_range": 0.3}
    assert settings == {
        "maml-trpo": {},
        "maml-vpg": adam,
        "maml-ppo": ppo,
        "promp": {**ppo, "inner_estimator": "lvc", "inner_kl_penalty": 5e-4},
        "e-maml-trpo": {"exploration_credit": 1.0},
        "e-maml-vpg": {**adam, "exploration_credit": 1.0},
        "fomaml": {"first_order": True},
        "meta-sgd": {"learned_lr": "shared"},
        "anil": {"adapted": "head"},
        "cavia": {"adapted": "context", "inner_lr": 1.0},
        "reptile": {"outer_optimizer": "reptile", "outer_lr": 1.0, "num_inner_steps": 3},
        "random-init": {"outer_optimizer": "none"},
        "pretrain": {"num_inner_steps": 0},
        "oracle": {"num_inner_steps": 0},
        "from-scratch": {"outer_optimizer": "none", "later_lr_factor": 1.0},
    }
    fine_tuned = {name for name, learner in LEARNERS.items() if learner.finetuning_lrs}
    assert fine_tuned == {"random-init", "pretrain", "from-scratch"}
    assert {LEARNERS[name].finetuning_lrs for name in fine_tuned} == {(0.01, 0.03, 0.1, 0.3, 1.0, 3.0)}
    steps = {name: learner.test_steps for name, learner in LEARNERS.items() if learner.test_steps is not None}
    assert steps == {"oracle": 0, "from-scratch": 50}


def test_the_defaults_of_a_learner_are_those_published_for_locomotion() -> None:
    given = dataclasses.asdict(LearnerConfig())
    expected = {
        "meta_batch_size": 40, "episodes_per_task": 20, "steps_per_task": 0, "num_inner_steps": 1, "inner_lr": 0.1,
        "later_lr_factor": 0.5, "gamma": 0.99, "gae_lambda": 1.0, "bootstrap_truncated": False, "max_kl": 0.01,
        "cg_iters": 10, "cg_damping": 1e-5, "cg_tolerance": 0.0, "fvp_fraction": 1.0, "line_search_steps": 15,
        "line_search_decay": 0.8, "outer_lr": 1e-3, "outer_epochs": 1, "clip_range": 0.0, "exploration_credit": 0.0,
        "inner_kl_penalty": 0.0, "inner_estimator": "reinforce", "outer_optimizer": "trpo", "first_order": False,
        "learned_lr": "no", "adapted": "all", "step_weights": (),
    }  # fmt: skip
    assert {name: given[name] for name in expected} == expected
    assert AdvantageSettings() == LearnerConfig().advantage_settings() == AdvantageSettings(0.99, 1.0, False)


def test_a_setting_of_the_learner_reaches_the_inner_loop() -> None:
    policy = GaussianMLPPolicy(2, 2, (4,), context_dim=0)
    changes: dict[str, list[Any]] = {
        "inner_lr": [0.3], "later_lr_factor": [0.25], "learned_lr": ["per_step"], "adapted": ["head"],
        "first_order": [True],
    }  # fmt: skip
    for name, values in changes.items():
        for value in values:
            assert getattr(LearnerConfig(**{name: value}).inner_loop(policy), name) == value
    assert LearnerConfig(num_inner_steps=3).inner_loop(policy).num_learned_steps == 3
    losses = set()
    for estimator in ("reinforce", "lvc"):
        inner = LearnerConfig(inner_estimator=estimator).inner_loop(policy)
        with witnessed() as family:
            worlds = family.batch(family.sample_tasks(2), 2)
        params = inner.start(inner.initial_meta(), 2)
        losses.add(float(loss_on(worlds, inner, params)))
    assert len(losses) == 2, "each estimator has its own loss"


def loss_on(worlds: Any, inner: Any, params: Any) -> torch.Tensor:
    """The inner loss away from the behaviour parameters, where estimators differ."""
    rollout = collect(worlds, inner.module, params, TaskNoise((0,), 2))
    samples = to_samples(rollout, advantages(rollout, gamma=0.9, gae_lambda=1.0))
    moved = {name: value + 0.1 for name, value in params.items()}
    return inner.loss(moved, samples).sum()


def test_step_sizes_of_later_steps() -> None:
    policy = GaussianMLPPolicy(2, 2, (4,))
    inner = LearnerConfig(inner_lr=0.4, later_lr_factor=0.25).inner_loop(policy)
    assert inner.step_sizes(inner.initial_meta(), 4) == pytest.approx([0.4, 0.1, 0.1, 0.1])
    for learned_lr, expected in (("shared", [0.4, 0.1, 0.1]), ("per_step", [0.4, 0.1, 0.1])):
        inner = LearnerConfig(inner_lr=0.4, later_lr_factor=0.25, learned_lr=learned_lr, num_inner_steps=2).inner_loop(
            policy
        )
        sizes = inner.step_sizes(inner.initial_meta(), 3)
        for size, value in zip(sizes, expected, strict=True):
            assert all(torch.allclose(entry, torch.tensor(value)) for entry in size.values())
