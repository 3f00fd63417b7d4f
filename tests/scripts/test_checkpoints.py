"""A checkpoint that is damaged, malicious or of another run is never loaded: not a byte of it."""

from __future__ import annotations

import io
import json
import random
import shutil
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from script_runs import TINY, as_format_1, content
from test_errors import assert_one_sentence

from metarl.experiment.archive import digest
from metarl.experiment.checkpoint import read_checkpoint
from metarl.experiment.checks import read_config
from metarl.experiment.errors import UserError

Run = Callable[..., tuple[int, str, str]]
SHORT = ("--num-tasks", 2, "--episodes", 1, "--steps", 1)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


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
