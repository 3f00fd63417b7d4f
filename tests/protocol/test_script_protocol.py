"""What evaluate.py, visualize.py, replicate.py and benchmark.py make of their flags: tasks, noise, budget."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from witness import CONFIG, VALIDATION_SEED, Draw, Log, WitnessedFamily, equal, phases, witnessed

from metarl.evaluation import AdaptationCurve
from metarl.experiment import fewshot_run
from metarl.experiment.fewshot_config import FewShotConfig
from metarl.experiment.policy_run import make_policy
from metarl.experiment.presets import preset
from metarl.fewshot.data.images import ImageClasses
from metarl.noise import EVALUATION, MEASUREMENT, TRAINING, VALIDATION
from metarl.visualize import fewshot, show

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(trained: tuple[Path, Log], tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


@pytest.fixture
def family(run_script: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[WitnessedFamily]:
    """Stands in for the run's family in every script."""
    common = importlib.import_module("_common")
    with witnessed() as family:
        monkeypatch.setattr(common, "make_family", lambda *args, **kwargs: family)
        yield family


def meta_of(run: Path, checkpoint: str) -> tuple[dict[str, torch.Tensor], float]:
    state = torch.load(run / "checkpoints" / f"{checkpoint}.pt", weights_only=True)
    return state["learner"]["params"], state["inner_lr"]


# train.py


def test_the_seed_of_a_training_reaches_its_policy_tasks_and_noise(
    run_script: Run, family: WitnessedFamily, tmp_path: Path
) -> None:
    sizes = ("--meta-batch-size", 2, "--episodes-per-task", 1, "--steps-per-task", 0, "--hidden-sizes", 4)
    flags = (*sizes, "--iterations", 1, "--validation.num-tasks", 2, "--num-threads", 1)
    weights = []
    for seed in (3, 4):
        family.log.clear()
        path = tmp_path / str(seed)
        code, _, err = run_script("train", "maml-vpg", *flags, "--seed", seed, "--run-dir", path)
        assert code == 0, err
        assert {(draw.split, draw.seed) for draw in family.log.draws} == {("train", seed), ("train", VALIDATION_SEED)}
        assert {key[:2] for key in family.log.streams} == {(TRAINING, seed), (VALIDATION, seed)}
        assert json.loads((path / "config.json").read_text())["seed"] == seed
        weights.append(family.log.adaptations[0].meta)
    assert not equal(*weights)


# evaluate.py


def test_a_plain_evaluation_is_the_published_protocol_and_becomes_the_runs_table(
    run_script: Run, run: Path, family: WitnessedFamily, tmp_path: Path
) -> None:
    code, _, err = run_script("evaluate", run, "--json", tmp_path / "out.json")
    assert code == 0, err
    assert family.log.draws == [] and len(family.log.starts) == 4
    assert all(torch.equal(start.tasks, family.published_tasks()) for start in family.log.starts)
    assert sorted(family.log.streams) == sorted(phases(EVALUATION, 0, last=3))
    assert family.log.worlds[-1].episodes == 2 * CONFIG.learner.episodes_per_task
    params, inner_lr = meta_of(run, "best")
    assert equal(family.log.adaptations[0].meta, params) and family.log.adaptations[0].sizes[0] == inner_lr
    record = json.loads((tmp_path / "out.json").read_text())
    assert record == json.loads((run / "evaluation_best.json").read_text())
    assert (record["steps"], record["num_tasks"], record["episodes"]) == (3, 4, 4.0)
    assert (record["seed"], record["evaluation_seed"]) == (CONFIG.seed, 0)
    assert record["tasks"] == family.published_tasks().tolist()
    per_task = torch.tensor(record["per_task"], dtype=torch.float64)
    assert record["return_mean"] == pytest.approx(per_task.mean(0).tolist())
    assert record["return_ci95"] == pytest.approx((1.96 * per_task.std(0) / 2).tolist())
    assert record["env_steps"] < 4 * 4 * 4 * 5


