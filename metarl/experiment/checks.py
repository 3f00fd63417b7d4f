"""What a run's settings may be: values that make no sense are refused in one sentence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from metarl.algorithms.composition import (
    FAR,
    LARGEST,
    MOST,
    Idle,
    Ranges,
    contradiction,
    out_of_range,
    without_effect,
)
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
from metarl.experiment.config import PolicyConfig, TrainConfig, from_json, is_fewshot
from metarl.experiment.errors import UserError
from metarl.experiment.presets import preset, who_sets
from metarl.experiment.run_directory import read_config_file

MOST_THREADS = 1024
"""Threads that a run may ask for: each costs memory and a place among the system's."""

MOST_LAYERS = 100
"""Layers that a network may name: many more than any that learns."""

_FLAGS = {f.name for kind in (TrainConfig, PolicyConfig, LearnerConfig) for f in dataclasses.fields(kind)}
_RANGES: Ranges = {
    "positive and below 2**63": (lambda x: 0 < x < FAR, ("iterations", "keep_every")),
    "zero or more and below 2**63": (lambda x: 0 <= x < FAR, ("validation.every", "seed")),
    "positive and below 2**31": (lambda x: 0 < x < MOST, ("policy.hidden_sizes", "validation.num_tasks")),
    "zero or more and below 2**31": (
        lambda x: 0 <= x < MOST,
        ("policy.context_dim", "learner.num_inner_steps", "validation.steps"),
    ),
    "between 0 and 1024": (lambda x: 0 <= x <= MOST_THREADS, ("num_threads",)),
    "positive and at most 1e38": (lambda x: 0 < x <= LARGEST, ("policy.min_std", "validation.inner_lrs")),
}
"""Of everything but the learner, whose ranges are in `composition`."""

_IDLE: Sequence[Idle] = (
    (
        *("learner.step_weights", lambda c: len(c.learner.step_weights) == 1),
        "weights are scaled to sum to 1, and there is 1 step; leave it out",
    ),
    (
        *("iterations", lambda c: not LEARNERS[c.algorithm].is_trained and c.iterations > 1),
        "this reference is not trained, and 1 iteration is all that it needs",
    ),
    (
        *("validation.num_tasks", lambda c: not c.validation.every),
        "nothing is validated where validation.every is 0; leave it out, or give validation.every a number",
    ),
    (
        *("validation.inner_lrs", lambda c: not c.validation.every),
        "nothing is validated where validation.every is 0; leave it out, or give validation.every a number",
    ),
    (
        *("learner.inner_lr", lambda c: c.validation.every and c.validation.inner_lrs and not _trains_steps(c.learner)),
        "training takes no step that counts, and validation chooses the step size; give it the sizes to choose from as "
        "validation.inner_lrs",
    ),
    (
        *("learner.later_lr_factor", lambda c: c.learner.learned_lr == "per_step" and c.learner.num_inner_steps == 1),
        "learned_lr per_step learns the size of 1 step, and every later one takes that; learned_lr shared scales it",
    ),
    (
        *("learner.memory_budget_mb", lambda c: c.learner.outer_optimizer != "trpo"),
        "only outer_optimizer trpo keeps graphs; leave it out",
    ),
    (
        *("learner.line_search_decay", lambda c: c.learner.line_search_steps == 1),
        "with line_search_steps 1 no second length is tried; leave it out, or allow more",
    ),
    (
        *("learner.fvp_fraction", lambda c: c.learner.meta_batch_size == 1),
        "with meta_batch_size 1 there is one task, which enters whole; leave it out",
    ),
    (
        *("policy.activation", lambda c: not c.policy.hidden_sizes),
        "hidden_sizes is empty, so that there is no layer for it; leave it out, or name hidden layers",
    ),
)
"""Settings that nothing reads under others. What contradicts one another is in `composition`."""


def _trains_steps(learner: LearnerConfig) -> bool:
    """Whether inner steps are part of what is trained."""
    return learner.num_inner_steps > 0 and learner.outer_optimizer != "none"


@dataclass(frozen=True)
class Words:
    """Fields as the person knows them: where they stand in the file, or the flags they are on the command line.

    Attributes:
        source: The file; None for the command line.
        flags: Names of all fields.
    """

    source: Path | None
    flags: Collection[str]

    def label(self, field: str) -> str:
        """The subject of a sentence: `learner.inner_lr` is `--inner-lr`."""
        if self.source is not None:
            return f"{self.source}: {field}"
        flag = field.removeprefix("learner.").removeprefix("policy.").removeprefix("network.")
        return "--" + flag.replace("_", "-")

    def within(self, sentence: str) -> str:
        """A sentence that names fields."""
        if self.source is not None:
            return sentence
        return re.sub(
            r"\bvalidation\.[a-z_]+\b|\b[a-z]+(_[a-z]+)+\b",
            lambda match: self.label(match[0]) if "." in match[0] or match[0] in self.flags else match[0],
            sentence,
        )


