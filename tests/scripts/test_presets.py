"""The published hyper-parameters, and where a preset knowingly leaves them.

Sources: Finn, Abbeel and Levine 2017, section 5.3 and appendix A.2, and the settings its authors' code (cbfinn/maml_rl)
runs with.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from metarl.experiment.config import PolicyConfig, TrainConfig
from metarl.experiment.presets import preset

PUBLISHED: dict[str, Any] = {
    "num_inner_steps": 1,
    "step_weights": (),
    "first_order": False,
    "gamma": 0.99,
    "gae_lambda": 1.0,
    "max_kl": 0.01,
    "cg_iters": 10,
    "cg_damping": 1e-5,
    "line_search_steps": 15,
    "line_search_decay": 0.8,
    "fvp_fraction": 1.0,
    "later_lr_factor": 0.5,
}


def differences(config: TrainConfig, published: dict[str, Any]) -> dict[str, Any]:
    ours = dataclasses.asdict(config.learner)
    return {name: ours[name] for name, value in published.items() if ours[name] != value}


@pytest.mark.parametrize("family", ["navigation-2d@maml2017", "halfcheetah-vel@maml2017"])
def test_policy_is_the_published_one(family: str) -> None:
    wanted = PolicyConfig(hidden_sizes=(100, 100), activation="relu", init_std=1.0, min_std=1e-6)
    assert preset("maml-trpo", family).policy == wanted


def test_half_cheetah_is_as_published() -> None:
    # The best published run, fbs10_mbs40: 10 episodes, 40 tasks; "up to 500 meta-iterations".
    published = PUBLISHED | {"meta_batch_size": 40, "episodes_per_task": 10, "steps_per_task": 0, "inner_lr": 0.1}
    config = preset("maml-trpo", "halfcheetah-vel@maml2017")
    assert differences(config, published) == {}
    assert config.iterations == 500


def test_navigation_leaves_the_published_settings_in_three_named_ways() -> None:
    # fbs20_mbs20_flr_0.5: 20 episodes of 100 steps, counted in steps; 20 tasks; 100 iterations.
    published = PUBLISHED | {"meta_batch_size": 20, "steps_per_task": 20 * 100, "inner_lr": 0.5}
    config = preset("maml-trpo", "navigation-2d@maml2017")
    assert differences(config, published) == {
        # Two inner steps, both in the objective: the published objective says nothing about the second step, which
        # then overshoots on a few tasks.
        "num_inner_steps": 2,
        "step_weights": (5.0, 1.0),
        # For speed.
        "fvp_fraction": 0.5,
    }
    assert config.iterations <= 100
