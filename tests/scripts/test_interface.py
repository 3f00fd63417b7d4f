"""The scripts' fixed interface: listing, help, JSON fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY

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


def test_published_tasks_are_the_default(run_script: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_script("train", "--run-dir", run, *TINY, "--iterations", "1")[0] == 0
    code, out, err = run_script("evaluate", run, "--steps", "0", "--episodes", "1")
    assert code == 0, err
    assert "the 40 published test tasks" in out


def test_benchmark_rows(run_script: Run, tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    sizes = ("--family", "navigation-2d", "--meta-batch-size", "2", "--episodes-per-task", "2", "--repeats", "1")
    names = []
    for what in ("rollout", "update", "iteration"):
        code, out, err = run_script("benchmark", what, *sizes, "--json", target)
        assert code == 0, err
        rows = json.loads(target.read_text())
        for row in rows:
            assert set(row) == {
                *("name", "measured", "limit", "ratio", "unit"),
                *("cpu_seconds", "wall_seconds", "peak_memory_mb"),
            }
            assert row["ratio"] == pytest.approx(row["measured"] / row["limit"])
            assert row["name"] in out
        names += [row["name"] for row in rows]
    assert {"rollout/open_loop", "rollout/closed_loop", "iteration/total"} <= set(names)
    assert {"iteration/sampling", "iteration/update"} <= set(names)