def test_flags_of_an_evaluation_reach_tasks_noise_budget_steps_and_checkpoint(
    run_script: Run, run: Path, family: WitnessedFamily, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    flags = ("--num-tasks", 3, "--seed", 5, "--episodes", 6, "--steps", 2, "--checkpoint", "iteration_1", "--json", out)
    code, _, err = run_script("evaluate", run, *flags)
    assert code == 0, err
    assert set(family.log.draws) == {Draw(3, "test", 5, 0)}
    tasks = family.sample_tasks(3, "test", 5)
    assert len(family.log.starts) == 3 and all(torch.equal(start.tasks, tasks) for start in family.log.starts)
    assert sorted(family.log.streams) == sorted(phases(EVALUATION, 5, last=2))
    assert [start.episodes for start in family.log.starts] == [3 * 6] * 3
    assert equal(family.log.adaptations[0].meta, meta_of(run, "iteration_1")[0])
    record = json.loads(out.read_text())
    assert (record["checkpoint"], record["evaluation_seed"], record["tasks"]) == ("iteration_1", 5, tasks.tolist())
    assert not list(run.glob("evaluation_*.json")), "no table of the run"


@pytest.mark.parametrize("flags", [("--seed", 1), ("--episodes", 1), ("--steps", 3), ("--num-tasks", 4)])
def test_an_evaluation_with_any_flag_but_the_checkpoint_is_not_the_runs_table(
    run_script: Run, run: Path, family: WitnessedFamily, flags: tuple[Any, ...]
) -> None:
    assert run_script("evaluate", run, *flags)[0] == 0
    assert not list(run.glob("evaluation_*.json"))


def test_several_runs_are_evaluated_on_the_same_tasks_with_the_same_noise(
    run_script: Run, run: Path, family: WitnessedFamily, tmp_path: Path
) -> None:
    second = Path(shutil.copytree(run, tmp_path / "second"))
    code, _, err = run_script("evaluate", run, second, "--num-tasks", 3, "--seed", 5, "--steps", 1)
    assert code == 0, err
    half = len(family.log.streams) // 2
    assert family.log.streams[:half] == family.log.streams[half:]
    assert len(family.log.starts) == 4 and set(family.log.draws) == {Draw(3, "test", 5, 0)}


class StandInRun:
    """Stands in for a loaded few-shot run."""

    def __init__(self, config: FewShotConfig, asked: list[Any], path: Path = Path("run")) -> None:
        self.config, self._asked, self.path = config, asked, path
        self.checkpoint, self.iteration = "best", 1
        self.source = fewshot_run.make_source(FewShotConfig(dataset="sinusoid"))

    def evaluate(self, num_tasks: int, num_steps: int, seed: int = 0) -> AdaptationCurve:
        self._asked.append((self.config.method, self.config.ways, self.config.seed, num_tasks, num_steps, seed))
        return AdaptationCurve(torch.zeros(2, num_steps + 1, dtype=torch.float64), 0)


@pytest.mark.parametrize(
    ("flags", "loaded", "asked"),
    [
        ((), ("best", None), (600, 3, 0)),
        (("--num-tasks", 5, "--steps", 1, "--seed", 9), ("best", None), (5, 1, 9)),
        (("--checkpoint", "last", "--shots", 2), ("last", 2), (600, 3, 0)),
    ],
)
def test_flags_of_an_evaluation_reach_a_few_shot_run(
    run_script: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: Any, loaded: Any, asked: Any
) -> None:
    script, seen, tested = importlib.import_module("_evaluate_fewshot"), [], []

    def load(path: Path, checkpoint: str = "best", shots: int | None = None) -> StandInRun:
        seen.append((checkpoint, shots))
        return StandInRun(FewShotConfig("maml", "sinusoid"), tested, path)

    monkeypatch.setattr(importlib.import_module("_common"), "is_fewshot_run", lambda path: True)
    monkeypatch.setattr(script, "load_fewshot_run", load)
    code, _, err = run_script("evaluate", tmp_path, *flags)
    assert code == 0, err
    assert seen == [loaded] and [of_run[3:] for of_run in tested] == [asked]
    assert (tmp_path / "evaluation_best.json").exists() == (not flags)


def test_a_pretrained_runs_table_is_never_replaced(run_script: Run) -> None:
    script, common = importlib.import_module("_evaluation"), importlib.import_module("_common")
    arguments = importlib.import_module("evaluate").Arguments((Path("x"),))
    assert script.is_default_protocol(arguments, Path("x"))
    assert not script.is_default_protocol(arguments, common.REPOSITORY / "pretrained" / "x")


# visualize.py


@pytest.mark.parametrize("seed", [0, 5])
def test_pictures_are_of_the_evaluation_with_the_same_seed(
    run_script: Run, run: Path, family: WitnessedFamily, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    for name in ("draw_paths", "draw_adaptation_curve", "draw_training_curve"):
        monkeypatch.setattr(show, name, lambda path, *args, **kwargs: path)
    options = ("--seed", seed, "--steps", 2, "--tasks", 2, "--checkpoint", "iteration_1", "--out", tmp_path / "out")
    code, _, err = run_script("visualize", run, *options)
    assert code == 0, err
    assert sorted(family.log.streams) == sorted(phases(EVALUATION, seed, last=2))
    assert all(torch.equal(start.tasks, family.published_tasks()) for start in family.log.starts)
    assert family.log.worlds[-1].episodes == 2 * CONFIG.learner.episodes_per_task
    assert equal(family.log.adaptations[0].meta, meta_of(run, "iteration_1")[0])


def test_flags_of_pictures_reach_them(
    run_script: Run, run: Path, family: WitnessedFamily, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(show, "show_run", lambda run, out, **options: asked.append(options) or [])
    out = ("--out", tmp_path / "out")
    assert run_script("visualize", run, *out)[0] == 0
    assert run_script("visualize", run, *out, "--seed", 5, "--steps", 1, "--tasks", 2)[0] == 0
    assert asked == [
        {"num_steps": 3, "num_shown": None, "seed": 0, "sampled": True},
        {"num_steps": 1, "num_shown": 2, "seed": 5, "sampled": True},
    ]


def test_flags_of_pictures_reach_a_few_shot_run(
    run_script: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen, asked = [], []

    def load(path: Path, checkpoint: str = "best", shots: int | None = None) -> StandInRun:
        seen.append(checkpoint)
        return StandInRun(FewShotConfig("maml", "sinusoid"), [], path)

    monkeypatch.setattr(importlib.import_module("_common"), "is_fewshot_run", lambda path: True)
    monkeypatch.setattr(fewshot_run, "load_fewshot_run", load)
    monkeypatch.setattr(fewshot, "show_fewshot_run", lambda run, out, **options: asked.append(options) or [])
    out = ("--out", tmp_path / "out")
    assert run_script("visualize", tmp_path, *out)[0] == 0
    flags = ("--seed", 5, "--steps", 1, "--tasks", 2, "--checkpoint", "last")
    assert run_script("visualize", tmp_path, *out, *flags)[0] == 0
    assert seen == ["best", "last"]
    assert asked == [
        {"num_steps": 3, "num_shown": None, "seed": 0},
        {"num_steps": 1, "num_shown": 2, "seed": 5},
    ]


# replicate.py


def test_a_replication_evaluates_by_the_published_protocol(run_script: Run, run: Path, family: WitnessedFamily) -> None:
    protocols = importlib.import_module("_replicate_protocols")
    for steps, expected in ((None, 3), (1, 1)):
        family.log.clear()
        record = protocols.evaluation_of(run, steps)
        assert record["steps"] == expected and record["tasks"] == family.published_tasks().tolist()
        assert family.log.draws == []
        assert sorted(family.log.streams) == sorted(phases(EVALUATION, 0, last=expected))
        if steps is None:
            kept = (run / "evaluation_best.json").read_text()
    assert (run / "evaluation_best.json").read_text() == kept, "a table of other steps is not the run's"


def test_a_replication_plans_the_preset_for_every_seed(run_script: Run) -> None:
    protocols, script = importlib.import_module("_replicate_protocols"), importlib.import_module("replicate")
    for name, full, quick in (("navigation-2d", 100, 50), ("halfcheetah-vel", 500, 30)):
        for is_quick, iterations in ((False, full), (True, quick)):
            arguments = script.Arguments(protocol="maml2017", seeds=3, quick=is_quick, out=Path("x"))
            (runs,) = protocols.planned_runs(arguments, name, 100).values()
            assert [config.seed for _, config in runs] == [0, 1, 2] and len({path for path, _ in runs}) == 3
            expected = dataclasses.replace(preset("maml-trpo", f"{name}@maml2017"), iterations=iterations)
            assert all(dataclasses.replace(config, seed=0) == expected for _, config in runs)
    arguments = script.Arguments(protocol="learners", seeds=2, learners=("promp", "reptile"), env_steps=10_000)
    planned = protocols.planned_runs(arguments, "navigation-2d", 100)
    assert {name: [config.seed for _, config in runs] for name, runs in planned.items()} == {
        "promp": [0, 1], "reptile": [0, 1],
    }  # fmt: skip


def test_the_presets_of_the_published_protocols_are_what_they_were() -> None:
    navigation, cheetah = (preset("maml-trpo", f"{name}@maml2017") for name in ("navigation-2d", "halfcheetah-vel"))
    learner = navigation.learner
    assert (learner.meta_batch_size, learner.steps_per_task, learner.inner_lr) == (20, 2000, 0.5)
    assert (learner.num_inner_steps, learner.step_weights, learner.fvp_fraction) == (2, (5.0, 1.0), 0.5)
    assert (navigation.iterations, navigation.validation.num_tasks, navigation.validation.steps) == (50, 40, 3)
    assert navigation.policy.activation == cheetah.policy.activation == "relu"
    learner = cheetah.learner
    assert (learner.meta_batch_size, learner.episodes_per_task, learner.inner_lr) == (40, 10, 0.1)
    assert (learner.num_inner_steps, cheetah.validation.steps, cheetah.iterations) == (1, 1, 500)
    corners = preset("promp", "navigation-2d-corners@promp")
    assert (corners.learner.num_inner_steps, corners.learner.later_lr_factor) == (3, 1.0)
    assert (corners.validation.num_tasks, corners.validation.steps) == (4, 3)
    assert preset("cavia", "navigation-2d@maml2017").learner.inner_lr == 5.0
    assert preset("maml-vpg", "navigation-2d@maml2017").learner.outer_lr == 0.01
    # A learner's own number comes before its family's, and one for both before either.
    assert preset("reptile", "navigation-2d@maml2017").learner.num_inner_steps == 3
    fine_tuned = preset("pretrain", "halfcheetah-vel@maml2017")
    assert fine_tuned.validation.inner_lrs == (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    assert preset("oracle", "navigation-2d@maml2017").validation.steps == 0
    assert preset("from-scratch", "navigation-2d@maml2017").validation.steps == 50
    trained = {name: preset(name, "halfcheetah-vel@plain").validation.steps for name in ("promp", "reptile")}
    assert trained == {"promp": 1, "reptile": 3}, "what is trained is what is validated"


def test_a_replication_of_few_shot_methods_trains_every_seed_and_tests_on_the_evaluations_tasks(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_fewshot_protocol import some_images, watch

    script = importlib.import_module("_replicate_fewshot")
    log, asked, planned = watch(monkeypatch), [], {}

    def training(path: Path, config: FewShotConfig, images: ImageClasses) -> Path:
        planned[path] = config
        return path

    monkeypatch.setattr(script, "load_images", lambda config: some_images())
    monkeypatch.setattr(script, "WAYS", {3: ("maml", "prototypical")})
    monkeypatch.setattr(
        script,
        "fewshot_preset",
        lambda name, data, ways: FewShotConfig(name, data, ways=ways, queries=2, test_queries=2),
    )
    monkeypatch.setattr(script, "trained_fewshot_run", training)
    monkeypatch.setattr(script, "load_fewshot_run", lambda path: StandInRun(planned[path], asked))
    monkeypatch.setattr(script, "cpu_seconds", lambda path: 1.0)
    monkeypatch.setattr(script, "keep_record", lambda path, record: None)
    code, out, err = run_script("replicate", "fewshot", "--seeds", 2, "--out", tmp_path)
    assert code == 0, err
    assert asked == [
        ("maml", 3, 0, 600, 3, 0), ("maml", 3, 1, 600, 3, 0), ("prototypical", 3, 0, 600, 0, 0),
        ("prototypical", 3, 1, 600, 0, 0),
    ]  # fmt: skip
    assert [drawn[:4] for drawn in log.drawn] == [(600, "test", 0, 0)], "pixels are compared on the same tasks"
    assert "chance" in out and "33.33" in out


# benchmark.py


def test_gradients_are_measured_on_training_tasks_with_noise_of_their_own(run_script: Run) -> None:
    script = importlib.import_module("_benchmark_gradients")
    with witnessed() as family:
        learner = dataclasses.replace(CONFIG.learner, num_inner_steps=1)
        run = dataclasses.replace(CONFIG, learner=learner)
        policy = make_policy(family, run.policy, 0)
        params = learner.inner_loop(policy).initial_meta()
        case = script.GradientCase(family, policy, params, learner, 1)
        for key in (0, 1):
            family.log.clear()
            assert len(list(case.gradients(["lvc"], 2, 3, key))) == 2
            assert family.log.draws == [Draw(3, "train", 0, 0)]
            assert family.log.worlds[0].episodes == 3 * 2
            expected = phases(MEASUREMENT, key, 0, last=1) | phases(MEASUREMENT, key, 1, last=1)
            assert sorted(family.log.streams) == sorted(expected)
