"""Settings beside one another: what follows what, what does nothing, who set it; and the versions of config.json."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from script_runs import SCRIPTS, TINY, as_format_1

from metarl.algorithms.composition import contradiction
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
from metarl.experiment import config as config_module
from metarl.experiment.checks import check, read_config
from metarl.experiment.config import FORMAT, TrainConfig, from_json, to_json
from metarl.experiment.errors import UserError
from metarl.experiment.fewshot_config import FewShotConfig, read_fewshot_config
from metarl.experiment.presets import preset

Run = Callable[..., tuple[int, str, str]]
Parse = Callable[..., Any]
CHEETAH, NAVIGATION = ("--family", "halfcheetah-vel"), ("--family", "navigation-2d")
RECORDED = json.loads(Path(__file__).with_name("config_defaults.json").read_text())
"""Version of config.json -> kind of run -> what a config without a single field meant then."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """`parse("train", *flags)`: the settings that a training script takes from a command line."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def parsed(script: str, *arguments: object) -> Any:
        import train
        import train_fewshot

        return {"train": train, "train_fewshot": train_fewshot}[script].parse([*map(str, arguments)]).config

    return parsed


# What follows the flags.


@pytest.mark.parametrize("family", ["navigation-2d@maml2017", "navigation-2d-corners@promp", "halfcheetah-vel@plain"])
@pytest.mark.parametrize("name", LEARNERS)
def test_steps_that_are_trained_are_validated(parse: Parse, name: str, family: str) -> None:
    validated = parse("train", name, "--family", family, "--num-inner-steps", 5).validation.steps
    assert validated == max(5, LEARNERS[name].test_steps or 0)
    given = parse("train", name, "--family", family, "--validation.steps", 4, "--validation.every", 3)
    assert given.validation.steps == 4


def test_promp_with_three_steps_on_half_cheetah_validates_three(parse: Parse) -> None:
    assert parse("train", "promp", *CHEETAH).validation.steps == 1
    assert parse("train", "promp", *CHEETAH, "--num-inner-steps=3").validation.steps == 3
    assert parse("train", "promp", *CHEETAH, "--num_inner_steps", "3").validation.steps == 3


def test_the_papers_one_step_on_the_demo_family_is_one_flag(run_script: Run, tmp_path: Path) -> None:
    flags = [flag for flag in TINY if flag != "--step-weights"]
    code, _, err = run_script("train", *flags, "--iterations", 1, "--run-dir", tmp_path / "run")
    assert code == 0 and err.count("\n") == 1
    assert err.startswith("note: --num-inner-steps is 1; the recommended --step-weights 5.0 1.0 are for 2 steps")
    assert read_config(tmp_path / "run").learner.step_weights == ()


def test_recommended_weights_stay_for_their_own_number_of_steps(parse: Parse) -> None:
    assert parse("train", "--num-inner-steps", 2).learner.step_weights == (5.0, 1.0)
    assert parse("train", "--num-inner-steps", 3, "--step-weights", 1, 2, 3).learner.step_weights == (1.0, 2.0, 3.0)
    with pytest.raises(UserError, match=r"must hold --num-inner-steps \(3\) numbers up to") as refused:
        parse("train", "--num-inner-steps", 3, "--step-weights", 5, 1)
    assert "it so" not in str(refused.value)


def test_a_number_of_episodes_takes_the_place_of_the_recommended_budget(parse: Parse) -> None:
    for episodes in (7, LearnerConfig.episodes_per_task):
        learner = parse("train", *NAVIGATION, "--episodes-per-task", episodes).learner
        assert (learner.episodes_per_task, learner.steps_per_task) == (episodes, 0)
        assert learner.worlds_per_task(100) == episodes
    learner = parse("train", *CHEETAH, "--steps-per-task", 400).learner
    assert learner.worlds_per_task(200) == 2 and contradiction(learner) is None
    learner = parse("train", *NAVIGATION, "--episodes-per-task", 7, "--steps-per-task", 0).learner
    assert (learner.episodes_per_task, learner.steps_per_task) == (7, 0)


@pytest.mark.parametrize("episodes", [7, LearnerConfig.episodes_per_task])
def test_two_budgets_are_refused(parse: Parse, episodes: int) -> None:
    with pytest.raises(UserError, match=f"--episodes-per-task is {episodes} and --steps-per-task 300"):
        parse("train", *NAVIGATION, "--episodes-per-task", episodes, "--steps-per-task", 300)


def test_two_budgets_are_refused_in_python() -> None:
    field, says = contradiction(LearnerConfig(episodes_per_task=7, steps_per_task=300)) or ("", "")
    assert field == "episodes_per_task" and "steps_per_task is 300" in says
    assert contradiction(LearnerConfig(steps_per_task=300)) is None


