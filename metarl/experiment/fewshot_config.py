"""What defines a few-shot run, and the rules: the counterpart of `config` and `checks`."""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metarl.algorithms.composition import Ranges, out_of_range
from metarl.experiment.checks import Words
from metarl.experiment.config import from_json, is_fewshot
from metarl.experiment.errors import UserError
from metarl.experiment.run_directory import read_config_file
from metarl.fewshot.config import MethodConfig
from metarl.fewshot.methods import METHODS, NetworkConfig, contradiction

DATASETS: dict[str, str] = {
    "sinusoid": "regression of sine waves (Finn et al. 2017)",
    "glyphs": "characters of many scripts, drawn from matplotlib's fonts: a stand-in for Omniglot without a download",
    "digits": "scikit-learn's 8x8 digits: 0 to 4 for training, 5 to 9 for testing",
    "omniglot": "handwritten characters (Lake et al. 2015), in data/omniglot or --data-dir",
    "mini-imagenet": "photographs (Ravi and Larochelle's split), in data/mini-imagenet or --data-dir",
}
"""Data sets with one line each."""

MOST_STEPS = 1000
"""Inner steps that a run may take."""

DOWNLOADED = ("omniglot", "mini-imagenet")
"""Those that are not part of metarl."""


@dataclass(frozen=True)
class FewShotValidation:
    """How the best checkpoint is chosen: on a fixed draw of tasks of the validation split, never on test tasks.

    Attributes:
        every: Iterations between validations, and after the last one (0: never; then `best` is the last).
        num_tasks: Tasks in the draw.
    """

    every: int = 100
    num_tasks: int = 100


@dataclass(frozen=True)
class FewShotConfig:
    """A few-shot training run.

    Attributes:
        method: Few-shot learner.
        dataset: Data set.
        data_dir: Where the data set is, if it is one to download; data/<data set> if not given.
        omniglot_split: Omniglot: 1200 characters for training (vinyals), or the background alphabets (lake).
        ways: Classes of a task.
        shots: Support examples of each class (of a task, in regression).
        queries: Query examples of each class in training (of a task, in regression).
        test_shots: Shots in validation and evaluation; 0: as in training.
        test_queries: Queries in validation and evaluation.
        test_steps: Inner steps in validation and evaluation, of a method that takes steps.
        iterations: Outer steps in all; a resumed run continues up to it.
        seed: Seed of the initial weights and of the tasks.
        num_threads: Worker threads; 0 takes the cores this process may use.
        log_every: Iterations to a line of metrics and a checkpoint last.pt.
        keep_every: Iterations between checkpoints that are kept (checkpoints/iteration_N.pt).
        network: The network.
        validation: How the best checkpoint is chosen.
        learner: The method's own settings.
    """

    method: tyro.conf.Positional[str] = "maml"
    dataset: str = "glyphs"
    data_dir: str = ""
    omniglot_split: Literal["vinyals", "lake"] = "vinyals"
    ways: int = 5
    shots: int = 1
    queries: int = 5
    test_shots: int = 0
    test_queries: int = 15
    test_steps: int = 3
    iterations: int = 1000
    seed: int = 0
    num_threads: int = 0
    log_every: int = 10
    keep_every: int = 1000
    network: Annotated[NetworkConfig, tyro.conf.arg(name="")] = field(default_factory=NetworkConfig)
    validation: FewShotValidation = field(default_factory=FewShotValidation)
    learner: Annotated[MethodConfig, tyro.conf.arg(name="")] = field(default_factory=MethodConfig)

    @property
    def is_regression(self) -> bool:
        """Whether targets are real numbers."""
        return self.dataset == "sinusoid"

    @property
    def num_test_steps(self) -> int:
        """Inner steps in validation and evaluation; 0 for a method that takes none."""
        return self.test_steps if METHODS[self.method].takes_steps else 0

    @property
    def setting(self) -> str:
        """What a task is, in words: "5-way 1-shot"."""
        shots = self.test_shots or self.shots
        return f"{shots}-shot" if self.is_regression else f"{self.ways}-way {shots}-shot"


