"""Nothing of a run is overwritten or lost, and nothing that stands in the place of a file is waited for."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from script_runs import SCRIPTS, TINY, as_format_1, content, iterations
from test_errors import assert_one_sentence

import metarl.experiment.events
from metarl.experiment.archive import digest
from metarl.experiment.errors import UserError
from metarl.experiment.files import read_regular, write_bytes_atomically
from metarl.experiment.outputs import check_outputs, write_output

Run = Callable[..., tuple[int, str, str]]
SHORT = ("--num-tasks", 2, "--episodes", 1, "--steps", 1)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_no_result_is_written_onto_a_file_of_a_run(run_script: Run, run: Path, tmp_path: Path) -> None:
    """Whatever run it is, and whichever way leads there; before the work begins."""
    link, before = tmp_path / "link.json", content(run)
    link.symlink_to(run / "metrics.jsonl")
    events = next(run.glob("events.*")).name
    names = ("config.json", "versions.json", "metrics.jsonl", "checkpoints/last.pt", "checkpoints/new.pt", ".lock")
    for name in (*names, events, "evaluation_best.json", "metrics.damaged.jsonl"):
        for flag in ("--json", "--plot"):
            assert_one_sentence(run_script("evaluate", run, *SHORT, flag, run / name), name, "file of the run")
    assert_one_sentence(run_script("evaluate", run, "--json", link), str(link), "destroyed")
    assert_one_sentence(run_script("benchmark", "rollout", "--json", run / "config.json"), "destroyed")
    assert_one_sentence(run_script("replicate", "maml2017", "--plot", run / "checkpoints" / "best.pt"), "destroyed")
    with pytest.raises(UserError, match="destroyed"):
        write_output(link, b"")
    assert content(run) == before
    for name in ("mine.json", "evaluation_mine.json"):
        assert run_script("evaluate", run, *SHORT, "--json", run / name)[0] == 0


def test_two_results_do_not_go_to_one_file(run_script: Run, run: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "out")
    for first, second in ((link, tmp_path / "out"), (tmp_path / "a", tmp_path / "." / "a")):
        result = run_script("evaluate", run, "--json", first, "--plot", second)
        assert_one_sentence(result, "--json and --plot both name")
    assert not (tmp_path / "out").exists()
    assert run_script("evaluate", run, *SHORT, "--json", "/dev/null", "--plot", "/dev/null")[0] == 0


def test_pictures_go_where_pictures_go_before_any_work_is_done(run_script: Run, run: Path, tmp_path: Path) -> None:
    assert_one_sentence(run_script("visualize", run, "--out", run / "checkpoints"), "paths.png", "file of the run")
    result = run_script("evaluate", run, "--plot", tmp_path / "curve.pdf")
    assert_one_sentence(result, "curve.pdf; pictures are PNG")


def test_links_and_devices_are_written_to_and_stay(run_script: Run, run: Path, tmp_path: Path) -> None:
    target, link, device = tmp_path / "table.json", tmp_path / "link", tmp_path / "device"
    target.write_text("old")
    link.symlink_to(target)
    device.symlink_to(os.devnull)
    for path in (link, device):
        code, _, errors = run_script("evaluate", run, *SHORT, "--json", path)
        assert code == 0, errors
        assert path.is_symlink()
    assert json.loads(target.read_text())["num_tasks"] == 2
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_standard_output_is_written_to_where_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """Also where it is a file, as here: neither replaced nor overwritten."""
    write_output(Path("/dev/stdout"), b"first\n")
    write_output(Path("/dev/stdout"), b"second\n")
    assert capfd.readouterr().out == "first\nsecond\n"


def test_pipes_are_written_to_where_somebody_reads(run_script: Run, run: Path, tmp_path: Path) -> None:
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    assert_one_sentence(run_script("evaluate", run, "--json", pipe), str(pipe), "nobody reads")
    # Opened like this a pipe has a reader at once, and the check finds it.
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(handle, True)
    check_outputs(json=pipe)
    reader = os.fdopen(handle, "rb")
    reading = threading.Thread(target=lambda: received.append(reader.read()))
    reading.start()
    write_output(pipe, b"x" * 200_000)
    reading.join()
    reader.close()
    assert received == [b"x" * 200_000]
    assert pipe.is_fifo()
    with pytest.raises(IsADirectoryError):
        check_outputs(plot=tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_file_in_a_files_place_is_told_and_not_waited_for(run_script: Run, run: Path, kind: str) -> None:
    for name in ("config.json", "metrics.jsonl", ".lock", "checkpoints/last.pt", "versions.json"):
        file, before = run / name, content(run)
        config = run / "config.json"
        file.rename(run / "aside")
        (os.mkfifo if kind == "pipe" else os.mkdir)(file)
        result = run_script("train", "--resume", run, "--iterations", 9)
        if name == "versions.json" and kind == "pipe":
            # Only a record; it is written anew.
            assert result[0] == 0 and file.is_file()
            continue
        assert_one_sentence(result, str(file))
        (file.unlink if kind == "pipe" else file.rmdir)()
        (run / "aside").rename(file)
        assert content(run) == before, name
        assert json.loads(config.read_text())["iterations"] == 2
    os.mkfifo(run / "checkpoints" / "pipe.pt")
    assert_one_sentence(run_script("evaluate", run, "--checkpoint", "pipe"), "pipe.pt", "regular file")


@pytest.mark.parametrize("name", ["best", "iteration_2"])
def test_any_checkpoint_in_place_of_the_last_continues_the_run(run_script: Run, tmp_path: Path, name: str) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    arguments = (*TINY, "--keep-every", 2, "--iterations", 3)
    assert run_script("train", "--run-dir", whole, *arguments)[0] == 0
    shutil.copytree(whole, run)
    # The best one is of iteration 2, or of 3.
    shutil.copy(run / "checkpoints" / f"{name}.pt", run / "checkpoints" / "last.pt")
    code, _, errors = run_script("train", "--resume", run)
    assert (code, errors) == (0, "")
    assert not list(run.glob("metrics.damaged*"))
    states = [torch.load(path / "checkpoints" / "last.pt", weights_only=True) for path in (whole, run)]
    assert digest(states[0]) == digest(states[1])
    assert iterations(whole) == iterations(run) == [1, 2, 3]
    # As best.pt was once: a line less than it has.
    as_format_1(run / "checkpoints" / "last.pt")
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    torch.save(state | {"lines": 2}, run / "checkpoints" / "last.pt")
    code, _, errors = run_script("train", "--resume", run, "--iterations", 4)
    assert (code, errors) == (0, "")


def test_damaged_metrics_are_kept_however_often_a_run_is_resumed(run_script: Run, run: Path) -> None:
    file, kept = run / "metrics.jsonl", run / "metrics.damaged.jsonl"
    damaged = b"XXXX" + file.read_bytes()
    file.write_bytes(damaged)
    _, _, errors = run_script("train", "--resume", run)
    assert "lacks 1 of the 2 lines" in errors
    # Resumed before a checkpoint knew of the loss, and after.
    _, _, errors = run_script("train", "--resume", run, "--iterations", 3)
    assert "lacks 1 of the 2 lines" in errors
    _, _, errors = run_script("train", "--resume", run, "--iterations", 4)
    assert errors == ""
    assert kept.read_bytes() == damaged and len(list(run.glob("metrics.damaged*"))) == 1
    file.write_bytes(again := b"YYYY" + file.read_bytes())
    run_script("train", "--resume", run)
    assert kept.read_bytes() == damaged
    assert (run / "metrics.damaged-2.jsonl").read_bytes() == again


def test_what_a_kill_left_is_removed_by_the_next_session(
    run_script: Run, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else is."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    ours = [run / "config.json", run / "metrics.damaged-2.jsonl", run / "checkpoints" / "iteration_50.pt"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(os, "unlink", killed)
        for path in ours:
            with pytest.raises(Killed):
                write_bytes_atomically(path, b"half")
    assert len(list(run.rglob("*.tmp"))) == len(ours)
    theirs = [run / name for name in (".mine.tmp", ".config.json.notes.metarl.tmp", ".config.json.abcdefgh.tmp")]
    theirs.append(run / ".evaluation_best.json.abcdefgh.metarl.tmp")
    for path in theirs:
        path.write_text("")
    assert run_script("train", "--resume", run)[0] == 0
    assert sorted(run.rglob("*.tmp")) == sorted(theirs)


def test_what_a_killed_writer_of_any_file_left_is_removed_an_hour_later(tmp_path: Path) -> None:
    names = [f".{name}.metarl.tmp" for name in ("table.json.abcdefgh", "table.json.hgfedcba", "others.json.abcdefgh")]
    names.append(".table.json.mybackup.tmp")
    for name in names:
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / names[1])
    write_bytes_atomically(tmp_path / "table.json", b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[1:], "table.json"])


def test_reading_a_file_takes_the_memory_of_its_size(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"x" * 1000)
    tracemalloc.start()
    try:
        assert read_regular(file, 2**32) == b"x" * 1000
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**20
    finally:
        tracemalloc.stop()
    with pytest.raises(UserError, match="more than 999 bytes"):
        read_regular(file, 999)


def test_numbers_that_no_metric_is_are_not_drawn(run_script: Run, run: Path) -> None:
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["return/step_0"] = 10**400
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_script("visualize", run, "--tasks", 1, "--out", run / "out")[0] == 0


def test_full_disk_met_by_the_events_file_loses_nothing(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, run = metarl.experiment.events.append, tmp_path / "run"
    written = []

    def full(path: Path, data: bytes) -> None:
        written.append(data)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsencode(path))
        append(path, data)

    monkeypatch.setattr(metarl.experiment.events, "append", full)
    result = run_script("train", "--run-dir", run, *TINY, "--iterations", 3)
    assert_one_sentence(result, f"error: {run}/events.out.tfevents", "disk is full")
    code, _, errors = run_script("train", "--resume", run)
    assert (code, errors) == (0, "")
    assert iterations(run) == [1, 2, 3]


def test_a_full_standard_output_is_named(run_script: Run, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, SCRIPTS / "train.py", "--run-dir", tmp_path / "run", *TINY, "--iterations", "1"]
        done = subprocess.run([str(part) for part in command], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: the disk is full") and "--resume" in done.stderr
    assert run_script("train", "--resume", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("script", ["train", "train_fewshot"])
def test_a_run_that_has_learned_nothing_fails(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    if script == "train":
        import envs

        problem = type(envs.make("navigation-2d").problem)
        reward = problem.reward
        monkeypatch.setattr(problem, "reward", lambda *arguments: reward(*arguments) * float("nan"))
        arguments: tuple = TINY
    else:
        monkeypatch.setattr("metarl.fewshot.sinusoid.Sinusoid.sample", nan_tasks())
        arguments = ("maml", "--dataset", "sinusoid", "--meta-batch-size", 2, "--validation.every", 0)
    run = tmp_path / "run"
    code, out, errors = run_script(script, *arguments, "--run-dir", run, "--iterations", 2)
    assert code == 1, errors
    assert errors.count("\n") == 1 and "learned nothing" in errors and "Done" not in out
    monkeypatch.undo()


def nan_tasks() -> Callable:
    from metarl.fewshot.sinusoid import Sinusoid

    sample = Sinusoid.sample

    def broken(self: Sinusoid, *arguments: object, **named: object) -> object:
        tasks = sample(self, *arguments, **named)
        tasks.query.y.fill_(float("nan"))
        return tasks

    return broken


def test_name_that_is_not_utf8(run_script: Run, run: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff"))
    assert_one_sentence(run_script("train", "--run-dir", odd, *TINY), "UTF-8", "--run-dir")
    assert not odd.exists()
    run.rename(odd)
    assert_one_sentence(run_script("train", "--resume", odd), "UTF-8")


def test_closed_streams_and_odd_names_on_narrow_ones(run: Path, tmp_path: Path) -> None:
    """A daemon has no streams, and what is printed must not go into the files that are opened instead of them."""
    odd = os.fsencode(tmp_path) + b"/run\xff$_{"
    shutil.copytree(run, os.fsdecode(odd))
    python, scripts = sys.executable, str(SCRIPTS)
    training = ["--resume", str(run), "--iterations", "3"]
    closing = f'"$1" "{scripts}/train.py" {" ".join(training)} >&- 2>&- <&-'
    narrow = f'"$1" "{scripts}/evaluate.py" "$2" "$3" --num-tasks 2 --episodes 1 --steps 1 --plot "$4"'
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert subprocess.run(["sh", "-c", closing, "sh", python], check=False).returncode == 0
    assert iterations(run) == [1, 2, 3]
    shown = subprocess.run(
        ["sh", "-c", narrow, "sh", python, odd, str(run), str(tmp_path / "plot.png")],
        check=False,
        capture_output=True,
        env=environment,
    )
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert rb"run\udcff$_{" in shown.stdout
