"""What defines a run: frozen dataclasses, the presets per family, and their JSON form."""

from __future__ import annotations

import dataclasses
import json
import operator
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from metarl.algorithms.composition import contradiction
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
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


def preset(algorithm: str, family_id: str) -> TrainConfig:
    """The recommended run of an algorithm on a family (`family@variant`), before any flag changes it."""
    named = LEARNERS[algorithm]
    for_learner = _Preset(
        None if named.is_trained else 1,
        {"context_dim": named.context_dim},
        {"inner_lrs": named.finetuning_lrs} | ({} if named.test_steps is None else {"steps": named.test_steps}),
        dict(named.settings),
    )
    parts = [
        _FOR_FAMILY.get(family_id, _Preset()), for_learner, _FOR_BOTH.get((algorithm, family_id), _Preset())
    ]  # fmt: skip

    def merged(name: str) -> dict[str, Any]:
        return {key: value for part in parts for key, value in getattr(part, name).items()}

    learner = LearnerConfig(**merged("learner"))
    return TrainConfig(
        algorithm=algorithm,
        family=family_id,
        iterations=[500, *(part.iterations for part in parts if part.iterations)][-1],
        observe_task=named.observe_task,
        policy=PolicyConfig(**merged("policy")),
        # What is trained is what is validated, unless the family or the learner says otherwise.
        validation=ValidationConfig(**{"steps": max(1, learner.num_inner_steps), **merged("validation")}),
        learner=learner,
    )


