"""The scripts' fixed interface: listing, help, JSON fields."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from script_runs import SCRIPTS, TINY

import envs
from metarl.experiment.progress import status

Run = Callable[..., tuple[int, str, str]]
ALL = ["train", "evaluate", "visualize", "replicate", "benchmark"]


@pytest.mark.parametrize("script", ALL)
def test_list_names_families_variants_and_algorithms(run_script: Run, script: str) -> None:
    code, out, _ = run_script(script, "--list")
    assert code == 0
    for name in ("navigation-2d@maml2017", "halfcheetah-vel@plain", "halfcheetah-vel@promp", "maml-trpo"):
        assert name in out


@pytest.mark.parametrize("script", ALL)
def test_help_explains_every_flag(run_script: Run, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run_script(script, "--help")
    assert code == 0
    lines = [line.strip("│ ").strip() for line in out.splitlines()]
    for index, line in enumerate(lines):
        if line.startswith("--") and line.strip("-"):
            following = lines[index + 1] if index + 1 < len(lines) else "--"
            assert len(line.split("  ", 1)) == 2 or not following.startswith("--"), line


def test_train_evaluate_and_their_files(run_script: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = run_script("train", "maml-trpo", "--run-dir", run, *TINY, "--iterations", "2", "--seed", "3")
    assert code == 0, err
    assert str(run) in out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = ("return/step_0", "return/step_1", "kl", "expected_gain", "actual_gain", "line_search/fraction")
    wanted += ("cg_residual", "gradient_norm", "entropy/step_0", "std/step_1", "time/env_steps_per_second")
    wanted += ("time/sampling_seconds", "time/updating_seconds")
    assert all(key in row for row in rows for key in wanted)
    assert list(run.glob("events.*"))
    assert json.loads((run / "versions.json").read_text())[-1]["packages"]["torch"]
    target = tmp_path / "out.json"
    arguments = ("--steps", "2", "--num-tasks", "5", "--episodes", "3", "--checkpoint", "last", "--json", target)
    code, out, err = run_script("evaluate", run, *arguments)
    assert code == 0, err
    assert "published: MAML" in out
    record = json.loads(target.read_text())
    assert (record["family"], record["variant"]) == ("navigation-2d", "maml2017")
    assert (record["steps"], record["num_tasks"], record["episodes"]) == (2, 5, 3)
    assert len(record["return_mean"]) == len(record["return_ci95"]) == 3
    assert [len(row) for row in record["per_task"]] == [3] * 5
    for k in range(3):
        column = [row[k] for row in record["per_task"]]
        assert record["return_mean"][k] == pytest.approx(sum(column) / 5)
        variance = sum((value - record["return_mean"][k]) ** 2 for value in column) / 4
        assert record["return_ci95"][k] == pytest.approx(1.96 * (variance / 5) ** 0.5)
    again = tmp_path / "again.json"
    run_script("evaluate", run, *arguments[:-1], again)
    assert json.loads(again.read_text()) == record


def test_published_tasks_are_the_default(run_script: Run, finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    code, out, err = run_script("evaluate", finished, "--steps", "0", "--episodes", "1", "--json", target)
    assert code == 0, err
    assert "the 40 published test tasks" in out
    assert "other tasks" not in out
    tasks = np.random.RandomState(1).uniform(-0.5, 0.5, (40, 2))
    assert json.loads(target.read_text())["tasks"] == tasks.tolist()


def test_drawn_tasks_are_not_those_of_the_published_rows(run_script: Run, finished: Path) -> None:
    _, out, _ = run_script("evaluate", finished, "--steps", "0", "--episodes", "1", "--num-tasks", "3")
    assert "measured on other tasks than these" in out


def test_only_the_default_protocol_becomes_the_table_of_the_run(
    run_script: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "pretrained" / "run"))
    table = run / "evaluation_best.json"
    for flag in ("--steps", "--num-tasks", "--episodes", "--seed"):
        others = () if flag == "--episodes" else ("--episodes", "1")
        assert run_script("evaluate", run, flag, "2", *others)[0] == 0
        assert not table.exists()
    code, out, err = run_script("evaluate", run)
    assert code == 0, err
    assert f"saved {table}" in out
    record = json.loads(table.read_text())
    assert (record["checkpoint"], record["evaluation_seed"], record["nonfinite_steps"]) == ("best", 0, 0)
    assert len(record["tasks"]) == record["num_tasks"] == 40
    table.unlink()
    monkeypatch.setattr("_common.REPOSITORY", tmp_path)
    assert run_script("evaluate", run)[0] == 0
    assert not table.exists()


def test_evaluation_that_is_not_finite_is_said(
    run_script: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = type(envs.make("navigation-2d").problem)
    reward = problem.reward
    monkeypatch.setattr(problem, "reward", lambda *arguments: reward(*arguments) * float("nan"))
    target = tmp_path / "out.json"
    code, out, err = run_script("evaluate", finished, "--steps", "0", "--episodes", "1", "--json", target)
    assert code == 0, err
    record = json.loads(target.read_text())
    assert record["nonfinite_steps"] == record["env_steps"]
    assert f"{record['env_steps']:,} steps were not finite" in out
    assert record["return_mean"] == [None]


def test_updates_that_are_not_finite_are_skipped_and_said(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy, sick = tmp_path / "healthy", tmp_path / "sick"
    run_script("train", "--run-dir", healthy, *TINY, "--iterations", "1", "--keep-every", "1")
    assert run_script("train", "--run-dir", sick, *TINY, "--iterations", "1")[0] == 0
    problem = type(envs.make("navigation-2d").problem)
    reward = problem.reward
    monkeypatch.setattr(problem, "reward", lambda *arguments: reward(*arguments) * float("nan"))
    code, out, err = run_script("train", "--resume", sick, "--iterations", "3")
    assert code == 0, err
    assert "Skipped 2 updates" in out
    before, after = (torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (healthy, sick))
    assert (after["learner"]["iteration"], after["learner"]["skipped_updates"]) == (3, 2)
    assert all(
        torch.equal(value, after["learner"]["params"][name]) for name, value in before["learner"]["params"].items()
    )
    rows = [json.loads(line) for line in (sick / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped_updates"] for row in rows] == [0, 1, 2]


def test_printed_commands_run_as_they_stand(run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    _, out, _ = run_script("train", "--run-dir", "my run", *TINY, "--iterations", "1")
    assert f"Next: .venv/bin/python {SCRIPTS / 'evaluate.py'} 'my run'   and " in out
    monkeypatch.chdir(SCRIPTS.parent)
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    module = importlib.import_module("_common")
    assert module.command("train.py", "--resume", "a") == "/usr/bin/python3 scripts/train.py --resume a"


def test_long_work_shows_a_line_on_a_terminal_only() -> None:
    for terminal in (True, False):
        output = io.StringIO()
        with status("adapting ...", Console(file=output, force_terminal=terminal, width=80)):
            pass
        assert ("adapting ..." in output.getvalue()) is terminal


def test_commit_is_that_of_this_package_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metarl.experiment import run_directory

    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    installed = tmp_path / "lib" / "metarl" / "experiment"
    installed.mkdir(parents=True)
    monkeypatch.setattr(run_directory, "__file__", str(installed / "run_directory.py"))
    assert run_directory.session()["commit"] is None


def test_benchmark_rows(run_script: Run, tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    sizes = ("--family", "navigation-2d", "--meta-batch-size", "2", "--episodes-per-task", "2", "--repeats", "1")
    names = []
    for what in ("rollout", "update", "iteration"):
        figure = tmp_path / f"{what}.png"
        code, out, err = run_script("benchmark", what, *sizes, "--json", target, "--plot", figure)
        assert figure.read_bytes().startswith(b"\x89PNG")
        assert code == 0, err
        rows = json.loads(target.read_text())
        for row in rows:
            assert set(row) == {
                *("name", "measured", "limit", "ratio", "unit"),
                *("cpu_seconds", "wall_seconds", "peak_memory_mb", "worlds"),
            }
            assert row["ratio"] == pytest.approx(row["measured"] / row["limit"])
            assert row["name"] in out
        names += [row["name"] for row in rows]
    assert {"rollout/open_loop", "rollout/closed_loop", "iteration/total"} <= set(names)
    assert {"iteration/sampling", "iteration/update"} <= set(names)


@pytest.mark.parametrize(("family", "backend"), [("navigation-2d", "auto"), ("halfcheetah-vel", "warp")])
def test_benchmark_sweeps_the_number_of_worlds(run_script: Run, tmp_path: Path, family: str, backend: str) -> None:
    if backend == "warp":
        pytest.importorskip("mujoco_warp")
    target = tmp_path / "bench.json"
    sizes = ("--meta-batch-size", "3", "--repeats", "1", "--hidden-sizes", "8", "--worlds", "2", "6")
    where = ("--family", family, "--backend", backend, "--json", target)
    code, out, err = run_script("benchmark", "rollout", *where, *sizes)
    assert code == 0, err
    rows = json.loads(target.read_text())
    # Tasks are a power of two, and share the worlds evenly.
    assert [(row["name"], row["worlds"]) for row in rows] == [
        (name, worlds) for worlds in (2, 6) for name in ("rollout/open_loop", "rollout/closed_loop")
    ]
    assert ("physics steps" in out) is (family == "halfcheetah-vel")
    code, _, err = run_script("benchmark", "rollout", "--worlds", "0")
    assert code == 2 and "--worlds is 0" in err
