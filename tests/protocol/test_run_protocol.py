"""Training, validation, evaluation, `adapt` and pictures: which tasks, streams, budget, step sizes and parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from witness import (
    CONFIG,
    HORIZON,
    SEED,
    VALIDATION_SEED,
    Draw,
    Log,
    WitnessedFamily,
    equal,
    navigation,
    phases,
    witnessed,
)

from envs.family import TaskFamily
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.meta_learner import MetaLearner
from metarl.evaluation import evaluate_adaptation
from metarl.experiment import evaluate_run as protocol
from metarl.experiment.config import TrainConfig
from metarl.experiment.loading import LoadedRun, load_run
from metarl.experiment.policy_run import PolicyValidation, make_learner, make_policy
from metarl.noise import EVALUATION, MEASUREMENT, TRAINING, VALIDATION, TaskNoise
from metarl.rollout_adaptation import AdvantageSettings
from metarl.visualize import show
from metarl.visualize.video import record_before_after


def with_learner(config: TrainConfig = CONFIG, **changes: Any) -> TrainConfig:
    if changes.get("steps_per_task"):
        changes["episodes_per_task"] = LearnerConfig().episodes_per_task  # one budget or the other
    return dataclasses.replace(config, learner=dataclasses.replace(config.learner, **changes))


@pytest.fixture
def family() -> Iterator[WitnessedFamily]:
    with witnessed() as family:
        yield family


def make_run(family: Any, config: TrainConfig = CONFIG, **changes: Any) -> LoadedRun:
    """A run as it is after loading, with parameters of its own."""
    policy = make_policy(family, config.policy, config.seed)
    inner = config.learner.inner_loop(policy)
    params = {name: value + 0.01 for name, value in inner.initial_meta().items()}
    run = LoadedRun(Path("run"), config, family, policy, inner, params, "best", 3)
    return dataclasses.replace(run, **changes)


# Streams.


def test_the_four_uses_of_noise_have_the_keys_they_always_had_and_share_none() -> None:
    assert (TRAINING, VALIDATION, EVALUATION, MEASUREMENT) == (0, 1, 2, 3)


# Training.


def test_training_plays_the_training_tasks_of_its_seed_one_after_another(family: WitnessedFamily) -> None:
    learner = make_learner(family, CONFIG)
    for _ in range(3):
        learner.iterate()
    assert {(draw.split, draw.seed) for draw in family.log.draws} == {("train", SEED)}
    expected = family.sample_tasks(9, "train", SEED)
    starts = family.log.starts
    assert len(starts) == 3 * 3, "every iteration collects before each of two inner steps and after the last"
    for i, start in enumerate(starts):
        torch.testing.assert_close(start.tasks, expected[i // 3 * 3 :][:3], rtol=0, atol=0)
        assert start.episodes == 3 * 2


def test_every_collection_of_a_training_has_streams_of_its_own(family: WitnessedFamily) -> None:
    learner = make_learner(family, CONFIG)
    for iteration in range(3):
        family.log.clear()
        learner.iterate()
        assert sorted(family.log.streams) == sorted(phases(TRAINING, SEED, iteration, last=2))
        seeds = [TaskNoise((TRAINING, SEED, iteration, k), 3).reset_seeds(0) for k in range(3)]
        assert [start.seeds for start in family.log.starts] == seeds
    family.log.clear()
    make_learner(family, dataclasses.replace(CONFIG, seed=8)).iterate()
    assert sorted(family.log.streams) == sorted(phases(TRAINING, 8, 0, last=2))


def test_training_adapts_its_own_parameters_by_its_own_step_sizes(family: WitnessedFamily) -> None:
    learner = make_learner(family, CONFIG)
    before = dict(learner.params)
    learner.iterate()
    learner.iterate()
    first, second = family.log.adaptations
    assert equal(first.meta, before) and not equal(second.meta, before)
    assert first.sizes == second.sizes == [0.3, 0.3 * 0.25]


def test_a_learner_has_the_worlds_device_and_threads_it_was_told(family: WitnessedFamily) -> None:
    make_learner(family, CONFIG)
    make_learner(family, dataclasses.replace(with_learner(steps_per_task=11), num_threads=2))
    last = {worlds.num_threads: worlds for worlds in family.log.worlds}
    assert last[1].episodes == 2 and last[2].episodes == 3, "as many as 11 steps at horizon 5 need"
    assert {worlds.device for worlds in last.values()} == {"cpu"}


def test_a_budget_of_steps_is_filled_in_every_phase_of_training(family: WitnessedFamily) -> None:
    learner = make_learner(family, with_learner(steps_per_task=11))
    metrics = learner.iterate()
    # Three phases of three tasks; an episode of up to 5 steps may reach beyond the budget.
    assert 3 * 3 * 11 <= metrics["env_steps"] <= 3 * 3 * (11 + HORIZON - 1)
    waves = {key[4] for key in family.log.streams}
    assert waves == set(range(len(waves))) and len(waves) > 1, "episodes that end early make further waves"
    assert len(set(family.log.streams)) == len(family.log.streams)
    assert {key[:3] for key in family.log.streams} == {(TRAINING, SEED, 0)}


def test_two_seeds_of_a_run_differ_in_policy_tasks_and_noise(family: WitnessedFamily) -> None:
    one, same, other = (make_learner(family, dataclasses.replace(CONFIG, seed=seed)) for seed in (1, 1, 2))
    assert equal(one.params, same.params) and not equal(one.params, other.params)
    assert torch.allclose(one.params["log_std"].exp(), torch.tensor(0.5)), "the policy's settings count"


def test_a_learner_goes_on_with_the_tasks_and_streams_of_the_iteration_it_is_at(family: WitnessedFamily) -> None:
    learner = make_learner(family, CONFIG)
    for _ in range(2):
        learner.iterate()
    resumed = make_learner(family, CONFIG)
    resumed.load_state_dict(learner.state_dict())
    family.log.clear()
    resumed.iterate()
    assert {key[:3] for key in family.log.streams} == {(TRAINING, SEED, 2)}
    assert torch.equal(family.log.starts[0].tasks, family.sample_tasks(9, "train", SEED)[6:])
    assert resumed.env_steps > learner.env_steps > 0


# Validation.


def validated(family: WitnessedFamily, config: TrainConfig = CONFIG) -> tuple[MetaLearner, PolicyValidation]:
    learner = make_learner(family, config)
    learner.iterate()
    family.log.clear()
    return learner, PolicyValidation(learner, config)


def test_validation_plays_one_fixed_draw_of_training_tasks_under_a_seed_of_its_own(family: WitnessedFamily) -> None:
    learner, validation = validated(family)
    first = validation()
    assert set(family.log.draws) == {Draw(5, "train", VALIDATION_SEED, 0)}
    starts = [start.tasks for start in family.log.starts]
    assert len(starts) == 4 and all(
        torch.equal(start, family.sample_tasks(5, "train", VALIDATION_SEED)) for start in starts
    )
    assert validation() == first, "neither tasks nor noise change"
    of_training = learner.family.sample_tasks(300, "train", SEED)
    assert float(torch.cdist(starts[0], of_training).min()) > 0, "a task of the run's own"


def test_validation_has_its_own_noise_which_stays_while_training_goes_on(family: WitnessedFamily) -> None:
    learner, validation = validated(family)
    for _ in range(2):
        family.log.clear()
        validation()
        assert sorted(family.log.streams) == sorted(phases(VALIDATION, SEED, last=3))
        learner.iterate()


@pytest.mark.parametrize("steps_per_task", [0, 11])
def test_validation_collects_what_training_does_with_the_learners_parameters(
    family: WitnessedFamily, steps_per_task: int
) -> None:
    learner, validation = validated(family, with_learner(steps_per_task=steps_per_task))
    validation()
    (worlds,) = family.log.worlds
    assert worlds.episodes == (3 if steps_per_task else 2) and worlds.num_threads == 1
    (adaptation,) = family.log.adaptations
    assert equal(adaptation.meta, learner.params) and adaptation.num_tasks == 5
    assert adaptation.sizes == pytest.approx([0.3, 0.075, 0.075])
    assert family.log.steps <= (4 * HORIZON if not steps_per_task else 4 * 4 * HORIZON)
    waves = {key[3] for key in family.log.streams}
    assert (len(waves) > 1) == bool(steps_per_task)


def test_the_score_is_the_mean_over_the_steps_and_of_a_policy_that_takes_none_its_own(family: WitnessedFamily) -> None:
    _, validation = validated(family)
    score, metrics = validation()
    values = [metrics[f"validation/return_step_{k}"] for k in range(4)]
    assert score == pytest.approx(sum(values[1:]) / 3, rel=1e-9) and len(set(values)) == 4
    config = dataclasses.replace(CONFIG, validation=dataclasses.replace(CONFIG.validation, steps=0))
    score, metrics = validated(family, config)[1]()
    assert score == metrics["validation/return_step_0"] and "validation/return_step_1" not in metrics


def test_fine_tuning_step_sizes_are_tried_on_the_same_tasks_and_noise_and_the_best_is_kept(
    family: WitnessedFamily,
) -> None:
    config = dataclasses.replace(CONFIG, validation=dataclasses.replace(CONFIG.validation, inner_lrs=(0.01, 1.0, 30.0)))
    learner, validation = validated(family, config)
    score, metrics = validation()
    assert [adaptation.sizes[0] for adaptation in family.log.adaptations] == [0.01, 1.0, 30.0]
    assert all(equal(adaptation.meta, learner.params) for adaptation in family.log.adaptations)
    assert family.log.streams == family.log.streams[: len(family.log.streams) // 3] * 3
    assert len(family.log.worlds) == 1
    scores = {}
    for size in (0.01, 1.0, 30.0):
        one = dataclasses.replace(config, validation=dataclasses.replace(config.validation, inner_lrs=(size,)))
        scores[size] = PolicyValidation(learner, one)()[0]
    assert len(set(scores.values())) == 3 and score == max(scores.values())
    assert validation.inner_lr == metrics["validation/inner_lr"] == max(scores, key=scores.__getitem__)
    assert validation.state_dict()["inner_lr"] == validation.inner_lr
    other = PolicyValidation(learner, config)
    other.load_state_dict({"inner_lr": 1.0}, "a file")
    assert other.inner_lr == 1.0


@pytest.mark.parametrize("changes", [{"gamma": 0.1}, {"gae_lambda": 0.1}, {"bootstrap_truncated": True}])
def test_validation_and_evaluation_estimate_advantages_as_training_does(
    family: WitnessedFamily, changes: dict[str, Any]
) -> None:
    scores, curves = [], []
    for config in (CONFIG, with_learner(**changes)):
        learner = make_learner(family, config)
        scores.append(PolicyValidation(learner, config)()[1]["validation/return_step_1"])
        run = make_run(family, config)
        curves.append(evaluated(run, run.family.published_tasks(), num_steps=1, episodes_per_task=2).mean[1])
    assert scores[0] != scores[1] and curves[0] != curves[1]


# Evaluation.


def evaluated(run: LoadedRun, tasks: Any, **options: Any) -> Any:
    """The adaptation curve of `evaluate_run`, whatever else it gives."""
    result = protocol.evaluate_run(run, tasks, **{"num_threads": 1, **options})
    return result[0] if isinstance(result, tuple) else result


def test_evaluation_takes_the_published_tasks_or_draws_from_the_test_split_under_its_seed() -> None:
    with witnessed() as family:
        run = make_run(family)
        for number in (None, 4):
            tasks, words = protocol.test_tasks(run, number, 9)
            assert torch.equal(tasks, family.published_tasks()) and "4 published" in words
            assert protocol.on_published_tasks(run, tasks)
        assert family.log.draws == []
        tasks, words = protocol.test_tasks(run, 3, 9)
        assert family.log.draws == [Draw(3, "test", 9, 0)] and "3 tasks drawn from the test split" in words
        assert torch.equal(tasks, family.sample_tasks(3, "test", 9)) and not protocol.on_published_tasks(run, tasks)
    with witnessed(navigation(num_published=0)) as family:
        protocol.test_tasks(make_run(family), None, 9)
        assert family.log.draws == [Draw(40, "test", 9, 0)]


def test_test_tasks_are_no_training_tasks() -> None:
    family = navigation()
    tested = torch.cat([family.sample_tasks(50, "test", seed) for seed in (0, 1, SEED)])
    trained = torch.cat([family.sample_tasks(300, "train", seed) for seed in (0, 1, SEED, VALIDATION_SEED)])
    assert float(torch.cdist(tested, trained).min()) > 0
    seeds = [family.sample_tasks(50, "test", seed) for seed in (0, 1)]
    assert float(torch.cdist(*seeds).min()) > 0, "and each seed draws its own"


@pytest.mark.parametrize("seed", [0, 5])
def test_evaluation_has_its_own_noise_by_its_own_seed(family: WitnessedFamily, seed: int) -> None:
    run, tasks = make_run(family), navigation().published_tasks()
    curve = evaluated(run, tasks, num_steps=3, episodes_per_task=None, seed=seed)
    assert sorted(family.log.streams) == sorted(phases(EVALUATION, seed, last=3))
    assert all(torch.equal(start.tasks, tasks) for start in family.log.starts) and len(family.log.starts) == 4
    assert curve.returns.shape == (4, 4) and family.log.draws == []


@pytest.mark.parametrize(
    ("steps_per_task", "asked", "episodes"),
    [(0, None, 4), (0, 3, 3), (11, None, 5), (11, 3, 3)],
    ids=["twice the episodes", "episodes asked for", "twice the budget", "episodes instead of the budget"],
)
def test_evaluation_takes_twice_the_data_of_training_unless_told(
    family: WitnessedFamily, steps_per_task: int, asked: int | None, episodes: int
) -> None:
    run = make_run(family, with_learner(steps_per_task=steps_per_task))
    curve = evaluated(run, family.published_tasks(), num_steps=1, episodes_per_task=asked)
    (worlds,) = family.log.worlds
    assert worlds.episodes == episodes and worlds.num_threads == 1
    started = [start.episodes for start in family.log.starts]
    if steps_per_task and asked is None:
        assert 2 * 4 * 22 <= curve.env_steps <= 2 * 4 * (22 + HORIZON - 1)
        assert len(started) > 2, "episodes that ended early are made up for"
    else:
        assert started == [4 * episodes] * 2 and curve.env_steps < 2 * 4 * episodes * HORIZON


def test_evaluation_adapts_the_runs_parameters_by_the_runs_own_inner_loop(family: WitnessedFamily) -> None:
    run = make_run(family)
    chosen = dataclasses.replace(CONFIG.learner, inner_lr=0.7).inner_loop(run.policy)
    run = dataclasses.replace(run, inner=chosen)
    evaluated(run, family.published_tasks(), num_steps=3, episodes_per_task=2)
    (adaptation,) = family.log.adaptations
    assert equal(adaptation.meta, run.params) and adaptation.num_tasks == 4
    assert adaptation.sizes == pytest.approx([0.7, 0.175, 0.175]), "and as many steps as were asked for"


def test_evaluation_takes_three_steps_or_as_many_as_were_validated_and_none_of_what_does_not_adapt() -> None:
    for validated_steps, expected in ((1, 3), (3, 3), (7, 7), (0, 0)):
        validation = dataclasses.replace(CONFIG.validation, steps=validated_steps)
        run = make_run(navigation(), dataclasses.replace(CONFIG, validation=validation))
        assert protocol.default_steps(run) == expected


def test_worlds_that_are_used_again_hold_the_tasks_of_each_evaluation(family: WitnessedFamily) -> None:
    run, worlds = make_run(family), family.batch(family.sample_tasks(4, "test", 1), 2)
    family.log.clear()
    evaluate_adaptation(
        family, run.inner, run.params, family.published_tasks(), num_steps=1, noise_key=(EVALUATION, 3),
        settings=AdvantageSettings(), episodes_per_task=2, env=worlds,
    )  # fmt: skip
    assert family.log.worlds == []
    assert all(torch.equal(start.tasks, family.published_tasks()) for start in family.log.starts)
    assert sorted(family.log.streams) == sorted(phases(EVALUATION, 3, last=1))


# One task.


def test_adapting_to_a_task_plays_that_task_alone_with_the_streams_of_an_evaluation(family: WitnessedFamily) -> None:
    learner = make_learner(family, CONFIG)
    learner.iterate()
    for task, steps, episodes, seed in (([0.3, -0.2], 2, 3, 0), ([0.1, 0.4], 1, 4, 5)):
        family.log.clear()
        agent = learner.adapt(task, num_steps=steps, episodes=episodes, seed=seed)
        assert family.log.draws == []
        (worlds,) = family.log.worlds
        assert worlds.tasks.tolist() == [task] and worlds.episodes == episodes
        assert (worlds.device, worlds.num_threads) == ("cpu", 1)
        # Nothing is measured after the last step.
        assert sorted(family.log.streams) == sorted(phases(EVALUATION, seed, last=steps - 1))
        (adaptation,) = family.log.adaptations
        assert equal(adaptation.meta, learner.params) and adaptation.sizes == [0.3, 0.075][:steps]
        assert not equal(agent.params, learner.params)


def test_adapting_estimates_advantages_as_training_does(family: WitnessedFamily) -> None:
    def adapted(**changes: Any) -> Any:
        return make_learner(family, with_learner(**changes)).adapt([0.3, -0.2], num_steps=1, episodes=3).params

    assert equal(adapted(), adapted())
    for changes in ({"gamma": 0.1}, {"gae_lambda": 0.1}, {"bootstrap_truncated": True}):
        assert not equal(adapted(**changes), adapted()), changes


def test_a_loaded_run_adapts_its_own_parameters(family: WitnessedFamily) -> None:
    run = make_run(family)
    learner = run.learner()
    family.log.clear()
    learner.adapt([0.3, -0.2], num_steps=2, episodes=3)
    (adaptation,) = family.log.adaptations
    assert equal(adaptation.meta, run.params) and adaptation.sizes == [0.3, 0.075]


# A whole run.


def test_a_whole_training_draws_training_tasks_only_and_no_stream_serves_two_collections(
    trained: tuple[Path, Log],
) -> None:
    _, log = trained
    assert {(draw.split, draw.seed) for draw in log.draws} == {("train", SEED), ("train", VALIDATION_SEED)}
    training = [key for key in log.streams if key[0] == TRAINING]
    assert len(set(training)) == len(training) == 3 * 3 * 2
    # Validated after iterations 2 and 3, two step sizes each.
    validation = [key for key in log.streams if key[0] == VALIDATION]
    assert set(validation) == phases(VALIDATION, SEED, last=3) and len(validation) == 2 * 2 * len(set(validation))
    assert len(training) + len(validation) == len(log.streams)
    seeds = [seed for start in log.starts for seed in start.seeds]
    assert len(set(seeds)) == 3 * 3 * 3 + 4 * 5


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_loaded_run_is_evaluated_with_the_step_size_that_was_chosen(
    trained: tuple[Path, Log], checkpoint: str
) -> None:
    path, _ = trained
    state = torch.load(path / "checkpoints" / f"{checkpoint}.pt", weights_only=True)
    with witnessed() as family:
        run = load_run(path, lambda config: family, checkpoint)
        assert family.log.starts == [] and family.log.draws == []
        evaluated(run, family.published_tasks(), num_steps=2, episodes_per_task=None, seed=4)
        (adaptation,) = family.log.adaptations
        assert equal(adaptation.meta, state["learner"]["params"])
        assert adaptation.sizes == [state["inner_lr"], 0.25 * state["inner_lr"]]
        assert run.config.learner.inner_lr == state["inner_lr"] in (0.01, 2.0)
        assert sorted(family.log.streams) == sorted(phases(EVALUATION, 4, last=2))
        family.log.clear()
        run.learner().adapt([0.1, 0.2])
        assert family.log.adaptations[0].sizes == [state["inner_lr"]]
        assert equal(family.log.adaptations[0].meta, state["learner"]["params"])


def test_the_policy_of_a_loaded_run_is_that_of_its_seed(trained: tuple[Path, Log]) -> None:
    run = load_run(trained[0], lambda config: navigation())
    assert run.checkpoint == "best", "if no other is named"
    expected = make_policy(navigation(), CONFIG.policy, SEED).state_dict()
    assert equal(run.policy.state_dict(), expected)
    other = make_policy(navigation(), CONFIG.policy, SEED + 1).state_dict()
    assert not equal(other, expected)


# Pictures.


def video_family() -> TaskFamily:
    """Navigation that passes for a robot: its steps take time, and it has no position in the plane."""
    problem = navigation().problem
    problem.spec = dataclasses.replace(problem.spec, dt=0.1, observation_labels=("a", "b"))
    return TaskFamily(problem)


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Stands in for drawing: what each picture was to show."""
    drawn: list[tuple[Any, dict[str, Any]]] = []

    def instead(path: Path, *args: Any, **kwargs: Any) -> Path:
        drawn.append(((path.name, *args), kwargs))
        return path

    class NoRenderer:
        def close(self) -> None: ...

    for name in ("draw_paths", "draw_adaptation_curve", "write_video"):
        monkeypatch.setattr(show, name, instead)
    monkeypatch.setattr(show, "check_ffmpeg", lambda: None)
    monkeypatch.setattr(show, "open_renderer", lambda family: NoRenderer())
    return drawn