def check_device(device: str) -> None:
    """Refuses a device that this machine, or this build of torch, does not have.

    Raises:
        UserError: Saying what would be right.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device cuda: torch {torch.__version__} finds no CUDA device here; use --device cpu, or install torch's "
            "CUDA build (README, section Install)."
        )


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The config as plain data."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(data: Any, path: Path) -> TrainConfig:
    """Rebuilds a config; `path` is named in the error where it does not fit.

    Raises:
        UserError: If a field is unknown, of the wrong type or out of range. One that is missing is newer than the run:
            its default is what the run did.
    """
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a run configuration: it holds a {type(data).__name__}.")
    values = dict(data)
    nested = {"policy": PolicyConfig, "validation": ValidationConfig, "learner": LearnerConfig}
    for name, kind in nested.items():
        values[name] = _typed(kind, values.get(name, {}), f"{path}, under {name}")
    config = _typed(TrainConfig, values, str(path))
    check(config, path)
    return config


_FLAGS = {f.name for kind in (PolicyConfig, LearnerConfig) for f in dataclasses.fields(kind)}

T = TypeVar("T")


def _typed(kind: type[T], values: Any, where: str) -> T:
    """Builds a dataclass from JSON values, each of the type its field says."""
    fields = typing.get_type_hints(kind)
    if not isinstance(values, dict) or set(values) - set(fields):
        wrong = ", ".join(sorted(set(values) - set(fields))) if isinstance(values, dict) else "all of them"
        raise UserError(f"{where}: these fields are unknown to this version of metarl: {wrong}.")
    return kind(**{name: _value(value, fields[name], f"{where}: {name}") for name, value in values.items()})


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


def check(config: TrainConfig, source: Path | None = None) -> None:
    """Refuses values that make no sense.

    Args:
        config: The settings.
        source: The file they stand in; None for the command line.

    Raises:
        UserError: Naming the first field that is out of range and what would be right.
    """

    def label(field: str) -> str:
        """`learner.inner_lr` as the person knows it: where it stands in the file, or the flag."""
        if source is not None:
            return f"{source}: {field}"
        return "--" + field.removeprefix("learner.").removeprefix("policy.").replace("_", "-")

    def words(sentence: str) -> str:
        """Fields named in a sentence, as the flags they are on the command line."""
        if source is not None:
            return sentence
        return re.sub(
            r"\b[a-z]+(_[a-z]+)+\b",
            lambda match: "--" + match[0].replace("_", "-") if match[0] in _FLAGS else match[0],
            sentence,
        )

    learner, policy, infinity = config.learner, config.policy, float("inf")
    rules: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
        "positive": (
            lambda x: 0 < x < infinity,
            (
                *("iterations", "keep_every", "policy.min_std", "validation.num_tasks"),
                *("learner.meta_batch_size", "learner.episodes_per_task", "learner.cg_iters"),
                *("learner.line_search_steps", "learner.max_kl", "learner.inner_lr"),
                *("learner.later_lr_factor", "learner.outer_lr", "learner.outer_epochs"),
            ),
        ),
        "zero or more": (
            lambda x: 0 <= x < infinity,
            (
                *("num_threads", "validation.every", "validation.steps", "learner.steps_per_task"),
                "learner.num_inner_steps",
                *("learner.cg_damping", "learner.cg_tolerance", "learner.chunk_size"),
                *("learner.memory_budget_mb", "learner.exploration_credit", "learner.inner_kl_penalty"),
                "policy.context_dim",
            ),
        ),
        "zero or more and below 2**63": (lambda x: 0 <= x < 2**63, ("seed",)),
        "above 0 and at most 1": (
            lambda x: 0 < x <= 1,
            ("learner.gamma", "learner.fvp_fraction", "learner.line_search_decay"),
        ),
        "zero or more and below 1": (lambda x: 0 <= x < 1, ("learner.clip_range",)),
        "between 0 and 1": (lambda x: 0 <= x <= 1, ("learner.gae_lambda",)),
    }
    for rule, (good, names) in rules.items():
        for name in names:
            value = operator.attrgetter(name)(config)
            if not good(value):
                raise UserError(f"{label(name)} is {value}; it must be {rule}.")
    if min(policy.hidden_sizes, default=1) < 1:
        sizes = " ".join(map(str, policy.hidden_sizes))
        raise UserError(f"{label('policy.hidden_sizes')} is {sizes}; each must be positive.")
    problem = contradiction(learner)
    if problem is None and (learner.adapted == "context") != (policy.context_dim > 0):
        problem = (
            "adapted",
            (
                f"is {learner.adapted} and context_dim is {policy.context_dim}; a context needs a context_dim above 0, "
                "and nothing else does."
            ),
        )
    if problem is not None:
        name, says = problem
        if source is None and config.algorithm in LEARNERS:
            set_by = getattr(preset(config.algorithm, config.family).learner, name)
            if set_by == getattr(learner, name):
                says += f" It is the preset's; --{name.replace('_', '-')} changes it."
            elif name == "step_weights":
                says += " The flag without a value clears it."
        raise UserError(f"{label('learner.' + name)} {words(says)}")
    if config.validation.inner_lrs and learner.learned_lr != "no":
        raise UserError(
            f"{label('validation.inner_lrs')} has step sizes to choose from, but the learner learns its own "
            + words(f"(learned_lr {learner.learned_lr}).")
        )
    if not all(0 < value < infinity for value in config.validation.inner_lrs):
        sizes = " ".join(map(str, config.validation.inner_lrs))
        raise UserError(f"{label('validation.inner_lrs')} is {sizes}; each must be positive.")
    if not policy.min_std <= policy.init_std < infinity:
        least = "min_std" if source else "--min-std"
        raise UserError(
            f"{label('policy.init_std')} is {policy.init_std}; it must be a number and at least {least} "
            f"({policy.min_std})."
        )
    if policy.activation not in ("relu", "tanh"):
        raise UserError(f"{label('policy.activation')} is {policy.activation!r}; it must be relu or tanh.")
    if config.algorithm not in LEARNERS:
        prefix = f"{source}: unknown" if source else "Unknown"
        raise UserError(f"{prefix} algorithm {config.algorithm!r}. Known: {', '.join(LEARNERS)}.")
