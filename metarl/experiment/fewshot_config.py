"""What defines a few-shot run, and the rules: the counterpart of `config` and `checks`."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metarl.algorithms.composition import (
    FAR,
    LARGEST,
    MOST,
    Idle,
    Ranges,
    as_words,
    out_of_range,
    without_effect,
)
from metarl.experiment.checks import MOST_THREADS, Words, check_layers
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


_RANGES: Ranges = {
    "positive and below 2**63": (lambda x: 0 < x < FAR, ("iterations", "log_every", "keep_every")),
    "zero or more and below 2**63": (lambda x: 0 <= x < FAR, ("validation.every", "seed")),
    "positive and below 2**31": (
        lambda x: 0 < x < MOST,
        (
            *("shots", "queries", "test_queries", "network.channels", "network.hidden_sizes", "validation.num_tasks"),
            *("learner.meta_batch_size", "learner.inner_batch_size", "learner.lstm_size", "learner.tc_filters"),
        ),
    ),
    "positive and at most 1e38": (
        lambda x: 0 < x <= LARGEST,
        ("learner.inner_lr", "learner.margin"),
    ),
    # Adam divides it by as little as a tenth.
    "positive and at most 1e37": (lambda x: 0 < x <= 1e37, ("learner.outer_lr",)),
    "2 or more and below 2**31": (lambda x: 2 <= x < MOST, ("ways", "learner.attention_keys")),
    "zero or more and below 2**31": (lambda x: 0 <= x < MOST, ("test_shots", "learner.chunk_size")),
    "between 0 and 1024": (lambda x: 0 <= x <= MOST_THREADS, ("num_threads",)),
    # Every step is kept.
    "between 0 and 1000": (lambda x: 0 <= x <= MOST_STEPS, ("test_steps", "learner.num_inner_steps")),
    "between 0 and 1": (lambda x: 0 <= x <= 1, ("learner.outer_lr_decay",)),
}

_IDLE: Sequence[Idle] = (
    (
        *("validation.num_tasks", lambda c: not c.validation.every),
        "nothing is validated where validation.every is 0; leave it out, or give validation.every a number",
    ),
    (
        *("learner.margin", lambda c: c.learner.siamese_loss == "cross_entropy"),
        "siamese_loss cross_entropy has no margin; leave it out",
    ),
    *(
        (
            *(f"learner.{name}", lambda c: c.method == "maml" and not c.learner.num_inner_steps),
            "num_inner_steps is 0, so that training takes no step through which it could act; leave it out",
        )
        for name in ("first_order", "learned_lr")
    ),
)
"""Settings that nothing reads under others. What a method never reads is in `metarl.fewshot.methods`."""


def fewshot_words(source: Path | None = None) -> Words:
    """The fields of a few-shot run as the person knows them."""
    kinds = (FewShotConfig, MethodConfig, NetworkConfig)
    return Words(source, {f.name for kind in kinds for f in dataclasses.fields(kind)})


def check_fewshot(config: FewShotConfig, source: Path | None = None, usual: FewShotConfig | None = None) -> None:
    """Refuses values that make no sense.

    Args:
        config: The settings.
        source: The file they stand in; None for the command line.
        usual: See `metarl.experiment.checks.check`.

    Raises:
        UserError: Naming the first field that is wrong and what would be right.
    """
    words = fewshot_words(source)
    for what, value, known in (("method", config.method, METHODS), ("data set", config.dataset, DATASETS)):
        if value not in known:
            prefix = f"{source}: unknown" if source else "Unknown"
            raise UserError(f"{prefix} {what} {value!r}. Known: {', '.join(known)}.")
    problem = out_of_range(config, _RANGES)
    if problem is not None:
        raise UserError(f"{words.label(problem[0])} {problem[1]}")
    for name in ("network.hidden_sizes", "learner.attention_keys"):
        widths = operator.attrgetter(name)(config)
        if not widths:
            raise UserError(f"{words.label(name)} is empty; there must be at least one.")
        check_layers(name, widths, words)
    if config.is_regression and not METHODS[config.method].regression:
        able = ", ".join(name for name, named in METHODS.items() if named.regression)
        raise UserError(f"{config.method} compares classes and cannot do regression ({config.dataset}); {able} can.")
    # Of a file nobody is misled by a setting that nothing reads; a default may have changed since.
    if source is None:
        _check_read(config, words)
    idle = None if usual is None else without_effect(config, usual, _IDLE)
    if idle is not None:
        raise UserError(f"{words.label(idle[0])} {words.within(idle[1])}")


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
                raise UserError(f"{words.label(name)} is {as_words(value)}; {what} does not read it.")
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
