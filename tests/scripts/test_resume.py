"""A run that is killed at any moment continues bitwise as if it had never stopped."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, start

ITERATIONS = 12


def metrics(run: Path) -> list[dict]:
    """All metrics but the timings."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def checkpoint(run: Path, name: str) -> dict:
    return torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)


def assert_same_run(a: Path, b: Path) -> None:
    """Parameters of both checkpoints and every metric are bitwise equal."""
    assert metrics(a) == metrics(b)
    for name in ("last", "best", "iteration_10"):
        first, second = checkpoint(a, name), checkpoint(b, name)
        for key, value in first["learner"].pop("params").items():
            assert torch.equal(value, second["learner"]["params"][key]), (name, key)
        second["learner"].pop("params")
        assert first == second


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unbroken") / "run"
    train(path)
    return path


def train(path: Path, prefix: str = "", resume: bool = False) -> int:
    where = ("--resume", path) if resume else ("--run-dir", path, *TINY, "--iterations", ITERATIONS, "--keep-every", 10)
    process = start("train", *where, prefix=prefix)
    output, errors = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), output + errors
    return process.returncode


def test_killed_at_random_moments(unbroken: Path, tmp_path: Path) -> None:
    path, moments = tmp_path / "run", random.Random(0)
    arguments: tuple = ("--run-dir", path, *TINY, "--iterations", ITERATIONS, "--keep-every", 10)
    for _ in range(4):
        process = start("train", *arguments)
        deadline = time.monotonic() + 60
        while not (path / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.communicate()
        arguments = ("--resume", path)
    assert train(path, resume=True) == 0
    assert_same_run(unbroken, path)


# Call n of os.replace is the end of the n-th atomic write: 1 versions.json, 2 config.json, then checkpoints.
@pytest.mark.parametrize("write", [3, 5, 8])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_in_the_middle_of_a_write(unbroken: Path, tmp_path: Path, write: int, moment: str) -> None:
    path = tmp_path / "run"
    prefix = f"""
import os, signal
replace, calls = os.replace, 0
def killing(*paths):
    global calls
    calls += 1
    if calls == {write} and {moment!r} == "before": os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
    if calls == {write}: os.kill(os.getpid(), signal.SIGKILL)
os.replace = killing
"""
    assert train(path, prefix=prefix) == -signal.SIGKILL
    assert train(path, resume=True) == 0
    assert_same_run(unbroken, path)


def test_metrics_line_left_unfinished_is_dropped(unbroken: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    prefix = """
import os, signal
import metarl.experiment.run_directory as r
append = r.RunDirectory.append_metrics
def half(self, row):
    if row["iteration"] == 6:
        with (self.path / "metrics.jsonl").open("a") as file: file.write('{"iteration": 6, "ret')
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, row)
r.RunDirectory.append_metrics = half
"""
    assert train(path, prefix=prefix) == -signal.SIGKILL
    assert train(path, resume=True) == 0
    assert_same_run(unbroken, path)


def test_ctrl_c_saves_and_stops_and_resumes(unbroken: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start("train", "--run-dir", path, *TINY, "--iterations", ITERATIONS, "--keep-every", 10)
    while not (path / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    assert "--resume" in output
    assert "Traceback" not in errors
    done = len(metrics(path))
    assert 0 < done < ITERATIONS
    assert checkpoint(path, "last")["learner"]["iteration"] == done
    assert train(path, resume=True) == 0
    assert_same_run(unbroken, path)


def test_more_iterations_continue_a_finished_run(unbroken: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start("train", "--run-dir", path, *TINY, "--iterations", 5, "--keep-every", 10, "--validation.every", 4)
    assert process.wait(timeout=60) == 0
    process.communicate()
    process = start("train", "--resume", path, "--iterations", 7)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert [row["iteration"] for row in metrics(path)] == list(range(1, 8))
    before_and_after = [row["return/step_1"] for row in metrics(path)]
    assert before_and_after == [row["return/step_1"] for row in metrics(unbroken)[:7]]