_INFINITY = float("inf")
_RANGES: Ranges = {
    "positive": (
        lambda x: 0 < x < _INFINITY,
        (
            *("shots", "queries", "test_queries", "iterations", "log_every", "keep_every", "network.channels"),
            *("validation.num_tasks", "learner.meta_batch_size", "learner.inner_lr", "learner.outer_lr"),
            *("learner.inner_batch_size", "learner.margin", "learner.lstm_size", "learner.tc_filters"),
        ),
    ),
    "2 or more": (lambda x: 2 <= x < _INFINITY, ("ways",)),
    "zero or more": (
        lambda x: 0 <= x < _INFINITY,
        ("test_shots", "num_threads", "validation.every", "learner.chunk_size"),
    ),
    # Every step is kept.
    "between 0 and 1000": (lambda x: 0 <= x <= MOST_STEPS, ("test_steps", "learner.num_inner_steps")),
    "between 0 and 1": (lambda x: 0 <= x <= 1, ("learner.outer_lr_decay",)),
    "zero or more and below 2**63": (lambda x: 0 <= x < 2**63, ("seed",)),
}


def check_fewshot(config: FewShotConfig, source: Path | None = None) -> None:
    """Refuses values that make no sense.

    Args:
        config: The settings.
        source: The file they stand in; None for the command line.

    Raises:
        UserError: Naming the first field that is wrong and what would be right.
    """
    words = Words(
        source, {f.name for kind in (FewShotConfig, MethodConfig, NetworkConfig) for f in dataclasses.fields(kind)}
    )
    for what, value, known in (("method", config.method, METHODS), ("data set", config.dataset, DATASETS)):
        if value not in known:
            prefix = f"{source}: unknown" if source else "Unknown"
            raise UserError(f"{prefix} {what} {value!r}. Known: {', '.join(known)}.")
    problem = out_of_range(config, _RANGES)
    if problem is not None:
        raise UserError(f"{words.label(problem[0])} {problem[1]}")
    for name, least in (("network.hidden_sizes", 1), ("learner.attention_keys", 2)):
        widths = operator.attrgetter(name)(config)
        if min(widths, default=0) < least:
            given = " ".join(map(str, widths)) or "empty"
            raise UserError(f"{words.label(name)} is {given}; there must be one, and each at least {least}.")
    if config.is_regression and not METHODS[config.method].regression:
        able = ", ".join(name for name, named in METHODS.items() if named.regression)
        raise UserError(f"{config.method} compares classes and cannot do regression ({config.dataset}); {able} can.")
    # Of a file nobody is misled by a setting that nothing reads; a default may have changed since.
    if source is None:
        _check_read(config, words)


def _check_read(config: FewShotConfig, words: Words) -> None:
    """Refuses settings that contradict the data set or the method, or that they would ignore."""
    images = ("ways", "network.channels", "network.pooling", "network.batch_norm")
    unread = {
        config.dataset: (
            *(images if config.is_regression else ("network.hidden_sizes",)),
            *(() if config.dataset == "omniglot" else ("omniglot_split",)),
            *(() if config.dataset in DOWNLOADED else ("data_dir",)),
        ),
        config.method: () if METHODS[config.method].takes_steps else ("test_steps",),
    }
    for what, names in unread.items():
        for name in names:
            value, usual = (operator.attrgetter(name)(c) for c in (config, FewShotConfig()))
            if value != usual:
                raise UserError(f"{words.label(name)} is {value}; {what} does not read it.")
    wrong = contradiction(config.method, config.learner)
    if wrong is not None:
        raise UserError(f"{words.label('learner.' + wrong[0])} {words.within(wrong[1])}")


def read_fewshot_config(path: Path) -> FewShotConfig:
    """The config of a run of train_fewshot.py.

    Raises:
        UserError: If the directory is not one.
    """
    data, file = read_config_file(path)
    if not is_fewshot(data):
        raise UserError(f"{path} is a run of train.py; name a run of train_fewshot.py.")
    config = from_json(FewShotConfig, data, file)
    check_fewshot(config, file)
    return config
