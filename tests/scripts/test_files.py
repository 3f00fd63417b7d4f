"""What is damaged or another run's is not loaded, what belongs to a run is not overwritten, nothing is waited for."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from script_runs import SCRIPTS, TINY
from test_errors import assert_one_sentence

import metarl.experiment.events
from metarl.experiment.archive import digest
from metarl.experiment.checkpoint import read_checkpoint
from metarl.experiment.checks import read_config
from metarl.experiment.errors import UserError
from metarl.experiment.files import write_bytes_atomically
from metarl.experiment.outputs import check_outputs, write_output

Run = Callable[..., tuple[int, str, str]]
SHORT = ("--num-tasks", 2, "--episodes", 1, "--steps", 1)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def content(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def iterations(run: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def as_format_1(file: Path) -> None:
    """Makes a checkpoint what it was before it had a config and a digest."""
    state = torch.load(file, weights_only=True)
    torch.save({name: value for name, value in state.items() if name not in ("config", "digest")} | {"format": 1}, file)


class Reader:
    """Reads changed copies of a checkpoint as resuming does."""

    def __init__(self, run: Path) -> None:
        self.file, self._config = run / "checkpoints" / "last.pt", read_config(run)
        self._like = {"params": torch.load(self.file, weights_only=True)["learner"]["params"]}

    def __call__(self, changed: bytes) -> str:
        """Digest of what was loaded."""
        self.file.write_bytes(changed)
        counters = ("iteration", "env_steps", "skipped_updates")
        return digest(read_checkpoint(self.file, self._config.identity, self._like, counters, self._config))


def mutated(original: bytes, draw: random.Random) -> bytes:
    """A flipped bit (anywhere, or near the end, where names and sizes are), a lost, swapped, cut or doubled piece."""
    changed, size = bytearray(original), draw.choice((1, 8, 64, 512))
    where, other = (draw.randrange(len(original) // size) * size for _ in range(2))
    kind = draw.choice(("bit", "bit", "late bit", "zeros", "swap", "cut", "double"))
    if "bit" in kind:
        position = len(changed) - 1 - draw.randrange(1200) if kind == "late bit" else draw.randrange(len(changed))
        changed[position] ^= 1 << draw.randrange(8)
    elif kind == "zeros":
        changed[where : where + size] = bytes(size)
    elif kind == "swap":
        changed[where : where + size], changed[other : other + size] = (
            original[other : other + size],
            original[where : where + size],
        )
    elif kind == "cut":
        del changed[where:]
    else:
        changed[where:where] = original[where : where + size]
    return bytes(changed)


@pytest.mark.parametrize("version", [1, 2])
def test_no_damage_to_a_checkpoint_is_loaded(run: Path, version: int) -> None:
    read, draw, seen = Reader(run), random.Random(version), Counter()
    if version == 1:
        as_format_1(read.file)
    original = read.file.read_bytes()
    saved = read(original)
    for _ in range(250):
        try:
            seen[read(mutated(original, draw)) == saved] += 1
        except UserError:
            seen["refused"] += 1
    assert not seen[False]
    assert seen["refused"] > 150


def test_content_that_is_not_what_was_saved_is_not_loaded(run: Path) -> None:
    """Also where every checksum of the file is right."""
    read = Reader(run)
    for part, name, value in (("learner", "env_steps", 7), ("", "best_score", 0.5), ("", "lines", 1)):
        state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
        (state[part] if part else state)[name] = value
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with pytest.raises(UserError, match="not what was saved"):
            read(buffer.getvalue())


@pytest.mark.filterwarnings("ignore:Sparse invariant checks", "ignore:The PyTorch API of nested tensors")
def test_tensors_of_other_kinds_and_bytes_are_not_even_read(run: Path) -> None:
    read = Reader(run)
    state = torch.load(read.file, weights_only=True)
    name, value = next(iter(state["learner"]["params"].items()))
    others = {
        "float8": value.to(torch.float8_e4m3fn),
        "meta": torch.empty(value.shape, device="meta"),
        "nested": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "sparse": value.to_sparse(),
        "bytes": bytearray(10),
    }
    for kind, other in others.items():
        for version in (1, 2):
            state["learner"]["params"][name], state["format"] = other, version
            buffer = io.BytesIO()
            torch.save(state, buffer)
            with pytest.raises(UserError, match="something other than tensors"):
                pytest.fail(f"{kind} was loaded: {read(buffer.getvalue())}")


def test_what_would_fill_the_memory_is_not_read(run: Path) -> None:
    read = Reader(run)
    with zipfile.ZipFile(read.file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def refused(compression: int, more: list[tuple[str, bytes]]) -> None:
        buffer = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
            warnings.simplefilter("ignore")
            for name, data in [*members.items(), *more]:
                archive.writestr(name, data)
        with pytest.raises(UserError, match="damaged"):
            read(buffer.getvalue())

    refused(zipfile.ZIP_DEFLATED, [("archive/data/99", bytes(2**24))])
    refused(zipfile.ZIP_STORED, [("archive/version", b"3\n")])
    with read.file.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="no run writes"):
        read_checkpoint(read.file, {}, {}, (), read_config(run))
    many: list = []
    for _ in range(60):
        many = [many, many]
    for value in (many, torch.zeros(1).expand(2**20, 2**20)):
        with pytest.raises(ValueError, match="damaged"):
            digest(value, 1000)


def test_checkpoint_of_a_run_with_other_settings_is_told_and_makes_no_table(
    run_script: Run, run: Path, finished: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    arguments = ("--run-dir", other, *TINY, "--iterations", 1, "--seed", 7)
    assert run_script("train", *arguments)[0] == 0
    shutil.copy(other / "checkpoints" / "last.pt", run / "checkpoints" / "last.pt")
    (run / "checkpoints" / "best.pt").unlink()
    (run / "checkpoints" / "best.pt").symlink_to(other / "checkpoints" / "best.pt")
    before = content(run)
    assert_one_sentence(run_script("evaluate", run), "best.pt", "seed is 7", "0 in config.json")
    assert_one_sentence(run_script("train", "--resume", run, "--iterations", 9), "last.pt", "seed is 7")
    for name in ("../../other/checkpoints/last", str(other / "checkpoints" / "last"), "..", "a\\b"):
        assert_one_sentence(run_script("evaluate", run, "--checkpoint", name), repr(name), "not the name")
    assert content(run) == before


def test_edited_setting_is_told(run_script: Run, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["learner"]["inner_lr"] = 0.7
    (run / "config.json").write_text(json.dumps(config))
    assert_one_sentence(run_script("evaluate", run), "learner.inner_lr is ", "0.7 in config.json")
    config["learner"]["inner_lr"] = read_config_value(run)
    # What may change in a run's life, and a field that a later version has added, are no contradiction.
    config["iterations"] = 77
    (run / "config.json").write_text(json.dumps(config))
    assert run_script("evaluate", run, *SHORT)[0] == 0


def read_config_value(run: Path) -> float:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)["config"]["learner"]["inner_lr"]


def test_setting_that_is_newer_than_a_checkpoint_is_its_default(run_script: Run, run: Path) -> None:
    file = run / "checkpoints" / "best.pt"
    state = torch.load(file, weights_only=True)
    del state["config"]["observe_task"], state["digest"]
    torch.save({**state, "digest": digest(state)}, file)
    assert run_script("evaluate", run, *SHORT)[0] == 0


def test_checkpoints_without_config_and_digest_still_load_and_resume(run_script: Run, run: Path) -> None:
    for name in ("best", "last"):
        as_format_1(run / "checkpoints" / f"{name}.pt")
    assert run_script("evaluate", run, *SHORT)[0] == 0
    code, _, errors = run_script("train", "--resume", run, "--iterations", 3)
    assert (code, errors) == (0, "")
    assert torch.load(run / "checkpoints" / "last.pt", weights_only=True)["format"] == 2


def test_no_result_is_written_onto_a_file_of_a_run(run_script: Run, run: Path, tmp_path: Path) -> None:
    """Whatever run it is, and whichever way leads there; before the work begins."""
    link, before = tmp_path / "link.json", content(run)
    link.symlink_to(run / "metrics.jsonl")
    events = next(run.glob("events.*")).name
    names = ("config.json", "versions.json", "metrics.jsonl", "checkpoints/last.pt", "checkpoints/new.pt", ".lock")
    for name in (*names, events, "evaluation_best.json", "metrics.damaged.jsonl"):
        for flag in ("--json", "--plot"):
            assert_one_sentence(run_script("evaluate", run, *SHORT, flag, run / name), name, "destroyed")
    assert_one_sentence(run_script("evaluate", run, "--json", link), str(link), "destroyed")
    assert_one_sentence(run_script("benchmark", "rollout", "--json", run / "config.json"), "destroyed")
    assert_one_sentence(run_script("replicate", "maml2017", "--plot", run / "checkpoints" / "best.pt"), "destroyed")
    with pytest.raises(UserError, match="destroyed"):
        write_output(link, b"")
    assert content(run) == before
    assert run_script("evaluate", run, *SHORT, "--json", run / "mine.json")[0] == 0


def test_two_results_do_not_go_to_one_file(run_script: Run, run: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "out")
    for first, second in ((link, tmp_path / "out"), (tmp_path / "a", tmp_path / "." / "a")):
        result = run_script("evaluate", run, "--json", first, "--plot", second)
        assert_one_sentence(result, "--json and --plot both name")
    assert not (tmp_path / "out").exists()


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
    theirs = [run / name for name in (".mine.tmp", ".config.json.notes.tmp", "config.json.abcdefgh.tmp")]
    theirs.append(run / ".evaluation_best.json.abcdefgh.tmp")
    for path in theirs:
        path.write_text("")
    assert run_script("train", "--resume", run)[0] == 0
    assert sorted(run.rglob("*.tmp")) == sorted(theirs)


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
