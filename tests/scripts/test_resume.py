"""A run that is killed at any moment continues bitwise as if it had never stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from script_runs import TINY, start

from metarl.experiment.run_directory import RunDirectory
from metarl.experiment.trainer import Trainer

Run = Callable[..., tuple[int, str, str]]
ITERATIONS = 12


def metrics(run: Path) -> list[dict]:
    """All metrics but the timings."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def checkpoint(run: Path, name: str) -> dict:
    return torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)


def assert_same_run(a: Path, b: Path, names: Sequence[str] = ("last", "best", "iteration_10")) -> None:
    """Parameters of the checkpoints and every metric are bitwise equal."""
    assert metrics(a) == metrics(b)
    for name in names:
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


def test_sigterm_stops_as_ctrl_c_does(run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = RunDirectory.append_metrics

    def terminated(self: RunDirectory, row: dict) -> None:
        append(self, row)
        if row["iteration"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "append_metrics", terminated)
    code, out, errors = run_script("train", "--run-dir", tmp_path / "run", *TINY, "--iterations", 4)
    assert code == 130 and "--resume" in out and "Stopping at the next checkpoint" in errors
    assert len(metrics(tmp_path / "run")) == 2
    assert checkpoint(tmp_path / "run", "last")["learner"]["iteration"] == 2


PRESET_PATH = [
    *("--family", "navigation-2d@maml2017", "--meta-batch-size", 3, "--steps-per-task", 250),
    *("--validation.num-tasks", 2, "--validation.every", 2, "--hidden-sizes", 16, "--keep-every", 4),
]
"""Everything else as the preset has it: two weighted inner steps, a budget in time steps, part of the metric."""

HALF_CHEETAH = [
    *("--family", "halfcheetah-vel@maml2017", "--meta-batch-size", 2, "--episodes-per-task", 1, "--hidden-sizes", 8),
    *("--validation.num-tasks", 2, "--validation.every", 2, "--keep-every", 4),
]


@pytest.mark.parametrize("settings", [PRESET_PATH, HALF_CHEETAH], ids=["preset", "half-cheetah"])
def test_other_settings_resume_as_well(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list
) -> None:
    append = RunDirectory.append_metrics

    def interrupted(self: RunDirectory, row: dict) -> None:
        append(self, row)
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    arguments = ("--num-threads", 2, "--iterations", 4, *settings)
    assert run_script("train", "--run-dir", tmp_path / "unbroken", *arguments)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", interrupted)
        assert run_script("train", "--run-dir", tmp_path / "broken", *arguments)[0] == 130
    code, _, errors = run_script("train", "--resume", tmp_path / "broken")
    assert (code, errors) == (0, "")
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken", ("last", "best", "iteration_4"))
    config = json.loads((tmp_path / "broken" / "config.json").read_text())["learner"]
    if settings is PRESET_PATH:
        assert config["num_inner_steps"] == 2 and config["step_weights"] and config["fvp_fraction"] < 1


@pytest.fixture
def run(unbroken: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unbroken, tmp_path / "copy"))


def test_every_session_is_recorded_and_other_versions_are_said(run_script: Run, run: Path) -> None:
    file = run / "versions.json"
    (first,) = json.loads(file.read_text())
    assert first["packages"]["torch"] and first["command"]
    first["packages"]["torch"] = "2.0.0"
    # As versions.json was before it had sessions.
    file.write_text(json.dumps(first))
    _, _, errors = run_script("train", "--resume", run)
    assert errors.count("\n") == 1 and "torch 2.0.0 -> " in errors and "bit for bit" in errors
    assert [session["packages"]["torch"] == "2.0.0" for session in json.loads(file.read_text())] == [True, False]
    file.write_text("damaged")
    assert run_script("train", "--resume", run)[0] == 0
    assert len(json.loads(file.read_text())) == 1


def test_metrics_that_went_missing_are_said_and_nothing_is_lost(run_script: Run, run: Path) -> None:
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:3], b"\xff\xfe\n", *lines[5:]])
    file.write_bytes(damaged)
    code, _, errors = run_script("train", "--resume", run)
    assert code == 0
    assert errors.count("\n") == 1 and "metrics.jsonl lacks 2 of the 12 lines" in errors
    assert [row["iteration"] for row in metrics(run)] == [1, 2, 3, *range(6, 13)]
    assert (run / "metrics.damaged.jsonl").read_bytes() == damaged


def test_events_of_an_iteration_that_is_repeated_are_not_doubled(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run was killed before its first checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def killed(self: Trainer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoints", killed)
        assert run_script("train", "--run-dir", tmp_path / "run", *TINY, "--iterations", 2)[0] == 130
    # TensorBoard reads files in the order of their names, which hold the second they were made in.
    (events,) = (tmp_path / "run").glob("events.*")
    events.rename(events.with_name("events.out.tfevents.0"))
    assert run_script("train", "--resume", tmp_path / "run")[0] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in read.Scalars("kl")] == [1, 2]


def test_replication_stopped_by_ctrl_c_ends_as_training_does(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "train", lambda self: False)
    code, out, errors = run_script("replicate", "maml2017", "--quick", "--out", tmp_path)
    assert (code, errors) == (130, "")
    assert "the same command continues" in out


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
