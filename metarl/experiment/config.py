"""What defines a run: frozen dataclasses and their JSON form. `presets` has recommended ones, `checks` the rules."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from metarl.algorithms.config import LearnerConfig
from metarl.experiment.errors import UserError


@dataclass(frozen=True)
class PolicyConfig:
    """The policy network.

    Attributes:
        hidden_sizes: Width of each hidden layer.
        activation: Between layers: relu (the published runs) or tanh.
        init_std: Initial standard deviation of the action, in policy units ([-1, 1] spans the action range).
        min_std: Smallest standard deviation.
        context_dim: Length of the context, a parameter that stands beside the observation and that CAVIA adapts; 0 for
            none.
    """

    hidden_sizes: tuple[int, ...] = (100, 100)
    activation: Literal["relu", "tanh"] = "tanh"
    init_std: float = 1.0
    min_std: float = 1e-6
    context_dim: int = 0


@dataclass(frozen=True)
class ValidationConfig:
    """How the best checkpoint is chosen: adaptation on a fixed draw of TRAINING tasks, never on test tasks.

    Attributes:
        every: Iterations between validations, and after the last one (0: never; then `best` is the last).
        num_tasks: Tasks in the draw.
        steps: Inner steps; the score is the mean return over steps 1 to `steps` (of the policy as it is, if 0).
        inner_lrs: Inner step sizes to try; the one with the best score is the run's step size in evaluation. Empty:
            the learner's own.
    """

    every: int = 10
    num_tasks: int = 20
    steps: int = 1
    inner_lrs: tuple[float, ...] = ()


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        algorithm: Learner.
        family: Task family, `family` or `family@variant`.
        iterations: Iterations in all; a resumed run continues up to it.
        seed: Seed of the initial policy, of tasks and of noise.
        device: Where environments, policy and update live: cpu, or cuda (a GPU; MuJoCo families need the extra `gpu`).
        observe_task: Show the policy its task: the oracle.
        num_threads: Worker threads of the update; 0 takes the cores this process may use.
        keep_every: Iterations between checkpoints that are kept (checkpoints/iteration_N.pt); last.pt is written
            after every iteration.
        policy: The policy network.
        validation: How the best checkpoint is chosen (a run extended later also validated at its former end).
        learner: The learner's own settings.
    """

    algorithm: tyro.conf.Positional[str] = "maml-trpo"
    family: str = "navigation-2d"
    iterations: int = 100
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    observe_task: bool = False
    num_threads: int = 0
    keep_every: int = 50
    policy: Annotated[PolicyConfig, tyro.conf.arg(name="")] = field(default_factory=PolicyConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    learner: Annotated[LearnerConfig, tyro.conf.arg(name="")] = field(default_factory=LearnerConfig)

    @property
    def log_every(self) -> int:
        """Iterations to a line of metrics and a checkpoint."""
        return 1

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must be of to belong to this run."""
        return {"algorithm": self.algorithm, "family": self.family}


def check_device(device: str) -> None:
    """Refuses a device that this machine, or this build of torch, does not have.

    Raises:
        UserError: Saying what would be right.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device cuda: torch {torch.__version__} finds no CUDA device here; use --device cpu (a run begun on a "
            "GPU resumes on one only), or install torch's CUDA build (README, section Install)."
        )


FORMAT = 2
"""Version of config.json, raised when a default changes or a field is renamed; a file that says none is of version 1.

2: a step budget takes the place of a number of episodes, instead of standing beside one that nothing reads.
"""

_FORMER_DEFAULTS: dict[int, dict[str, dict[str, Any]]] = {1: {}}
"""Version -> class -> the defaults that the next version changed: what a run did whose config lacks the field."""


def to_json(config: Any) -> dict[str, Any]:
    """A run's config as plain data."""
    return {"format": FORMAT, **json.loads(json.dumps(dataclasses.asdict(config)))}


def is_fewshot(data: Any) -> bool:
    """Whether a config's JSON is that of a few-shot run."""
    return isinstance(data, dict) and "method" in data


T = TypeVar("T")


def from_json(kind: type[T], data: Any, path: Path) -> T:
    """Rebuilds a run's config; `path` is named in the error where it does not fit.

    Args:
        kind: Its class; fields that are dataclasses themselves are rebuilt likewise.
        data: What the file holds. A field that is missing takes the default of the file's own version.
        path: The file.

    Raises:
        UserError: If a field is unknown or of the wrong type, or the file is of a later version than this one.
    """
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a run configuration: it holds a {type(data).__name__}.")
    values = dict(data)
    version = _version(values.pop("format", 1), path)
    for name, of_field in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(of_field):
            group = _typed(of_field, values.get(name, {}), version, f"{path}, under {name}")
            if version == 1 and isinstance(group, LearnerConfig) and group.steps_per_task:
                group = dataclasses.replace(group, episodes_per_task=LearnerConfig.episodes_per_task)
            values[name] = group
    return _typed(kind, values, version, str(path))


def _version(version: Any, path: Path) -> int:
    if type(version) is not int or version < 1:
        raise UserError(f"{path}: format is {version!r}; it must be a whole number from 1 to {FORMAT}.")
    if version > FORMAT:
        raise UserError(
            f"{path} is of format {version}, and this version of metarl knows formats up to {FORMAT}: the run was made "
            "by a later one; update metarl."
        )
    return version


def _defaults(kind: type, version: int) -> dict[str, Any]:
    """The defaults of a class that were others in a version of config.json than they are now."""
    found: dict[str, Any] = {}
    for later in range(FORMAT - 1, version - 1, -1):
        found |= _FORMER_DEFAULTS[later].get(kind.__name__, {})
    return found


def _typed(kind: Any, values: Any, version: int, where: str) -> Any:
    """Builds a dataclass from JSON values, each of the type its field says."""
    fields = typing.get_type_hints(kind)
    if not isinstance(values, dict) or set(values) - set(fields):
        wrong = ", ".join(sorted(set(values) - set(fields))) if isinstance(values, dict) else "all of them"
        raise UserError(f"{where}: these fields are unknown to this version of metarl: {wrong}.")
    found = {name: _value(value, fields[name], f"{where}: {name}") for name, value in values.items()}
    return kind(**{**_defaults(kind, version), **found})


def _value(value: Any, wanted: Any, where: str) -> Any:
    """A JSON value as type `wanted`: a class, a `Literal`, or a tuple of any length."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Literal:
        if value not in inner:
            raise UserError(f"{where} is {value!r}; it must be {' or '.join(map(str, inner))}.")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} is {value!r}; it must be a list.")
        return tuple(_value(item, inner[0], f"{where}, an item,") for item in value)
    if wanted is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if type(value) is not wanted:
        raise UserError(f"{where} is {value!r}; it must be of type {wanted.__name__}.")
    return value