@pytest.mark.parametrize("seed", [0, 5])
def test_a_path_figure_is_of_the_evaluation(
    family: WitnessedFamily, pictures: list[Any], tmp_path: Path, seed: int
) -> None:
    run = make_run(family, path=tmp_path)
    list(show.show_run(run, tmp_path, num_steps=2, seed=seed))
    (worlds,) = family.log.worlds
    assert torch.equal(worlds.tasks, family.published_tasks()) and worlds.episodes == 2 * 2
    assert sorted(family.log.streams) == sorted(phases(EVALUATION, seed, last=2))
    curve = evaluated(run, family.published_tasks(), num_steps=2, episodes_per_task=None, seed=seed)
    names = [args[0] for args, _ in pictures]
    assert names == ["paths.png", "adaptation_curve.png"]
    shown = dict(zip(names, (args for args, _ in pictures), strict=True))
    assert torch.equal(shown["adaptation_curve.png"][1].returns, curve.returns)
    assert torch.equal(shown["paths.png"][3], curve.returns) and len(shown["paths.png"][1]) == 3


@pytest.mark.parametrize(("seed", "sampled"), [(0, True), (5, True), (5, False)])
def test_a_video_shows_the_adapted_policies_on_their_tasks_with_noise_of_its_own(
    pictures: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, sampled: bool
) -> None:
    recorded, record = [], show.record_before_after

    def recording(*args: Any, **options: Any) -> Any:
        recorded.append((args, options))
        return record(*args, **options)

    monkeypatch.setattr(show, "record_before_after", recording)
    with witnessed(video_family()) as family:
        run = make_run(family, path=tmp_path)
        shown = list(show.show_run(run, tmp_path, num_steps=2, seed=seed, sampled=sampled))
        tasks = family.published_tasks()
        ((_, _, before, after, *_), options) = recorded[0]
        trajectory = family.log.adaptations[0].trajectory
        assert equal(before, trajectory[0]) and equal(after, trajectory[2]) and options["sampled"] == sampled
        evaluation, video = family.log.worlds
        assert torch.equal(evaluation.tasks, tasks) and evaluation.episodes == 4
        assert phases(EVALUATION, seed, last=2) < set(family.log.streams)
        # Phases 0 to 2 are the evaluation's.
        key = (EVALUATION, seed, 3)
        assert set(family.log.streams) - phases(EVALUATION, seed, last=2) <= {(*key, 0, 0), (*key, 0, 1)}
        indices = [int(torch.cdist(tasks, task[None]).argmin()) for task in video.tasks[::2]]
        assert torch.equal(video.tasks, tasks[indices].repeat_interleave(2, 0)) and len(set(indices)) == 2
        seeds = TaskNoise(key, 4).reset_seeds(0)
        assert family.log.starts[-1].seeds == [seeds[i] for i in indices for _ in range(2)]
        curve = evaluated(run, tasks, num_steps=2, episodes_per_task=None, seed=seed)
    videos = [(args, kwargs) for args, kwargs in pictures if args[0].endswith(".mp4")]
    assert [kwargs["task"].tolist() for _, kwargs in videos] == tasks[indices].tolist()
    assert [args[2] for args, _ in videos] == [(0, 1), (2, 3)]
    assert all(kwargs["num_steps"] == 2 for _, kwargs in videos)
    for index, picture in zip(indices, shown, strict=False):
        first, last = curve.returns[index, [0, -1]].tolist()
        assert picture.note.endswith(f"return in evaluation {first:.1f} -> {last:.1f}")


def test_pictures_of_drawn_tasks_follow_the_seed_and_the_budget_of_the_run(pictures: list[Any], tmp_path: Path) -> None:
    with witnessed(navigation(num_published=0)) as family:
        run = make_run(family, with_learner(steps_per_task=11), path=tmp_path)
        list(show.show_run(run, tmp_path, num_steps=1, num_shown=2, seed=5))
        assert family.log.draws == [Draw(40, "test", 5, 0)]
        assert [worlds.episodes for worlds in family.log.worlds] == [5], "2 x 11 steps at horizon 5"


def test_a_video_of_mean_actions_has_no_noise() -> None:
    family = navigation(horizon=3)
    run, tasks = make_run(family), family.published_tasks()
    params = run.inner.start(run.params, 4)

    def rewards(sampled: bool, seed: int) -> torch.Tensor:
        key = (EVALUATION, seed, 2)
        return record_before_after(
            family, run.policy, params, params, tasks, [0, 3], noise_key=key, sampled=sampled
        ).rewards  # fmt: skip

    assert torch.equal(rewards(False, 0), rewards(False, 1)) and not torch.equal(rewards(True, 0), rewards(True, 1))
