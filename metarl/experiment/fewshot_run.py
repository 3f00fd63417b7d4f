"""A few-shot run: its tasks, its learner, what its best checkpoint is chosen by, and its evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from metarl.evaluation import AdaptationCurve
from metarl.experiment.checkpoint import read_checkpoint
from metarl.experiment.errors import UserError, one_line
from metarl.experiment.fewshot_config import DOWNLOADED, FewShotConfig, fewshot_words, read_fewshot_config
from metarl.experiment.fewshot_sizes import check_fewshot_fits
from metarl.experiment.loading import find_checkpoint
from metarl.experiment.progress import status
from metarl.experiment.run_directory import RunDirectory
from metarl.experiment.trainer import Trainer
from metarl.fewshot.data.digits import load_digits
from metarl.fewshot.data.glyphs import load_glyphs
from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.data.mini_imagenet import load_mini_imagenet
from metarl.fewshot.data.omniglot import load_omniglot
from metarl.fewshot.episodes import Episodes
from metarl.fewshot.evaluation import evaluate_method
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.method import Method
from metarl.fewshot.methods import METHODS, Parts, make_chunks
from metarl.fewshot.sinusoid import Sinusoid
from metarl.fewshot.tasks import Split, TaskSource
from metarl.types import Params

VALIDATION_SEED = 0
"""Task seed of the validation draw, which has a split of its own."""

EVALUATION_TASKS = 600
"""Test tasks of an evaluation."""

_HELD_TASKS, _HELD_BYTES = 100, 256 * 2**20
"""Tasks of an evaluation that are held at once: so many, if they take no more than that."""


def load_images(config: FewShotConfig) -> ImageClasses:
    """The images of a run's data set.

    Raises:
        UserError: If they are missing or unusable.
    """
    folder = config.data_dir or f"data/{config.dataset}"
    loaders = {
        "glyphs": load_glyphs,
        "digits": load_digits,
        "omniglot": lambda: load_omniglot(folder, config.omniglot_split),
        "mini-imagenet": lambda: load_mini_imagenet(folder),
    }
    try:
        with status(f"loading {config.dataset} ..."):
            return loaders[config.dataset]()
    except (ValueError, ImportError, FileNotFoundError) as error:
        hint = " Where it is, --data-dir says." if config.dataset in DOWNLOADED and not config.data_dir else ""
        raise UserError(f"{config.dataset}: {one_line(error)}{hint}") from None


def make_source(config: FewShotConfig, images: ImageClasses | None = None, *, test: bool = False) -> TaskSource:
    """The tasks of a run.

    Args:
        config: The run's settings.
        images: Its images, where they are loaded already.
        test: With the shots and queries of validation and evaluation instead of training's.

    Raises:
        UserError: If the data set has not so many classes or images.
    """
    shots = (config.test_shots or config.shots) if test else config.shots
    queries = config.test_queries if test else config.queries
    if config.is_regression:
        return Sinusoid(shots, queries)
    try:
        return Episodes(images or load_images(config), config.ways, shots, queries)
    except ValueError as error:
        raise UserError(one_line(error)) from None


def make_method(config: FewShotConfig, source: TaskSource) -> Method:
    """The method of a run, with its initial numbers.

    Raises:
        UserError: If the settings do not fit the data.
    """
    # What reads a whole support set at once must be large enough for that of the tests, too.
    num_support = max(config.shots, config.test_shots) * (1 if config.is_regression else config.ways)
    try:
        return METHODS[config.method].build(Parts(source, config.network, config.learner, num_support, config.seed))
    except ValueError as error:
        raise UserError(one_line(error)) from None


def make_fewshot_learner(config: FewShotConfig, source: TaskSource) -> FewShotLearner:
    """The learner of a run, before its first iteration."""
    return FewShotLearner(
        make_method(config, source),
        source,
        config.learner,
        iterations=config.iterations,
        seed=config.seed,
        chunks=make_chunks(source, config.learner, config.num_threads or None),
    )


def make_fewshot_trainer(
    learner: FewShotLearner, test_source: TaskSource, config: FewShotConfig, run: RunDirectory, resume: bool
) -> Trainer:
    """The training of a learner; see `Trainer`."""
    validation = FewShotValidator(learner, test_source, config)
    return Trainer(learner, validation, config, run, resume, run_identity(config, test_source), describe_tasks)


def run_identity(config: FewShotConfig, source: TaskSource) -> dict[str, str]:
    """What a checkpoint must be of to belong to a run: with other data, test tasks might hold what was trained on."""
    return {"method": config.method, "dataset": config.dataset, "data": source.fingerprint}


def describe_tasks(metrics: Mapping[str, float]) -> str:
    """Loss, score on queries and speed, for the progress line."""
    scored = f"score {metrics['score']:.3f}  " if "score" in metrics else ""
    return f"loss {metrics['loss']:.4f}  {scored}{metrics['time/tasks_per_second']:,.0f} tasks/s"


@final
class FewShotValidator:
    """The score on a fixed draw of tasks of the validation split, mean over the steps; see `Validation`."""

    def __init__(self, learner: FewShotLearner, source: TaskSource, config: FewShotConfig) -> None:
        self._learner, self._source, self._config = learner, source, config

    def __call__(self) -> tuple[float, dict[str, float]]:
        learner, num_tasks = self._learner, self._config.validation.num_tasks
        curve = evaluate_on(
            learner.method, learner.params, learner.buffers, self._source, "validation", num_tasks, VALIDATION_SEED,
            self._config.num_test_steps, self._config,
        )  # fmt: skip
        score = float(curve.mean[1:].mean() if len(curve.mean) > 1 else curve.mean[0])
        metrics = {f"validation/score_step_{k}": float(value) for k, value in enumerate(curve.mean)}
        return (-score if self._config.is_regression else score), metrics

    def state_dict(self) -> dict[str, Any]:
        """There is nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """There is no state."""


