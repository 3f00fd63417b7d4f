"""Bad input: one sentence that says what, where and what would be right; exit code 2; nothing lost."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, start

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run; tests that damage it take a copy."""
    path = tmp_path_factory.mktemp("finished") / "run"
    process = start("train", "--run-dir", path, *TINY, "--iterations", 2)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def assert_one_sentence(result: tuple[int, str, str], *words: str) -> None:
    code, _, errors = result
    assert code == 2, errors
    assert "Traceback" not in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1, errors
    for word in words:
        assert word in errors, (word, errors)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("maml-trpo", "--family", "navigaton-2d"), ("navigation-2d", "--list")),
        (("maml-trpo", "--family", "halfcheetah-vel@maml17"), ("maml2017",)),
        (("maml-tropo",), ("maml-trpo",)),
        (("--iterations", "0"), ("--iterations", "positive")),
        (("--gamma", "1.5"), ("--gamma", "at most 1")),
        (("--gae-lambda", "-0.1"), ("--gae-lambda",)),
        (("--max-kl", "nan"), ("--max-kl",)),
        (("--inner-lr", "inf"), ("--inner-lr",)),
        (("--seed", "-1"), ("--seed", "zero or more")),
        (("--hidden-sizes", "10", "0"), ("--hidden-sizes",)),
        (("--fvp-fraction", "0"), ("--fvp-fraction",)),
        (("--init-std", "1e-9"), ("--init-std", "--min-std")),
        (("--resume", "no/such/run"), ("no/such/run", "config.json")),
    ],
)
def test_train_refuses_bad_arguments(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, words: tuple
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(run_script("train", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_wrong_type_is_reported_by_the_flag_parser(run_script: Run) -> None:
    code, _, errors = run_script("train", "--iterations", "many")
    assert code == 2
    assert "--iterations" in errors
    assert "Traceback" not in errors


def test_cuda_without_a_device(run_script: Run, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert_one_sentence(run_script("train", "--device", "cuda", "--run-dir", tmp_path / "run"), "--device cuda", "cpu")


def test_existing_run_is_not_overwritten(run_script: Run, run: Path) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    assert_one_sentence(run_script("train", "--run-dir", run), str(run), "--resume")
    assert (run / "metrics.jsonl").read_bytes() == before


def test_run_directory_in_use(run_script: Run, run: Path) -> None:
    import fcntl

    with (run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_one_sentence(run_script("train", "--resume", run), str(run), "in use")


def test_resume_with_other_settings(run_script: Run, run: Path) -> None:
    assert_one_sentence(run_script("train", "--resume", run, "--seed", "7"), "--iterations", "seed")


def test_run_directory_that_cannot_be_made(run_script: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_one_sentence(run_script("train", "--run-dir", tmp_path / "file" / "run"), "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_run_directory_that_may_not_be_written(run_script: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert_one_sentence(run_script("train", "--run-dir", tmp_path / "run"), "permission")


def test_disk_full_keeps_the_last_checkpoint(run: Path) -> None:
    """A file-size limit stands in for a full disk: the write fails in the same place, with another errno."""
    last = (run / "checkpoints" / "last.pt").read_bytes()
    limit = len(last) // 2
    prefix = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY}))"
    )
    process = start("train", "--resume", run, "--iterations", 4, prefix=prefix)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert "error: " in errors
    assert ".pt" in errors
    assert (run / "checkpoints" / "last.pt").read_bytes() == last
    assert not list(run.rglob("*.tmp"))
    process = start("train", "--resume", run)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors


def test_truncated_checkpoint(run_script: Run, run: Path) -> None:
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.pt"
        path.write_bytes(path.read_bytes()[:1000])
    assert_one_sentence(run_script("evaluate", run), "best.pt", "damaged")
    assert_one_sentence(run_script("train", "--resume", run, "--iterations", "3"), "last.pt", "damaged")


def test_malicious_checkpoint_runs_no_code(run_script: Run, run: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (os.system, (f"touch {tmp_path / 'exploded'}",))

    best = run / "checkpoints" / "best.pt"
    torch.save({"format": 1, "learner": Bomb()}, best)
    assert_one_sentence(run_script("evaluate", run), "best.pt", "not loaded")
    best.write_bytes(pickle.dumps(Bomb()))
    assert_one_sentence(run_script("evaluate", run), "best.pt")
    assert not (tmp_path / "exploded").exists()


def test_checkpoint_of_another_family(run_script: Run, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["family"] = "halfcheetah-vel@plain"
    (run / "config.json").write_text(json.dumps(config))
    assert_one_sentence(run_script("evaluate", run), "navigation-2d@maml2017", "halfcheetah-vel@plain")


def test_checkpoint_of_another_network(run_script: Run, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["policy"]["hidden_sizes"] = [9]
    (run / "config.json").write_text(json.dumps(config))
    assert_one_sentence(run_script("evaluate", run), "layers")


@pytest.mark.parametrize("content", ["{", '{"family": 3}', "[]", '{"policy": 1}'])
def test_damaged_config(run_script: Run, run: Path, content: str) -> None:
    (run / "config.json").write_text(content)
    assert_one_sentence(run_script("evaluate", run), "config.json")


def test_config_value_of_the_wrong_type(run_script: Run, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["learner"]["inner_lr"] = "large"
    (run / "config.json").write_text(json.dumps(config))
    assert_one_sentence(run_script("evaluate", run), "config.json", "inner_lr")


def test_evaluate_refuses_what_is_not_a_run(run_script: Run, tmp_path: Path) -> None:
    assert_one_sentence(run_script("evaluate", tmp_path), "config.json")
    assert_one_sentence(run_script("evaluate", tmp_path / "absent"), "absent")


def test_evaluate_refuses_bad_numbers(run_script: Run, run: Path) -> None:
    assert_one_sentence(run_script("evaluate", run, "--num-tasks", "0"), "--num-tasks", "positive")
    assert_one_sentence(run_script("evaluate", run, "--steps", "-1"), "--steps")


def test_unwritable_json_target(run_script: Run, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "absent" / "out.json"
    result = run_script("evaluate", run, "--num-tasks", "2", "--episodes", "1", "--json", target)
    assert_one_sentence(result, str(target))