# What does nothing.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("random-init", "--iterations", 50), "--iterations is 50 and does nothing: this reference is not trained"),
        (("from-scratch", "--iterations", 2), "--iterations is 2 and does nothing"),
        (("maml-trpo", "--validation.every", 0, "--validation.num-tasks", 7), "where --validation.every is 0"),
        (("maml-vpg", "--validation.every", 0, "--validation.inner-lrs", 0.1), "where --validation.every is 0"),
        (("pretrain", "--inner-lr", 3), "sizes to choose from as --validation.inner-lrs"),
        (("random-init", "--inner-lr", 3), "sizes to choose from as --validation.inner-lrs"),
        (("anil", "--learned-lr", "per_step", "--later-lr-factor", 0.9), "--later-lr-factor is 0.9 and does nothing"),
        (("promp", "--memory-budget-mb", 7), "only --outer-optimizer trpo keeps graphs"),
        (("fomaml", "--line-search-steps", 1, "--line-search-decay", 0.7), "with --line-search-steps 1 no second"),
        (("fomaml", "--meta-batch-size", 1, "--fvp-fraction", 0.3), "with --meta-batch-size 1 there is one task"),
        (("fomaml", "--activation", "tanh", "--hidden-sizes"), "--hidden-sizes is empty"),
        (("maml-trpo", "--num-inner-steps", 1, "--step-weights", 2), "--step-weights is 2.0 and does nothing"),
    ],
)
def test_a_flag_without_effect_is_refused(parse: Parse, arguments: tuple, says: str) -> None:
    with pytest.raises(UserError) as refused:
        parse("train", *arguments)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("maml", "--validation.every", 0, "--validation.num-tasks", 7), "where --validation.every is 0"),
        (("siamese", "--siamese-loss", "cross_entropy", "--margin", 7), "--margin is 7.0 and does nothing"),
        (("maml", "--num-inner-steps", 0, "--first-order"), "--first-order is True and does nothing"),
        (("maml", "--num-inner-steps", 0, "--learned-lr", "shared"), "--learned-lr is shared and does nothing"),
    ],
)
def test_a_flag_of_a_few_shot_run_without_effect_is_refused(parse: Parse, arguments: tuple, says: str) -> None:
    with pytest.raises(UserError) as refused:
        parse("train_fewshot", *arguments)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("benchmark", "rollout", "--fvp-fraction", 0.5), "--fvp-fraction is 0.5; rollout does not read it"),
        (("benchmark", "rollout", "--chunk-size", 2), "--chunk-size is 2; rollout does not read it"),
        (("benchmark", "rollout", "--worlds", 4, "--episodes-per-task", 5), "--episodes-per-task is 5"),
        (("benchmark", "gradients", "--run", "x", "--hidden-sizes", 5), "--hidden-sizes is 5; gradients --run"),
        (("benchmark", "gradients", "--fvp-fraction", 0.5), "gradients does not read it"),
        (("benchmark", "fewshot", "--family", "navigation-2d"), "--family is navigation-2d; fewshot does not"),
    ],
)
def test_a_flag_that_a_script_would_ignore_is_refused(run_script: Run, arguments: tuple, says: str) -> None:
    code, _, err = run_script(*arguments)
    assert code == 2 and says in err and err.count("\n") == 1, err


def test_how_actions_are_drawn_is_for_videos(run_script: Run, finished: Path) -> None:
    code, _, err = run_script("visualize", finished, "--actions", "mean")
    assert code == 2 and "--actions is mean and does nothing" in err and not (finished / "figures").exists()