def evaluate_on(
    method: Method,
    params: Params,
    buffers: Params,
    source: TaskSource,
    split: Split,
    num_tasks: int,
    seed: int,
    num_steps: int,
    config: FewShotConfig,
) -> AdaptationCurve:
    """Scores on tasks 0 to `num_tasks - 1` of a split, drawn and dropped some at a time."""
    held = min(_HELD_TASKS, max(1, _HELD_BYTES // (4 * source.num_examples * math.prod(source.input_shape))))
    chunks = make_chunks(source, config.learner, config.num_threads or None)
    scores: list[Tensor] = []
    for start in range(0, num_tasks, held):
        tasks = source.sample(min(held, num_tasks - start), split, seed, start)
        scores.append(evaluate_method(method, params, buffers, tasks, num_steps, chunks).returns)
    return AdaptationCurve(torch.cat(scores), env_steps=0)


@dataclass(frozen=True)
class LoadedFewShotRun:
    """A trained few-shot method.

    Attributes:
        path: The run directory.
        config: Its settings, with the shots asked for.
        source: Its tasks, as tested.
        method: The method.
        params: Meta-parameters of the checkpoint.
        buffers: Running statistics of the checkpoint.
        checkpoint: Which checkpoint it is.
        iteration: Iterations behind it.
    """

    path: Path
    config: FewShotConfig
    source: TaskSource
    method: Method
    params: Params
    buffers: Params
    checkpoint: str
    iteration: int

    def evaluate(self, num_tasks: int, num_steps: int, seed: int = 0) -> AdaptationCurve:
        """Scores on `num_tasks` tasks of the test split after 0 to `num_steps` steps."""
        with status(f"predicting on {num_tasks} tasks ..."):
            return evaluate_on(
                self.method, self.params, self.buffers, self.source, "test", num_tasks, seed, num_steps, self.config
            )


def load_fewshot_run(path: Path, checkpoint: str = "best", shots: int | None = None) -> LoadedFewShotRun:
    """Loads a run of train_fewshot.py.

    Args:
        path: Run directory.
        checkpoint: As for `metarl.experiment.loading.load_run`.
        shots: Shots of the tasks to test on; None for the run's own.

    Raises:
        UserError: If it is not a run, its checkpoint or its data are missing or unusable.
    """
    config = read_fewshot_config(path)
    file = find_checkpoint(path, checkpoint)
    # Built for the run's own shots, whatever it is tested on.
    trained, config = config, config if shots is None else dataclasses.replace(config, test_shots=shots)
    source = make_source(config, test=True)
    label = fewshot_words(path / "config.json").label
    check_fewshot_fits(
        config, source, lambda name: "--shots" if (name, shots) == ("test_shots", config.test_shots) else label(name)
    )
    method = make_method(trained, source)
    if shots is not None:
        _check_shots(method, source)
    like = {"params": method.initial_params(), "buffers": method.initial_buffers()}
    state = read_checkpoint(file, run_identity(config, source), like, FewShotLearner.counters, trained)
    learner = state["learner"]
    return LoadedFewShotRun(
        path, config, source, method, learner["params"], learner["buffers"], file.stem, learner["iteration"]
    )


def _check_shots(method: Method, source: TaskSource) -> None:
    """Refuses more shots than a method was built for."""
    tasks = source.sample(1, "test", 0)
    try:
        method.predictions(method.initial_params(), method.initial_buffers(), tasks.support, tasks.query.x, 0)
    except ValueError as error:
        raise UserError(f"--shots: {one_line(error)}") from None


def fewshot_record(run: LoadedFewShotRun, curve: AdaptationCurve, seed: int) -> dict[str, Any]:
    """The JSON that `evaluate.py --json` writes of a few-shot run; scores stand where returns stand for a policy."""
    config = run.config
    accuracy = run.source.is_classification
    return {
        "family": config.dataset,
        "variant": config.setting,
        "algorithm": config.method,
        "metric": "accuracy" if accuracy else "mean squared error",
        "higher_is_better": accuracy,
        "checkpoint": run.checkpoint,
        "iteration": run.iteration,
        "seed": config.seed,
        "evaluation_seed": seed,
        "steps": len(curve.mean) - 1,
        "num_tasks": len(curve.returns),
        "episodes": config.test_shots or config.shots,
        "env_steps": 0,
        "return_mean": curve.mean.tolist(),
        "return_ci95": curve.ci95.tolist(),
        "per_task": curve.returns.tolist(),
    }
