"""The recommended run of a learner on a family: what differs from the defaults, for either of them or for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
from metarl.experiment.config import PolicyConfig, TrainConfig, ValidationConfig


@dataclass(frozen=True)
class _Preset:
    """What differs from the defaults; of several that apply, later ones win field by field."""

    iterations: int | None = None
    policy: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)


_FOR_FAMILY = {
    "navigation-2d@maml2017": _Preset(
        iterations=100,
        policy={"activation": "relu"},
        validation={"num_tasks": 40, "steps": 3},
        learner={"meta_batch_size": 20, "steps_per_task": 2000, "inner_lr": 0.5},
    ),
    # Rothfuss et al. 2019, section 7.3 and its authors' sweep: three inner steps of one size.
    "navigation-2d-corners@promp": _Preset(
        policy={"hidden_sizes": (64, 64)},
        validation={"num_tasks": 4, "steps": 3},
        learner={"num_inner_steps": 3, "later_lr_factor": 1.0},
    ),
    "halfcheetah-vel@maml2017": _Preset(policy={"activation": "relu"}, learner={"episodes_per_task": 10}),
}

# One Adam step per iteration of the ProMP authors' 1e-3 is too small here: -12.3 after 6M steps where this gets -10.3.
_ONE_ADAM_STEP = _Preset(learner={"outer_lr": 0.01})

_FOR_BOTH = {
    # Five inputs move the policy less than all its weights do.
    ("cavia", "navigation-2d@maml2017"): _Preset(learner={"inner_lr": 5.0}),
    ("maml-vpg", "navigation-2d@maml2017"): _ONE_ADAM_STEP,
    ("e-maml-vpg", "navigation-2d@maml2017"): _ONE_ADAM_STEP,
    # The published protocol tests steps that it never trained, and a second step then overshoots on a few tasks
    # (docs/maml-trpo.md, "The second step"): here both are trained.
    ("maml-trpo", "navigation-2d@maml2017"): _Preset(
        iterations=50, learner={"num_inner_steps": 2, "step_weights": (5.0, 1.0), "fvp_fraction": 0.5}
    ),
}


def preset(algorithm: str, family_id: str, **given: int) -> TrainConfig:
    """The recommended run of an algorithm on a family (`family@variant`).

    Args:
        algorithm: Learner.
        family_id: Family.
        **given: Fields of `LearnerConfig` that somebody sets (`num_inner_steps`, `episodes_per_task`,
            `steps_per_task`). What is recommended for another value of them goes with it: weights of another number
            of steps, and the other one of the two budgets. Validation takes as many steps as training.
    """
    named = LEARNERS[algorithm]
    for_learner = _Preset(
        None if named.is_trained else 1, {}, {"inner_lrs": named.finetuning_lrs}, dict(named.settings)
    )
    parts = [
        _FOR_FAMILY.get(family_id, _Preset()), for_learner, _FOR_BOTH.get((algorithm, family_id), _Preset())
    ]  # fmt: skip

    def merged(name: str) -> dict[str, Any]:
        return {key: value for part in parts for key, value in getattr(part, name).items()}

    learner = LearnerConfig(**{**_left_by(given, merged("learner")), **given})
    validation = merged("validation")
    # What is trained is what is validated; a family may be tested on more steps, and a learner say how many it is for.
    usual = max(1, validation.get("steps", 1)) if named.test_steps is None else named.test_steps
    steps = max(learner.num_inner_steps, usual)
    return TrainConfig(
        algorithm=algorithm,
        family=family_id,
        iterations=[500, *(part.iterations for part in parts if part.iterations)][-1],
        observe_task=named.observe_task,
        policy=PolicyConfig(**{"context_dim": learner.context_dim, **merged("policy")}),
        validation=ValidationConfig(**{**validation, "steps": steps}),
        learner=learner,
    )


def _left_by(given: Mapping[str, int], recommended: dict[str, Any]) -> dict[str, Any]:
    """What still holds of the recommended settings of a learner beside those that somebody sets."""
    gone = set()
    weights = recommended.get("step_weights", ())
    if len(weights) != given.get("num_inner_steps", len(weights)):
        gone.add("step_weights")
    if given.get("steps_per_task"):
        gone.add("episodes_per_task")
    elif "episodes_per_task" in given:
        gone.add("steps_per_task")
    return {name: value for name, value in recommended.items() if name not in gone}


def who_sets(algorithm: str, family_id: str, name: str) -> str | None:
    """Who recommends the learner's setting `name` that `preset` has: "promp sets"; None for a plain default."""
    if name in _FOR_BOTH.get((algorithm, family_id), _Preset()).learner:
        return f"the recommended settings for {algorithm} on {family_id} set"
    if name in LEARNERS[algorithm].settings:
        return f"{algorithm} sets"
    if name in _FOR_FAMILY.get(family_id, _Preset()).learner:
        return f"the recommended settings for {family_id} set"
    return None
