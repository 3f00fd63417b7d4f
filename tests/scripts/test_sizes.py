"""Numbers that do not fit, in every flag of every script: one sentence, and nothing is made."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from script_runs import SCRIPTS, TINY

import envs
from metarl.adam import Adam
from metarl.algorithms.learners import LEARNERS
from metarl.collect import collect
from metarl.experiment import sizes
from metarl.experiment.checks import MOST_LAYERS, policy_words
from metarl.experiment.config import TrainConfig
from metarl.experiment.errors import UserError
from metarl.experiment.fewshot_config import FewShotConfig, fewshot_words
from metarl.experiment.fewshot_presets import fewshot_preset
from metarl.experiment.fewshot_sizes import check_fewshot_fits
from metarl.experiment.policy_run import make_policy
from metarl.experiment.presets import preset
from metarl.experiment.run_directory import RunDirectory
from metarl.experiment.sizes import check_fits, check_policy_fits, step_bytes
from metarl.fewshot.methods import METHODS
from metarl.fewshot.sinusoid import Sinusoid
from metarl.functional import initial_params
from metarl.noise import TaskNoise
from metarl.ops.tree import expand_tasks

Run = Callable[..., tuple[int, str, str]]
NUMBERS = {
    int: ("9223372036854775808", "9" * 400, "-9223372036854775809"),
    float: ("1e388", "nan", "inf", "-inf", "1e400", "-1"),
}
"""Type of a flag -> what it must not be."""


def numeric_flags(kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """(flag, int or float) of every field of a dataclass; a tuple's is that of its items."""
    for name, of_field in typing.get_type_hints(kind).items():
        inner = [part for part in (of_field, *typing.get_args(of_field)) if part in (int, float)]
        if dataclasses.is_dataclass(of_field):
            yield from numeric_flags(typing.cast(type, of_field), "validation." if name == "validation" else "")
        elif inner:
            yield f"--{prefix}{name.replace('_', '-')}", inner[0]


def argument_flags(script: str) -> list[tuple[str, type]]:
    """The same of a script that has no settings of a run."""
    import importlib
    import sys

    sys.path.insert(0, str(SCRIPTS))
    try:
        return list(numeric_flags(importlib.import_module(script).Arguments))
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize("script", ["train", "train_fewshot", "evaluate", "visualize", "benchmark", "replicate"])
def test_every_numeric_flag_refuses_what_does_not_fit(
    run_script: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {
        "train": ("promp",),
        "train_fewshot": ("maml",),
        "benchmark": ("iteration", "--family", "navigation-2d"),
        "replicate": ("learners",),
    }.get(script, (finished,))
    kind = {"train": TrainConfig, "train_fewshot": FewShotConfig}.get(script)
    flags = argument_flags(script) if kind is None else list(numeric_flags(kind))
    assert len(flags) >= 3
    monkeypatch.setattr(RunDirectory, "create", lambda *_: pytest.fail("a run was made"))
    for flag, of_flag in flags:
        for value in NUMBERS[of_flag]:
            given = (f"{flag}={value}",) if value.startswith("-") else (flag, value)
            code, out, err = run_script(script, *before, *given)
            assert (code, out) == (2, ""), (flag, value, out, err)
            assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, (flag, value, err)
            assert flag in err, (flag, value, err)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "available_bytes", lambda device="cpu": 10**8)


