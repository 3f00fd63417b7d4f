"""What a run's settings may be: values that make no sense are refused in one sentence."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from metarl.algorithms.composition import Ranges, contradiction, out_of_range
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
from metarl.experiment.config import PolicyConfig, TrainConfig, from_json, is_fewshot
from metarl.experiment.errors import UserError
from metarl.experiment.presets import preset
from metarl.experiment.run_directory import read_config_file

_INFINITY = float("inf")
_FLAGS = {f.name for kind in (PolicyConfig, LearnerConfig) for f in dataclasses.fields(kind)}
_RANGES: Ranges = {
    "positive": (lambda x: 0 < x < _INFINITY, ("iterations", "keep_every", "policy.min_std", "validation.num_tasks")),
    "zero or more": (
        lambda x: 0 <= x < _INFINITY,
        ("num_threads", "validation.every", "validation.steps", "policy.context_dim"),
    ),
    "zero or more and below 2**63": (lambda x: 0 <= x < 2**63, ("seed",)),
}
"""Of everything but the learner, whose ranges are in `composition`."""


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
            r"\b[a-z]+(_[a-z]+)+\b",
            lambda match: "--" + match[0].replace("_", "-") if match[0] in self.flags else match[0],
            sentence,
        )


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


def check(config: TrainConfig, source: Path | None = None) -> None:
    """Refuses values that make no sense.

    Args:
        config: The settings.
        source: The file they stand in; None for the command line.

    Raises:
        UserError: Naming the first field that is out of range and what would be right.
    """
    words = Words(source, _FLAGS)
    problem = out_of_range(config, _RANGES)
    if problem is not None:
        raise UserError(f"{words.label(problem[0])} {problem[1]}")
    if config.algorithm not in LEARNERS:
        prefix = f"{source}: unknown" if source else "Unknown"
        raise UserError(f"{prefix} algorithm {config.algorithm!r}. Known: {', '.join(LEARNERS)}.")
    _check_policy(config.policy, words)
    _check_composition(config, words)


def _check_policy(policy: PolicyConfig, words: Words) -> None:
    if min(policy.hidden_sizes, default=1) < 1:
        sizes = " ".join(map(str, policy.hidden_sizes))
        raise UserError(f"{words.label('policy.hidden_sizes')} is {sizes}; each must be positive.")
    if not policy.min_std <= policy.init_std < _INFINITY:
        raise UserError(
            f"{words.label('policy.init_std')} is {policy.init_std}; it must be a number and at least "
            f"{words.within('min_std')} ({policy.min_std})."
        )
    if policy.activation not in ("relu", "tanh"):
        raise UserError(f"{words.label('policy.activation')} is {policy.activation!r}; it must be relu or tanh.")


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
            if getattr(preset(config.algorithm, config.family).learner, name) == getattr(learner, name):
                says += f" ({config.algorithm} sets it so.)"
            if name == "step_weights":
                says += " The flag without a value clears it."
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
    if not all(0 < value < _INFINITY for value in validation.inner_lrs):
        sizes = " ".join(map(str, validation.inner_lrs))
        raise UserError(f"{words.label('validation.inner_lrs')} is {sizes}; each must be positive.")
