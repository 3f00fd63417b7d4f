"""The recommended run of a few-shot method on a data set: what differs from the defaults."""

from __future__ import annotations

from typing import Any

from metarl.experiment.fewshot_config import FewShotConfig, FewShotValidation
from metarl.fewshot.config import MethodConfig
from metarl.fewshot.methods import METHODS, OUTER, NetworkConfig

_GROUPS = {"network": NetworkConfig, "validation": FewShotValidation, "learner": MethodConfig}

# Finn et al. 2017, section 5.1 and the authors' code: 10 shots in training and 5 in testing, 70,000 iterations.
_SINUSOID: dict[str, Any] = {
    "shots": 10, "queries": 10, "test_shots": 5, "test_queries": 100, "test_steps": 10, "iterations": 70_000,
    "log_every": 100, "keep_every": 10_000, "validation": {"every": 1000, "num_tasks": 600},
    "learner": {"meta_batch_size": 25, "inner_lr": 0.01},
}  # fmt: skip

# Half the published width, and steps that shrink to nothing: what five minutes of one core are best spent on.
_GLYPHS: dict[str, Any] = {
    "queries": 3, "validation": {"every": 500}, "network": {"channels": 32},
    "learner": {"meta_batch_size": 16, "outer_lr": 0.003, "outer_lr_decay": 1.0},
}  # fmt: skip

# SNAIL's published widths are 6 million parameters for 20 classes, of which five minutes see too few tasks.
_NARROW_SNAIL: dict[str, Any] = {"tc_filters": 32, "attention_keys": (64, 64, 64)}

_DIGITS: dict[str, Any] = {**_GLYPHS, "iterations": 500, "validation": {"every": 100}}

# Finn et al. 2017, appendix A.1.
_OMNIGLOT: dict[str, Any] = {"iterations": 60_000, "queries": 1, "keep_every": 5000, "validation": {"every": 500}}
_MINI_IMAGENET: dict[str, Any] = {
    "iterations": 60_000, "queries": 15, "test_steps": 10, "log_every": 5, "keep_every": 5000,
    "validation": {"every": 500}, "network": {"channels": 32, "pooling": True},
    "learner": {"meta_batch_size": 4, "inner_lr": 0.01, "num_inner_steps": 5},
}  # fmt: skip

_FOR_DATASET = {
    "sinusoid": _SINUSOID,
    "glyphs": _GLYPHS,
    "digits": _DIGITS,
    "omniglot": _OMNIGLOT,
    "mini-imagenet": _MINI_IMAGENET,
}

_REPTILE = {"outer_lr": 1.0, "outer_lr_decay": 1.0}

# Step sizes that were learnt for one step may diverge when they are taken again.
_FOR_METHOD: dict[str, dict[str, Any]] = {"meta-sgd": {"test_steps": 1}}

# Iterations that take about 300 CPU-seconds on the machine of docs/fewshot.md.
_FOR_BOTH: dict[tuple[str, str], dict[str, Any]] = {
    ("reptile", "sinusoid"): {"learner": {**_REPTILE, "inner_lr": 0.02, "inner_batch_size": 10}},
    ("meta-lstm", "sinusoid"): {"learner": {"lstm_size": 10, "num_inner_steps": 3}, "iterations": 10_000},
    ("snail", "sinusoid"): {"iterations": 10_000},
    ("maml", "glyphs"): {"iterations": 2800},
    ("fomaml", "glyphs"): {"iterations": 4700},
    ("reptile", "glyphs"): {
        "iterations": 2700, "test_steps": 10, "learner": {**_REPTILE, "inner_lr": 0.3, "meta_batch_size": 8}
    },
    ("meta-sgd", "glyphs"): {"iterations": 2800},
    ("anil", "glyphs"): {"iterations": 4700},
    ("siamese", "glyphs"): {"iterations": 5300},
    ("matching", "glyphs"): {"iterations": 5000},
    ("prototypical", "glyphs"): {"iterations": 5500},
    ("meta-lstm", "glyphs"): {
        "iterations": 1000,
        "learner": {"meta_batch_size": 8, "num_inner_steps": 3, "lstm_size": 4, "inner_lr": 0.4},
    },
    ("snail", "digits"): {"learner": _NARROW_SNAIL},
    ("snail", "glyphs"): {"iterations": 3400, "learner": _NARROW_SNAIL},
}  # fmt: skip

_TWENTY_WAYS: dict[str, dict[str, Any]] = {
    "maml": {"iterations": 4400, "learner": {"meta_batch_size": 4}},
    "prototypical": {"iterations": 5500},
    "matching": {"iterations": 4500},
    "snail": {"iterations": 2800},
}
"""Glyphs with 20 classes to a task, which cost more: fewer queries, and fewer tasks to a step."""


def fewshot_preset(method: str, dataset: str, ways: int = 5) -> FewShotConfig:
    """The recommended run of a method on a data set, before any flag changes it."""
    of_method = {"learner": METHODS[method].settings, **_FOR_METHOD.get(method, {})}
    parts = [_FOR_DATASET[dataset], of_method, _FOR_BOTH.get((method, dataset), {})]
    if dataset == "glyphs" and ways >= 20:
        parts += [{"queries": 1, "learner": {"meta_batch_size": 8}}, _TWENTY_WAYS.get(method, {})]
    if (method, dataset) == ("maml", "omniglot") and ways >= 20:
        parts.append({"test_steps": 5, "learner": {"meta_batch_size": 16, "inner_lr": 0.1, "num_inner_steps": 5}})
    run = {key: value for part in parts for key, value in part.items() if key not in _GROUPS}
    groups = {name: {key: value for part in parts for key, value in part.get(name, {}).items()} for name in _GROUPS}
    if not METHODS[method].takes_steps:
        run.pop("test_steps", None)
    # A data set's inner step size says nothing to a method without inner steps.
    read = {*OUTER, *METHODS[method].reads, *METHODS[method].settings}
    groups["learner"] = {key: value for key, value in groups["learner"].items() if key in read}
    built = {name: kind(**groups[name]) for name, kind in _GROUPS.items()}
    return FewShotConfig(method=method, dataset=dataset, ways=ways, **run, **built)
