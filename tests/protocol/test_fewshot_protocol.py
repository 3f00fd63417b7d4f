"""Few-shot training, validation, evaluation and pictures: which tasks of which split, shots, steps and parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from witness import equal

from metarl.experiment import fewshot_run
from metarl.experiment.fewshot_config import FewShotConfig, FewShotValidation
from metarl.experiment.fewshot_run import (
    FewShotValidator,
    fewshot_record,
    load_fewshot_run,
    make_fewshot_learner,
    make_fewshot_trainer,
    make_source,
)
from metarl.experiment.run_directory import RunDirectory
from metarl.fewshot.config import MethodConfig
from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.episodes import Episodes
from metarl.fewshot.maml import MAML
from metarl.fewshot.methods import NetworkConfig
from metarl.fewshot.sinusoid import Sinusoid
from metarl.types import Params
from metarl.visualize import fewshot as pictures

SEED = 7
WAVES = FewShotConfig(
    method="maml",
    dataset="sinusoid",
    shots=6,
    queries=4,
    test_shots=3,
    test_queries=5,
    test_steps=2,
    iterations=4,
    seed=SEED,
    num_threads=1,
    log_every=2,
    network=NetworkConfig(hidden_sizes=(8,)),
    validation=FewShotValidation(every=2, num_tasks=9),
    learner=MethodConfig(meta_batch_size=3, inner_lr=0.05, outer_lr=0.01),
)
IMAGES = dataclasses.replace(
    WAVES, dataset="glyphs", ways=3, shots=2, queries=2, test_shots=1, test_queries=3,
    network=NetworkConfig(channels=4, batch_norm="running"),
)  # fmt: skip


class Drawn(NamedTuple):
    """Tasks that were drawn, and how many examples they have of each class (in regression, in all)."""

    num_tasks: int
    split: str
    seed: int
    start: int
    shots: int
    queries: int


class Predicted(NamedTuple):
    """Predictions that were asked of a method."""

    params: Params
    buffers: Params
    num_steps: int


class Log(NamedTuple):
    drawn: list[Drawn]
    predicted: list[Predicted]
    waves: list[tuple[int, str, int]]

    def clear(self) -> None:
        for part in self:
            part.clear()


def some_images() -> ImageClasses:
    random = np.random.default_rng(0)
    classes = np.arange(12)
    splits = {"train": classes[:5], "validation": classes[5:8], "test": classes[8:]}
    images = random.integers(0, 255, (12 * 6, 1, 8, 8), dtype=np.uint8)
    return ImageClasses("noise", images, np.arange(13) * 6, tuple(map(str, classes)), splits)  # pyright: ignore


def watch(patch: pytest.MonkeyPatch) -> Log:
    log = Log([], [], [])

    def watched_source(source: Any) -> None:
        sample = source.sample

        def logged(self: Any, num_tasks: int, split: str, seed: int, start: int = 0) -> Any:
            log.drawn.append(Drawn(num_tasks, split, seed, start, self.shots, self.queries))
            return sample(self, num_tasks, split, seed, start)

        patch.setattr(source, "sample", logged)

    predictions, parameters = MAML.predictions, Sinusoid.parameters

    def logged_predictions(self: MAML, params: Params, buffers: Params, support: Any, x: Any, num_steps: int) -> Any:
        log.predicted.append(Predicted(dict(params), dict(buffers), num_steps))
        return predictions(self, params, buffers, support, x, num_steps)

    def logged_parameters(num_tasks: int, split: Any, seed: int, start: int = 0) -> Any:
        log.waves.append((num_tasks, split, seed))
        return parameters(num_tasks, split, seed, start)

    watched_source(Sinusoid)
    watched_source(Episodes)
    patch.setattr(MAML, "predictions", logged_predictions)
    patch.setattr(Sinusoid, "parameters", staticmethod(logged_parameters))
    patch.setattr(fewshot_run, "load_images", lambda config: some_images())
    return log


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return watch(monkeypatch)


def test_training_draws_its_own_tasks_one_after_another(log: Log) -> None:
    for config in (WAVES, IMAGES):
        log.clear()
        learner = make_fewshot_learner(config, make_source(config))
        for _ in range(2):
            learner.iterate()
        shots = (config.shots, config.queries)
        assert log.drawn == [Drawn(3, "train", SEED, start, *shots) for start in (0, 3)]
        resumed = make_fewshot_learner(config, make_source(config))
        resumed.load_state_dict(learner.state_dict())
        resumed.iterate()
        assert log.drawn[2:] == [Drawn(3, "train", SEED, 6, *shots)]


def test_another_seed_is_another_network_and_other_tasks() -> None:
    one, same, other = (
        make_fewshot_learner(dataclasses.replace(WAVES, seed=seed), make_source(WAVES)) for seed in (1, 1, 2)
    )
    assert equal(one.params, same.params) and not equal(one.params, other.params)


def test_the_outer_step_size_falls_over_the_iterations_of_the_run() -> None:
    moves = []
    for decay in (0.0, 1.0):
        settings = dataclasses.replace(WAVES.learner, outer_optimizer="sgd", outer_lr_decay=decay)
        config = dataclasses.replace(WAVES, iterations=4, learner=settings)
        learner = make_fewshot_learner(config, make_source(config))
        learner.iteration = 3
        before = learner.params
        learner.iterate()
        moves.append({name: value - before[name] for name, value in learner.params.items()})
    for name, move in moves[0].items():
        torch.testing.assert_close(moves[1][name], 0.25 * move, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("config", [WAVES, IMAGES], ids=["waves", "images"])
def test_validation_scores_the_learner_on_one_draw_of_its_own_split(log: Log, config: FewShotConfig) -> None:
    learner = make_fewshot_learner(config, make_source(config))
    learner.iterate()
    validator = FewShotValidator(learner, make_source(config, test=True), config)
    log.clear()
    first = validator()
    assert log.drawn == [Drawn(9, "validation", 0, 0, config.test_shots, config.test_queries)]
    for asked in log.predicted:
        assert equal(asked.params, learner.params) and equal(asked.buffers, learner.buffers) and asked.num_steps == 2
    assert bool(learner.buffers) == (config is IMAGES)
    learner.iterate()
    log.clear()
    assert validator() != first, "the learner has moved"
    assert log.drawn == [Drawn(9, "validation", 0, 0, config.test_shots, config.test_queries)], "the tasks have not"


def test_the_score_is_the_mean_over_the_steps_and_falls_with_an_error(log: Log) -> None:
    learner = make_fewshot_learner(WAVES, make_source(WAVES))
    score, metrics = FewShotValidator(learner, make_source(WAVES, test=True), WAVES)()
    errors = [metrics[f"validation/score_step_{k}"] for k in range(3)]
    assert score == pytest.approx(-(errors[1] + errors[2]) / 2) and errors[0] != errors[2]
    learner = make_fewshot_learner(IMAGES, make_source(IMAGES))
    score, metrics = FewShotValidator(learner, make_source(IMAGES, test=True), IMAGES)()
    right = [metrics[f"validation/score_step_{k}"] for k in range(3)]
    assert score == pytest.approx((right[1] + right[2]) / 2)


def test_tests_have_the_shots_of_training_where_they_have_none_of_their_own() -> None:
    config = dataclasses.replace(WAVES, test_shots=0)
    source = make_source(config, test=True)
    assert isinstance(source, Sinusoid) and (source.shots, source.queries) == (6, 5)
    assert (make_source(WAVES).num_examples, make_source(WAVES, test=True).num_examples) == (6 + 4, 3 + 5)


@pytest.fixture(scope="module", params=["waves", "images"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log]:
    """A finished run, and what its training drew."""
    config = WAVES if request.param == "waves" else IMAGES
    path = tmp_path_factory.mktemp("fewshot") / "run"
    with pytest.MonkeyPatch.context() as patch:
        log = watch(patch)
        learner, test = make_fewshot_learner(config, make_source(config)), make_source(config, test=True)
        with RunDirectory.create(path, config) as run:
            make_fewshot_trainer(learner, test, config, run, resume=False).train()
        kept = Log(*(list(part) for part in log))
    return path, kept


def test_a_whole_training_sees_no_test_task(finished: tuple[Path, Log]) -> None:
    _, log = finished
    assert [(drawn.split, drawn.seed) for drawn in log.drawn if drawn.split != "validation"] == [("train", SEED)] * 4
    validated = [drawn for drawn in log.drawn if drawn.split == "validation"]
    assert [drawn[:4] for drawn in validated] == [(9, "validation", 0, 0)] * 2


def test_a_loaded_run_is_tested_on_the_test_split_under_the_seed_of_the_evaluation(
    finished: tuple[Path, Log], log: Log
) -> None:
    path, _ = finished
    run = load_fewshot_run(path)
    state = torch.load(path / "checkpoints" / "best.pt", weights_only=True)["learner"]
    shots = (run.config.test_shots, run.config.test_queries)
    # So many waves are drawn and dropped in parts.
    number = 130 if run.config.dataset == "sinusoid" else 4
    for seed in (0, 9):
        log.clear()
        curve = run.evaluate(number, 2, seed)
        assert {(drawn.split, drawn.seed, *drawn[4:]) for drawn in log.drawn} == {("test", seed, *shots)}
        drawn = [index for part in log.drawn for index in range(part.start, part.start + part.num_tasks)]
        assert drawn == list(range(number)) and curve.returns.shape == (number, 3)
        for asked in log.predicted:
            assert equal(asked.params, state["params"]) and equal(asked.buffers, state["buffers"])
            assert asked.num_steps == 2
    record = fewshot_record(run, curve, 9)
    assert (record["seed"], record["evaluation_seed"], record["num_tasks"], record["steps"]) == (SEED, 9, number, 2)
    assert record["return_mean"] == curve.mean.tolist() and record["per_task"] == curve.returns.tolist()
    assert record["episodes"] == run.config.test_shots != run.config.shots
    assert record["higher_is_better"] == (run.config.dataset == "glyphs")


def test_a_run_is_tested_with_the_shots_that_are_asked_for(finished: tuple[Path, Log], log: Log) -> None:
    run = load_fewshot_run(finished[0], shots=2)
    log.clear()
    run.evaluate(3, 1)
    assert [drawn.shots for drawn in log.drawn] == [2] and run.config.test_shots == 2


def test_an_evaluation_has_six_hundred_tasks() -> None:
    assert fewshot_run.EVALUATION_TASKS == 600 and fewshot_run.VALIDATION_SEED == 0


def test_pictures_are_of_the_evaluations_own_tasks(
    finished: tuple[Path, Log], log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = []
    monkeypatch.setattr(pictures, "EVALUATION_TASKS", 5)
    monkeypatch.setattr(pictures, "draw_adaptation_curve", lambda path, curve, **rest: curves.append(curve) or path)
    monkeypatch.setattr(pictures, "draw_fewshot_training", lambda path, rows, **rest: path)
    run = load_fewshot_run(finished[0])
    log.clear()
    shown = 2 if run.config.dataset == "sinusoid" else 1
    list(pictures.show_fewshot_run(run, tmp_path, num_steps=2, num_shown=shown, seed=9))
    assert {drawn[1:3] for drawn in log.drawn} == {("test", 9)}
    assert {drawn.start for drawn in log.drawn} == {0}
    assert log.waves == ([(2, "test", 9)] if run.config.dataset == "sinusoid" else [])
    assert torch.equal(curves[0].returns, run.evaluate(5, 2, 9).returns)
