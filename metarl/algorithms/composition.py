"""What composes: the outer optimisers by name, and which settings mean nothing together."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TypeAlias

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

_RANGES: Ranges = {
    "positive": (
        lambda x: 0 < x < math.inf,
        (
            *("meta_batch_size", "episodes_per_task", "cg_iters", "line_search_steps", "max_kl"),
            *("inner_lr", "later_lr_factor", "outer_lr", "outer_epochs"),
        ),
    ),
    "zero or more": (
        lambda x: 0 <= x < math.inf,
        (
            *("steps_per_task", "num_inner_steps", "cg_damping", "cg_tolerance", "chunk_size", "memory_budget_mb"),
            *("exploration_credit", "inner_kl_penalty"),
        ),
    ),
    "above 0 and at most 1": (lambda x: 0 < x <= 1, ("gamma", "fvp_fraction", "line_search_decay")),
    "zero or more and below 1": (lambda x: 0 <= x < 1, ("clip_range",)),
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
    problem = out_of_range(config, _RANGES)
    if problem is not None:
        return problem
    for name, known in (("inner_estimator", ESTIMATORS), ("outer_optimizer", OUTER_OPTIMIZERS)):
        if getattr(config, name) not in known:
            return name, f"is {getattr(config, name)!r}; it must be one of {', '.join(known)}."
    return _unread(config) or _wrong_step_weights(config) or _without_inner_steps(config) or _without_effect(config)


def out_of_range(config: object, ranges: Ranges) -> tuple[str, str] | None:
    """The first field whose value is not what it must be, and a sentence's rest that says so."""
    for rule, (good, names) in ranges.items():
        for name in names:
            value = operator.attrgetter(name)(config)
            if not good(value):
                return name, f"is {value}; it must be {rule}."
    return None


def _unread(config: LearnerConfig) -> tuple[str, str] | None:
    """A setting of another outer optimiser must keep its default: it would do nothing."""
    read = OUTER_OPTIMIZERS[config.outer_optimizer].reads
    for field in fields(config):
        readers = [name for name, optimizer in OUTER_OPTIMIZERS.items() if field.name in optimizer.reads]
        value = getattr(config, field.name)
        if readers and field.name not in read and value != field.default:
            return field.name, (
                f"is {value}; with outer_optimizer {config.outer_optimizer} it does nothing: only "
                f"{' and '.join(readers)} read{'s' if len(readers) == 1 else ''} it. It must be "
                f"{field.default or 'empty'} here."
            )
    return None


def _wrong_step_weights(config: LearnerConfig) -> tuple[str, str] | None:
    weights = config.step_weights
    if not weights or (
        len(weights) == config.num_inner_steps
        and all(0 <= weight < math.inf for weight in weights)
        and 0 < sum(weights) < math.inf
    ):
        return None
    return "step_weights", (
        f"is {' '.join(map(str, weights))}; it must hold num_inner_steps ({config.num_inner_steps}) numbers, none "
        "negative and not all zero."
    )


def _without_inner_steps(config: LearnerConfig) -> tuple[str, str] | None:
    if config.num_inner_steps > 0:
        return None
    defaults = {field.name: field.default for field in fields(config)}
    for name, why in _NEEDS_INNER_STEPS.items():
        if getattr(config, name) != defaults[name]:
            return name, f"is {getattr(config, name)}, but num_inner_steps is 0: {why}."
    if config.outer_optimizer == "reptile":
        return "num_inner_steps", "is 0; reptile moves to where inner steps lead, so it needs one or more."
    return None


def _without_effect(config: LearnerConfig) -> tuple[str, str] | None:
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
