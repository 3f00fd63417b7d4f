"""What composes: the outer optimisers by name, and which settings mean nothing together."""

from __future__ import annotations

import numbers
import operator
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.outer import GradientAscent, NoUpdate, OuterOptimizer, Reptile
from metarl.algorithms.trust_region import TrustRegion
from metarl.policy_gradient import ESTIMATORS

OUTER_OPTIMIZERS: dict[str, type[OuterOptimizer]] = {
    "trpo": TrustRegion,
    "adam": GradientAscent,
    "reptile": Reptile,
    "none": NoUpdate,
}
"""`LearnerConfig.outer_optimizer` -> what it is. One that is added here composes with everything else."""

Ranges: TypeAlias = Mapping[str, tuple[Callable[[float], bool], tuple[str, ...]]]
"""What a field must be -> whether it is, and the fields (of fields: `learner.inner_lr`)."""

Idle: TypeAlias = tuple[str, Callable[[Any], bool], str]
"""A field (`learner.inner_lr`), whether it does nothing under given settings, and why, with what would be right."""

MOST = 2**31
"""Sizes and counts are below this: torch, MuJoCo and their indices take no more."""

FAR = 2**63
"""What only counts iterations is below this, and so are seeds."""

LARGEST = 1e38
"""Largest number that the parameters' single precision can hold, rounded down."""

_RANGES: Ranges = {
    "positive and below 2**31": (
        lambda x: 0 < x < MOST,
        ("meta_batch_size", "episodes_per_task", "cg_iters", "line_search_steps", "outer_epochs"),
    ),
    "positive and at most 1e38": (
        lambda x: 0 < x <= LARGEST,
        ("max_kl", "inner_lr", "later_lr_factor"),
    ),
    # Adam divides it by as little as a tenth.
    "positive and at most 1e37": (lambda x: 0 < x <= 1e37, ("outer_lr",)),
    "zero or more and below 2**31": (
        lambda x: 0 <= x < MOST,
        ("steps_per_task", "num_inner_steps", "chunk_size", "memory_budget_mb"),
    ),
    "zero or more and at most 1e38": (
        lambda x: 0 <= x <= LARGEST,
        ("cg_damping", "exploration_credit", "inner_kl_penalty"),
    ),
    "above 0 and at most 1": (lambda x: 0 < x <= 1, ("gamma", "fvp_fraction", "line_search_decay")),
    # A relative residual of 1 is where conjugate gradient begins.
    "zero or more and below 1": (lambda x: 0 <= x < 1, ("clip_range", "cg_tolerance")),
    "between 0 and 1": (lambda x: 0 <= x <= 1, ("gae_lambda",)),
}

_NEEDS_INNER_STEPS = {
    "inner_estimator": "there is no inner step to take it through",
    "exploration_credit": "there are no rollouts that an inner step was taken on",
    "inner_kl_penalty": "there is no policy before an inner step",
    "learned_lr": "there is no inner step whose size could be learned",
    "first_order": "there is no inner step to differentiate",
}


def contradiction(config: LearnerConfig) -> tuple[str, str] | None:
    """The first setting that is out of range or means nothing together with the others, and a sentence's rest on why.

    Returns:
        None where the settings compose. Otherwise (field, "is ...; ...").
    """
    problem = wrong_type(config) or out_of_range(config, _RANGES)
    if problem is not None:
        return problem
    for name, known in (("inner_estimator", ESTIMATORS), ("outer_optimizer", OUTER_OPTIMIZERS)):
        if getattr(config, name) not in known:
            return name, f"is {getattr(config, name)!r}; it must be one of {', '.join(known)}."
    return _unread(config) or _wrong_step_weights(config) or _without_inner_steps(config) or _without_effect(config)


def is_of_type(value: Any, wanted: Any) -> bool:
    """Whether a setting may have this value: a truth value is no number, a whole number is one.

    Args:
        value: The value.
        wanted: bool, int, float, str, or a tuple of any length of one of them; whatever else is not looked at.
    """
    if typing.get_origin(wanted) is tuple:
        return isinstance(value, (tuple, list)) and all(is_of_type(item, typing.get_args(wanted)[0]) for item in value)
    if wanted not in _TYPES:
        return True
    kind, _ = _TYPES[wanted]
    return isinstance(value, kind) and (wanted is bool or not isinstance(value, bool))


_TYPES: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
}


def wrong_type(config: object) -> tuple[str, str] | None:
    """The first field whose value is of another type than it says, and a sentence's rest that says so."""
    for name, wanted in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not is_of_type(value, wanted):
            items = typing.get_args(wanted)
            must = f"a tuple, each item {_TYPES[items[0]][1]}" if items else _TYPES[wanted][1]
            return name, f"is {value!r}; it must be {must}."
    return None