@pytest.mark.parametrize(
    ("script", "arguments", "flag"),
    [
        ("train", ("maml-trpo", *TINY, "--meta-batch-size", 10**6), "--meta-batch-size"),
        ("train", ("maml-trpo", *TINY, "--episodes-per-task", 10**6), "--episodes-per-task"),
        ("train", ("maml-trpo", "--steps-per-task", 2 * 10**9), "--steps-per-task"),
        ("train", ("maml-trpo", *TINY, "--num-inner-steps", 10**6), "--num-inner-steps"),
        ("train", ("maml-trpo", *TINY, "--hidden-sizes", 8, 10**7), "--hidden-sizes"),
        ("train", ("maml-trpo", *TINY, "--validation.num-tasks", 10**6), "--validation.num-tasks"),
        ("train", ("maml-trpo", *TINY, "--validation.steps", 10**9), "--validation.steps"),
        ("train", ("cavia", *TINY, "--context-dim", 10**7), "--context-dim"),
        ("train_fewshot", ("maml", "--dataset", "sinusoid", "--shots", 10**7), "--shots"),
        ("train_fewshot", ("maml", "--dataset", "sinusoid", "--queries", 10**7), "--queries"),
        ("train_fewshot", ("maml", "--dataset", "sinusoid", "--test-shots", 10**8), "--test-shots"),
        ("train_fewshot", ("maml", "--dataset", "sinusoid", "--test-queries", 10**8), "--test-queries"),
        ("train_fewshot", ("maml", "--dataset", "sinusoid", "--meta-batch-size", 10**7), "--meta-batch-size"),
        ("train_fewshot", ("maml", "--dataset", "sinusoid", "--hidden-sizes", 10**6), "--hidden-sizes"),
        ("train_fewshot", ("maml", "--dataset", "sinusoid", "--validation.num-tasks", 10**9), "--validation.num-tasks"),
        ("train_fewshot", ("meta-lstm", "--dataset", "sinusoid", "--lstm-size", 10**6), "--lstm-size"),
        ("train_fewshot", ("snail", "--dataset", "sinusoid", "--tc-filters", 10**6), "--tc-filters"),
        ("train_fewshot", ("snail", "--dataset", "sinusoid", "--attention-keys", 2, 10**6), "--attention-keys"),
        ("train_fewshot", ("snail", "--dataset", "sinusoid", "--test-shots", 10**5), "--test-shots"),
        ("train_fewshot", ("prototypical", "--dataset", "digits", "--channels", 10**5), "--channels"),
        ("evaluate", ("RUN", "--num-tasks", 10**6), "--num-tasks"),
        ("evaluate", ("RUN", "--episodes", 10**6), "--episodes"),
        ("evaluate", ("RUN", "--steps", 10**9), "--steps"),
        ("visualize", ("RUN", "--steps", 10**9), "--steps"),
        ("benchmark", ("rollout", "--family", "navigation-2d", "--worlds", 64, 10**6), "--worlds"),
        ("benchmark", ("update", "--family", "navigation-2d", "--episodes-per-task", 10**6), "--episodes-per-task"),
        ("benchmark", ("gradients", "--family", "navigation-2d", "--hidden-sizes", 10**8), "--hidden-sizes"),
        ("replicate", ("learners", "--seeds", 10**9), "--seeds"),
        ("replicate", ("maml2017", "--steps", 10**9), "--steps"),
    ],
)
def test_what_exceeds_the_memory_is_refused_with_what_would_fit(
    run_script: Run,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    little_memory: None,
    script: str,
    arguments: tuple,
    flag: str,
) -> None:
    if "digits" in arguments:
        pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    if "RUN" not in arguments:
        monkeypatch.setattr(torch.nn.Linear, "__init__", lambda *_, **__: pytest.fail("a layer was made"))
    figures = ("--out", "figures") if script == "visualize" else ()
    code, out, err = run_script(script, *(finished if part == "RUN" else part for part in arguments), *figures)
    assert (code, out) == (2, ""), err
    assert err.startswith(f"error: {flag} is ") and err.count("\n") == 1, err
    assert re.search(r"of memory or more, and there are 0\.1 GB; .* at most \d+ fits\.", err), err
    assert list(tmp_path.iterdir()) == []


def test_the_number_that_is_said_to_fit_fits_and_the_next_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "available_bytes", lambda device: 1000)

    def need(given: sizes.Sizes) -> int:
        return 7 * given["tasks"] * given["episodes"] + sum(given["widths"])

    small = {"tasks": 2, "episodes": 3, "widths": (5, 500)}

    def refusal(**changes: Any) -> str:
        with pytest.raises(UserError) as refused:
            check_fits({**small, **changes}, small, need, lambda name: f"<{name}>")
        return str(refused.value)

    check_fits(small, small, need, str)
    # 495 bytes are left: 7 * 3 * 23 = 483.
    assert refusal(tasks=24).startswith("<tasks> is 24") and "at most 23 fits" in refusal(tasks=10**30)
    check_fits({**small, "tasks": 23}, small, need, str)
    # The narrow layer stays; 1000 - 42 - 5.
    assert "<widths> is 5 954" in refusal(widths=(5, 954)) and "at most 953 fits" in refusal(widths=(5, 954))
    check_fits({**small, "widths": (5, 953)}, small, need, str)
    # What exceeds the ordinary most is named; where no one alone is to blame, two are.
    assert refusal(tasks=3, episodes=10**6).startswith("<episodes>")
    assert refusal(tasks=10**6, episodes=10**9).startswith("<episodes> and <tasks> are too large: together")