def test_a_run_with_a_setting_that_nothing_reads_goes_on(
    parse: Parse, run_script: Run, finished: Path, tmp_path: Path
) -> None:
    """Of a file nobody is misled by it."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    data = json.loads((run / "config.json").read_text())
    data["learner"] |= {"line_search_steps": 1, "line_search_decay": 0.5}
    (run / "config.json").write_text(json.dumps(data))
    as_format_1(run / "checkpoints" / "last.pt")
    check(parse("train", "--resume", run), usual=read_config(run))
    assert run_script("train", "--resume", run)[0] == 0


# Who set it, and how it is put right.


@pytest.mark.parametrize(
    ("arguments", "says", "not_said"),
    [
        (("promp", "--outer-epochs", 1), "(promp sets it so.)", "recommended"),
        (
            ("maml-trpo", "--num-inner-steps", 0, "--outer-optimizer", "reptile"),
            "--fvp-fraction is 0.5; with --outer-optimizer reptile it does nothing: only trpo reads it. It must be 1.0 "
            "here. (the recommended settings for maml-trpo on navigation-2d@maml2017 set it so.)",
            "maml-trpo sets",
        ),
        (("reptile", "--step-weights", 1, 1, 1), "It must be empty here. The flag without a value", "it so"),
        (("reptile", "--first-order"), "It must be False here. The flag --no-first-order clears it.", "empty"),
        (("reptile", "--exploration-credit", 1), "It must be 0.0 here.", "empty"),
        (("fomaml", "--num-inner-steps", 0), "(fomaml sets it so.) The flag --no-first-order clears it.", "empty"),
        (("oracle", "--exploration-credit", 1), "there are no rollouts that an inner step was taken on", "empty"),
        (("maml-trpo", "--clip-range", 0.2), "It must be 0.0 here.", "it so"),
        (("reptile", "--num-inner-steps", 0), "reptile moves to where inner steps lead", "it so"),
    ],
)
def test_a_refusal_says_who_set_it_and_what_would_be_right(
    parse: Parse, arguments: tuple, says: str, not_said: str
) -> None:
    with pytest.raises(UserError) as refused:
        parse("train", *arguments)
    assert says in str(refused.value) and not_said not in str(refused.value), refused.value


# The versions of config.json.


@pytest.mark.parametrize("kind", [TrainConfig, FewShotConfig])
def test_a_config_says_its_version_and_comes_back(kind: type) -> None:
    data = to_json(kind())
    assert data["format"] == FORMAT and from_json(kind, data, Path("x")) == kind()
    del data["format"]
    assert from_json(kind, data, Path("x")) == kind()


@pytest.mark.parametrize("version", RECORDED)
@pytest.mark.parametrize("kind", [TrainConfig, FewShotConfig])
def test_a_missing_field_is_what_it_was_in_the_configs_own_version(kind: type, version: str) -> None:
    """A default that changes needs a new `FORMAT`, the old one in `_FORMER_DEFAULTS`, and the new ones recorded here.

    `python -c "from metarl.experiment.config import *; print(to_json(TrainConfig()))"` prints them.
    """
    assert str(FORMAT) in RECORDED
    empty = {} if version == "1" else {"format": int(version)}
    found = json.loads(json.dumps(dataclasses.asdict(from_json(kind, empty, Path("x")))))
    recorded = RECORDED[version][kind.__name__]
    # A field that is newer than the version means what today's does.
    assert _only(found, recorded) == recorded
    assert version != str(FORMAT) or found == recorded


def _only(values: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _only(values[name], inner) if isinstance(inner, dict) else values[name] for name, inner in names.items()
    }


def test_defaults_of_every_former_version_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    former = {1: {"PolicyConfig": {"init_std": 3.0}}, 2: {"PolicyConfig": {"init_std": 2.0, "min_std": 0.1}}}
    monkeypatch.setattr(config_module, "FORMAT", 3)
    monkeypatch.setattr(config_module, "_FORMER_DEFAULTS", former)

    def policy(**data: Any) -> tuple[float, float]:
        found = from_json(TrainConfig, data, Path("x")).policy
        return found.init_std, found.min_std

    assert policy() == policy(format=1) == (3.0, 0.1)
    assert policy(format=2) == (2.0, 0.1)
    assert policy(format=3) == (1.0, 1e-6)
    assert policy(policy={"init_std": 5.0}) == (5.0, 0.1)


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (FORMAT + 1, f"is of format {FORMAT + 1}, and this version of metarl knows formats up to {FORMAT}"),
        *((wrong, "must be a whole number from 1 to") for wrong in (0, -1, True, 1.0, "1", None, [])),
    ],
)
def test_a_config_of_an_unknown_version_is_refused(
    run_script: Run, finished: Path, tmp_path: Path, version: object, says: str
) -> None:
    (tmp_path / "run").mkdir()
    data = json.loads((finished / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**data, "format": version, "new_field": 1}))
    code, _, err = run_script("evaluate", tmp_path / "run")
    assert code == 2 and says in err and "config.json" in err and err.count("\n") == 1, err


def test_a_run_from_before_two_budgets_were_refused_goes_on(run_script: Run, finished: Path, tmp_path: Path) -> None:
    """Its number of episodes said nothing."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    data = json.loads((run / "config.json").read_text())
    del data["format"]
    data["learner"] |= {"episodes_per_task": 7, "steps_per_task": 200}
    (run / "config.json").write_text(json.dumps(data))
    as_format_1(run / "checkpoints" / "last.pt")
    code, _, err = run_script("train", "--resume", run, "--iterations", 3)
    assert code == 0, err
    found = read_config(run)
    assert (found.learner.steps_per_task, found.iterations) == (200, 3)
    (run / "config.json").write_text(json.dumps({**data, "format": 2}))
    with pytest.raises(UserError, match="episodes_per_task is 7, but steps_per_task is 200"):
        read_config(run)


@pytest.mark.parametrize("path", sorted((SCRIPTS.parent / "pretrained").iterdir()), ids=lambda path: path.name)
def test_runs_of_the_repository_are_read(path: Path) -> None:
    config = read_config(path)
    assert dataclasses.replace(config, iterations=1) == dataclasses.replace(
        from_json(TrainConfig, to_json(config), path), iterations=1
    )
    with pytest.raises(UserError, match=r"is a run of train\.py"):
        read_fewshot_config(path)


def test_what_a_preset_is_given_changes_nothing_else() -> None:
    for name in LEARNERS:
        plain, three = (preset(name, "navigation-2d@maml2017", **given) for given in ({}, {"num_inner_steps": 3}))
        same = {"num_inner_steps": 3, "step_weights": ()}
        assert dataclasses.replace(plain.learner, **same) == dataclasses.replace(three.learner, **same)
        assert (plain.policy, plain.iterations) == (three.policy, three.iterations)