def out_of_range(config: object, ranges: Ranges) -> tuple[str, str] | None:
    """The first field whose value is not what it must be, and a sentence's rest that says so.

    Every item of a tuple must be; None, a default that is chosen later, is.
    """
    for rule, (good, names) in ranges.items():
        for name in names:
            value = operator.attrgetter(name)(config)
            items = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(map(good, items)):
                return name, f"is {as_words(value)}; {'each' if isinstance(value, tuple) else 'it'} must be {rule}."
    return None


def without_effect(config: object, usual: object, idle: Sequence[Idle]) -> tuple[str, str] | None:
    """The first field that was set, to something else than in `usual`, and does nothing; and a sentence's rest."""
    for name, does_nothing, why in idle:
        value, default = (operator.attrgetter(name)(settings) for settings in (config, usual))
        if value != default and does_nothing(config):
            return name, f"is {as_words(value)} and does nothing: {why}."
    return None


def as_words(value: object) -> str:
    """A value as a person would write it: a tuple as a list without commas, cut off where it is absurdly long."""
    if isinstance(value, tuple):
        return " ".join([*map(str, value[:20]), *(["..."] if len(value) > 20 else [])]) or "empty"
    return str(value)


def _unread(config: LearnerConfig) -> tuple[str, str] | None:
    """A setting of another outer optimiser must keep its default: it would do nothing."""
    read = OUTER_OPTIMIZERS[config.outer_optimizer].reads
    for field in fields(config):
        readers = [name for name, optimizer in OUTER_OPTIMIZERS.items() if field.name in optimizer.reads]
        value = getattr(config, field.name)
        if readers and field.name not in read and value != field.default:
            return field.name, (
                f"is {as_words(value)}; with outer_optimizer {config.outer_optimizer} it does nothing: only "
                f"{' and '.join(readers)} read{'s' if len(readers) == 1 else ''} it. It must be "
                f"{as_words(field.default)} here."
            )
    return None


def _wrong_step_weights(config: LearnerConfig) -> tuple[str, str] | None:
    weights = config.step_weights
    if not weights or (
        len(weights) == config.num_inner_steps
        and all(0 <= weight <= LARGEST for weight in weights)
        and sum(weights) > 0
    ):
        return None
    return "step_weights", (
        f"is {as_words(weights)}; it must hold num_inner_steps ({config.num_inner_steps}) numbers up to 1e38, "
        "none negative and not all zero."
    )


def _without_inner_steps(config: LearnerConfig) -> tuple[str, str] | None:
    if config.num_inner_steps > 0:
        return None
    defaults = {field.name: field.default for field in fields(config)}
    for name, why in _NEEDS_INNER_STEPS.items():
        if getattr(config, name) != defaults[name]:
            return name, (
                f"is {as_words(getattr(config, name))}, but num_inner_steps is 0: {why}. It must be "
                f"{as_words(defaults[name])} here."
            )
    if config.outer_optimizer == "reptile":
        return "num_inner_steps", "is 0; reptile moves to where inner steps lead, so it needs one or more."
    return None


def _without_effect(config: LearnerConfig) -> tuple[str, str] | None:
    if config.steps_per_task and config.episodes_per_task != LearnerConfig.episodes_per_task:
        return "episodes_per_task", (
            f"is {config.episodes_per_task}, but steps_per_task is {config.steps_per_task}: whole episodes are then "
            f"collected until they hold so many steps. Give one of the two, with steps_per_task 0 for episodes."
        )
    if config.outer_optimizer == "reptile" and config.adapted != "all":
        return "adapted", f"is {config.adapted}; reptile moves what inner steps move, and the rest would stay random."
    if config.outer_optimizer == "adam" and config.outer_epochs == 1:
        for name in ("clip_range", "inner_kl_penalty"):
            if getattr(config, name):
                return name, (
                    f"is {getattr(config, name)}, but outer_epochs is 1: where the rollouts were collected every ratio "
                    "is 1 and every divergence at its minimum, so it changes no gradient."
                )
    if config.exploration_credit and config.inner_estimator != "reinforce":
        return "exploration_credit", (
            f"is {config.exploration_credit}, but inner_estimator {config.inner_estimator} already credits what an "
            "inner step learns from, through its curvature; only reinforce leaves that to the extra term."
        )
    if config.exploration_credit and config.meta_batch_size < 2:
        return "meta_batch_size", "is 1; exploration_credit compares a task's return with other tasks', so 2 or more."
    return None