@pytest.mark.parametrize(
    "family", ["navigation-2d@maml2017", "navigation-2d-corners@promp", "halfcheetah-vel@maml2017"]
)
def test_recommended_runs_fit_into_a_small_machine(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr(sizes, "available_bytes", lambda device: 2 * 10**9)
    made = envs.make(family)
    for name in LEARNERS:
        check_policy_fits(preset(name, family), made, policy_words().label)
    for name in METHODS:
        if METHODS[name].regression:
            check_fewshot_fits(fewshot_preset(name, "sinusoid"), Sinusoid(10, 10), fewshot_words().label)


def test_a_rollout_keeps_as_much_as_is_said() -> None:
    family, config = envs.make("navigation-2d"), preset("maml-trpo", "navigation-2d@maml2017")
    policy = make_policy(family, config.policy, 0)
    env = family.batch(family.sample_tasks(2), 3)
    rollout = collect(env, policy, expand_tasks(initial_params(policy), 2), TaskNoise((0,), 2))
    leaves = torch.utils._pytree.tree_leaves(rollout)
    kept = sum(leaf.untyped_storage().nbytes() for leaf in leaves) / (2 * 3 * family.horizon)
    # With the noise of the actions, which is there while they are collected.
    assert 0.5 * kept < step_bytes(family) < 1.1 * kept + 4 * family.action_dim


@pytest.mark.parametrize(
    ("script", "before", "flag", "value"),
    [
        ("train", (), "--hidden-sizes", 1),
        ("train_fewshot", ("maml", "--dataset", "sinusoid"), "--hidden-sizes", 1),
        ("train_fewshot", ("snail", "--dataset", "sinusoid"), "--attention-keys", 2),
        ("benchmark", ("update",), "--hidden-sizes", 1),
        ("train", ("maml-trpo",), "--step-weights", 1),
    ],
)
def test_lists_of_absurd_length_are_refused_in_a_short_sentence(
    run_script: Run, tmp_path: Path, script: str, before: tuple, flag: str, value: int
) -> None:
    into = ("--run-dir", tmp_path / "run") if script.startswith("train") else ()
    code, _, err = run_script(script, *before, *into, flag, *[value] * 5000)
    assert code == 2 and err.startswith(f"error: {flag} ") and err.count("\n") == 1 and len(err) < 400
    assert "step-weights" in flag or f"there must be at most {MOST_LAYERS}" in err
    assert list(tmp_path.iterdir()) == []


def test_a_config_of_absurd_size_is_refused_before_a_network_is_made(
    run_script: Run, finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    data = json.loads((run / "config.json").read_text())
    for widths, says in (([10**9, 10**9], "of memory or more"), ([2**31], "below 2**31")):
        data["policy"]["hidden_sizes"] = widths
        (run / "config.json").write_text(json.dumps(data))
        code, _, err = run_script("evaluate", run)
        assert code == 2 and f"{run / 'config.json'}: policy.hidden_sizes is" in err and says in err, err


def test_threads_beyond_any_machine_are_refused(run_script: Run) -> None:
    for script in ("train", "train_fewshot"):
        code, _, err = run_script(script, "--num-threads", 100_000)
        assert code == 2 and "--num-threads is 100000; it must be between 0 and 1024" in err


@pytest.mark.parametrize("script", ["train", "train_fewshot"])
def test_an_outer_step_size_that_adam_cannot_hold_is_refused(run_script: Run, tmp_path: Path, script: str) -> None:
    name = "promp" if script == "train" else "maml"
    code, _, err = run_script(script, name, "--outer-lr", "1e38", "--run-dir", tmp_path / "run")
    assert code == 2 and "--outer-lr is 1e+38; it must be positive and at most 1e37." in err, err
    assert list(tmp_path.iterdir()) == []


def test_the_largest_outer_step_size_is_one_that_adam_can_hold() -> None:
    params = {"x": torch.zeros(2)}
    Adam(params, 1e37).step(params, {"x": torch.ones(2)})