def policy_words(source: Path | None = None) -> Words:
    """The fields of a run of train.py as the person knows them."""
    return Words(source, _FLAGS)


def read_config(path: Path) -> TrainConfig:
    """The config of a run of train.py.

    Raises:
        UserError: If the directory is not one.
    """
    data, file = read_config_file(path)
    if is_fewshot(data):
        raise UserError(f"{path} is a few-shot run of train_fewshot.py; name a run of train.py.")
    config = from_json(TrainConfig, data, file)
    check(config, file)
    return config


def check(config: TrainConfig, source: Path | None = None, usual: TrainConfig | None = None) -> None:
    """Refuses values that make no sense.

    Args:
        config: The settings.
        source: The file they stand in; None for the command line.
        usual: What they would be had nobody set one; a setting that differs must have an effect. None: that is not
            looked at (of a file nobody is misled by a setting that nothing reads).

    Raises:
        UserError: Naming the first field that is out of range and what would be right.
    """
    words = policy_words(source)
    problem = out_of_range(config, _RANGES)
    if problem is not None:
        raise UserError(f"{words.label(problem[0])} {problem[1]}")
    if config.algorithm not in LEARNERS:
        prefix = f"{source}: unknown" if source else "Unknown"
        raise UserError(f"{prefix} algorithm {config.algorithm!r}. Known: {', '.join(LEARNERS)}.")
    _check_policy(config.policy, words)
    _check_composition(config, words)
    idle = None if usual is None else without_effect(config, usual, _IDLE)
    if idle is not None:
        raise UserError(f"{words.label(idle[0])} {words.within(idle[1])}")


def _check_policy(policy: PolicyConfig, words: Words) -> None:
    check_layers("policy.hidden_sizes", policy.hidden_sizes, words)
    if not policy.min_std <= policy.init_std <= LARGEST:
        raise UserError(
            f"{words.label('policy.init_std')} is {policy.init_std}; it must be a number, at least "
            f"{words.within('min_std')} ({policy.min_std}) and at most 1e38."
        )
    if policy.activation not in ("relu", "tanh"):
        raise UserError(f"{words.label('policy.activation')} is {policy.activation!r}; it must be relu or tanh.")


def check_layers(name: str, layers: Collection[int], words: Words) -> None:
    """Refuses a network of absurd depth.

    Raises:
        UserError: Naming the field.
    """
    if len(layers) > MOST_LAYERS:
        raise UserError(f"{words.label(name)} has {len(layers)} layers; there must be at most {MOST_LAYERS}.")


def _check_composition(config: TrainConfig, words: Words) -> None:
    learner, validation = config.learner, config.validation
    problem = contradiction(learner)
    if problem is None and (learner.adapted == "context") != (config.policy.context_dim > 0):
        raise UserError(
            f"{words.label('learner.adapted')} is {learner.adapted} and {words.within('context_dim')} is "
            f"{config.policy.context_dim}; a context needs a length above 0, and nothing else does."
        )
    if problem is not None:
        name, says = problem
        if words.source is None:
            says += _blame_and_cure(config, name)
        raise UserError(f"{words.label('learner.' + name)} {words.within(says)}")
    if LEARNERS[config.algorithm].observe_task and not config.observe_task:
        raise UserError(f"{words.label('observe_task')} is off; {config.algorithm} is the policy that sees its task.")
    if validation.inner_lrs and not validation.steps and validation.every:
        raise UserError(
            f"{words.label('validation.inner_lrs')} has step sizes to choose from, but validation takes no step: "
            f"{words.label('validation.steps')} is 0."
        )
    if validation.inner_lrs and learner.learned_lr != "no":
        raise UserError(
            f"{words.label('validation.inner_lrs')} has step sizes to choose from, but the learner learns its own "
            + words.within(f"(learned_lr {learner.learned_lr}).")
        )


def _blame_and_cure(config: TrainConfig, name: str) -> str:
    """Who set a setting of the learner that is refused, if not the person, and which flag clears it."""
    others = {} if name == "num_inner_steps" else {"num_inner_steps": config.learner.num_inner_steps}
    recommended = preset(config.algorithm, config.family, **others)
    value = getattr(config.learner, name)
    who = who_sets(config.algorithm, config.family, name)
    says = f" ({who} it so.)" if who and value == getattr(recommended.learner, name) else ""
    if isinstance(value, tuple):
        says += " The flag without a value clears it."
    elif value is True:
        says += f" The flag --no-{name.replace('_', '-')} clears it."
    return says
