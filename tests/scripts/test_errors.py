"""Bad input: one sentence that says what, where and what would be right; exit code 2; nothing lost."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from script_runs import SCRIPTS, TINY, start

from metarl.experiment.archive import digest
from metarl.experiment.presets import preset

Run = Callable[..., tuple[int, str, str]]


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
        (("--hidden-sizes", str(10**11)), ("--hidden-sizes", "below 2**31")),
        (("--hidden-sizes", "8", str(10**9)), ("--hidden-sizes is 8 1000000000", "of memory or more", "fits")),
        (("--fvp-fraction", "0"), ("--fvp-fraction",)),
        (("--init-std", "1e-9"), ("--init-std", "--min-std")),
        (("--init-std", "nan"), ("--init-std", "--min-std")),
        (("--init-std", "inf"), ("--init-std",)),
        (("--seed", str(2**63)), ("--seed", "2**63")),
        (("--step-weights", "nan", "1"), ("--step-weights", "none negative")),
        (("--device", "cuda"), ("--device cuda", "finds no CUDA device", "--device cpu")),
        (("--run-dir", ""), ("--run-dir", "empty")),
        (("--run-dir", "x" * 300), ("xxx", "name is too long")),
        (("--resume", "no/such/run", "--run_dir", "other"), ("leave out --run-dir",)),
        (("--resume", "no/such/run"), ("no/such/run", "there is no such directory")),
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


def test_no_arguments_at_all_are_the_default_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from train import parse

    assert parse([]).config == preset("maml-trpo", "navigation-2d@maml2017")


def test_the_last_of_repeated_flags_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from train import parse

    config = parse(["--family", "navigation-2d", "--family=halfcheetah-vel@maml2017", "--seed", "1"]).config
    assert dataclasses.replace(config, seed=0) == preset("maml-trpo", "halfcheetah-vel@maml2017")


@pytest.mark.parametrize("how", ["old MuJoCo", "MUJOCO_GL"])
def test_physics_that_cannot_run_leaves_nothing(tmp_path: Path, how: str) -> None:
    prefix = f"import os; os.chdir({str(tmp_path)!r})\n"
    if how == "old MuJoCo":
        # Python's own way of saying that a module is not there, which is what MuJoCo 3 does.
        prefix += "import sys; sys.modules['mujoco.batch'] = None"
        words = ("halfcheetah-vel", "needs MuJoCo 4.0 or later", "pip install")
    else:
        prefix += "os.environ['MUJOCO_GL'] = 'bogus'"
        words = ("halfcheetah-vel", "MUJOCO_GL", "bogus")
    process = start("train", "--family", "halfcheetah-vel", prefix=prefix)
    output, errors = process.communicate(timeout=120)
    assert_one_sentence((process.returncode, output, errors), *words)
    assert list(tmp_path.iterdir()) == []


def test_existing_run_is_not_overwritten(run_script: Run, run: Path) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    assert_one_sentence(run_script("train", "--run-dir", run), str(run), "--resume")
    assert (run / "metrics.jsonl").read_bytes() == before


def test_directory_of_other_things_is_not_used(run_script: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert_one_sentence(run_script("train", "--run-dir", tmp_path), str(tmp_path), "other files")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_run_killed_before_it_had_a_config_can_be_started_again(run_script: Run, tmp_path: Path) -> None:
    for name in (".lock", "versions.json", ".config.json.abc.tmp"):
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoints").mkdir()
    assert run_script("train", "--run-dir", tmp_path, *TINY, "--iterations", 1)[0] == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ELOOP, errno.EMFILE, errno.EBADMSG])
def test_any_failing_file_operation_is_one_sentence(
    run_script: Run, run: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    assert_one_sentence(run_script("train", "--resume", run), str(run))


def test_reader_that_has_gone_away() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, SCRIPTS / "train.py", "--help"]
    result = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


def test_ctrl_c_while_python_is_still_importing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", SCRIPTS / "train.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # What runs the tests in the background may have SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    # torch's first modules are there, the last ones are not.
    for line in process.stderr:
        if "torch" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    # On a machine that stalls, the signal may come when training has begun.
    assert "interrupted" in errors or "Stopping at the next checkpoint" in errors


def test_run_directory_in_use(run_script: Run, run: Path) -> None:
    import fcntl

    with (run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_one_sentence(run_script("train", "--resume", run), str(run), "in use")


def test_resume_with_other_settings(run_script: Run, run: Path) -> None:
    assert_one_sentence(run_script("train", "--resume", run, "--seed", "7"), "--iterations", "seed")


def test_resume_with_fewer_iterations_than_are_done(run_script: Run, run: Path) -> None:
    before = (run / "config.json").read_bytes()
    assert_one_sentence(run_script("train", "--resume", run, "--iterations", "1"), "--iterations is 1", "2")
    assert (run / "config.json").read_bytes() == before


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
    before = {name: (run / name).read_bytes() for name in ("config.json", "metrics.jsonl", "versions.json")}
    assert_one_sentence(run_script("evaluate", run), "best.pt", "damaged")
    assert_one_sentence(run_script("train", "--resume", run, "--iterations", "3"), "last.pt", "damaged")
    assert {name: (run / name).read_bytes() for name in before} == before


def sign(state: dict) -> None:
    """Gives a checkpoint that was changed by hand the digest of what is in it now."""
    del state["digest"]
    state["digest"] = digest(state)


def _without(part: str, key: str) -> Callable[[dict], None]:
    return lambda state: (state if part == "" else state[part]).pop(key)


def _first_param(value: Callable[[torch.Tensor], object]) -> Callable[[dict], None]:
    def change(state: dict) -> None:
        params = state["learner"]["params"]
        name = next(iter(params))
        params[name] = value(params[name])

    return change


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_without("learner", "iteration"), "iteration"),
        (_without("learner", "env_steps"), "env_steps"),
        (_without("learner", "params"), "floating-point"),
        (_without("", "best_score"), "best_score"),
        (lambda state: state["learner"].update(iteration=True), "iteration"),
        (lambda state: state.update(learner=[]), "version"),
        (_first_param(lambda value: 1.0), "floating-point"),
        (_first_param(lambda value: value.long()), "int64"),
        (_first_param(lambda value: value.double() * 1e380), "float64"),
        (lambda state: state.update(lines=-1), "lines"),
        (lambda state: state.update(lines=10**30), "lines"),
        (lambda state: state["learner"].update(env_steps=2**70), "env_steps"),
        (lambda state: state.update(format=torch.zeros(3)), "no format"),
        (lambda state: state.update(family=torch.zeros(3)), "family"),
        (lambda state: state.update(config=None), "configuration"),
        (lambda state: state["config"].update(seed=torch.zeros(3)), "seed"),
        (lambda state: state["config"].update(later=1), "later"),
        (_first_param(lambda value: value * torch.nan), "finite"),
        (_first_param(lambda value: value[:1]), "shape"),
    ],
)
def test_checkpoint_of_other_content(run_script: Run, run: Path, damage: Callable[[dict], None], word: str) -> None:
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.pt"
        state = torch.load(path, weights_only=True)
        damage(state)
        sign(state)
        torch.save(state, path)
    assert_one_sentence(run_script("evaluate", run), "best.pt", word)
    assert_one_sentence(run_script("train", "--resume", run), "last.pt", word)


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
    assert_one_sentence(run_script("evaluate", run), "policy.hidden_sizes is [64, 64]", "[9] in config.json")


@pytest.mark.parametrize("content", ["{", '{"family": 3}', "[]", '{"policy": 1}', "[" * 100_000, "1" * 5000, "\xff"])
def test_damaged_config(run_script: Run, run: Path, content: str) -> None:
    (run / "config.json").write_text(content, encoding="latin-1")
    assert_one_sentence(run_script("evaluate", run), "config.json")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("learner", "inner_lr", "large"),
        ("learner", "inner_lr", -1),
        ("learner", "meta_batch_size", 2.0),
        ("learner", "first_order", 1),
        ("learner", "step_weights", ["1"]),
        ("learner", "step_weights", [1]),
        ("policy", "hidden_sizes", [4.5]),
        ("policy", "hidden_sizes", [True]),
        ("policy", "hidden_sizes", [0]),
        ("policy", "hidden_sizes", 4),
        ("policy", "activation", "gelu"),
        ("policy", "init_std", float("nan")),
        ("validation", "every", None),
        ("", "device", "tpu"),
        ("", "seed", 2**63),
        ("", "family", "navigation-3d"),
        ("", "algorithm", "maml"),
    ],
)
def test_bad_value_in_config_names_the_file(run_script: Run, run: Path, part: str, name: str, value: object) -> None:
    config = json.loads((run / "config.json").read_text())
    (config[part] if part else config)[name] = value
    if name == "step_weights":
        config["learner"]["num_inner_steps"] = 3
    (run / "config.json").write_text(json.dumps(config))
    word = value if name in ("family", "algorithm") else name
    for result in (run_script("evaluate", run), run_script("train", "--resume", run)):
        assert_one_sentence(result, str(run / "config.json"), str(word))
        assert "--" not in result[2]


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


def test_finished_evaluation_is_not_lost_to_its_json_target(run_script: Run, run: Path, tmp_path: Path) -> None:
    """The target is tried before the evaluation, so nothing was computed yet."""
    started = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metarl.experiment.evaluate_run.evaluate_run", lambda *_, **__: started.append(1))
        for script, arguments in (("evaluate", (run,)), ("replicate", ("maml2017", "--out", tmp_path / "out"))):
            target = tmp_path / "absent" / "out.json"
            assert_one_sentence(run_script(script, *arguments, "--json", target), str(target))
    assert not started
    assert not (tmp_path / "out").exists()


def test_resume_of_a_run_that_lost_its_last_checkpoint_loses_nothing(run_script: Run, run: Path) -> None:
    (run / "checkpoints" / "last.pt").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert_one_sentence(run_script("train", "--resume", run, "--iterations", "9"), "last.pt", "--run-dir")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("size", [0, 10, 500, 3000, -100, -1])
def test_a_checkpoint_cut_off_anywhere_is_called_damaged(run_script: Run, run: Path, size: int) -> None:
    path = run / "checkpoints" / "best.pt"
    path.write_bytes(path.read_bytes()[:size])
    assert_one_sentence(run_script("evaluate", run), str(path), "damaged")


def test_a_checkpoint_that_was_kept_can_be_named(run_script: Run, run: Path) -> None:
    shutil.copy(run / "checkpoints" / "last.pt", run / "checkpoints" / "iteration_2.pt")
    arguments = ("--num-tasks", "2", "--episodes", "1", "--steps", "1", "--checkpoint", "iteration_2")
    code, out, errors = run_script("evaluate", run, *arguments)
    assert code == 0, errors
    assert "iteration_2 checkpoint" in out
    assert_one_sentence(run_script("evaluate", run, "--checkpoint", "iteration_7"), "iteration_7", "iteration_2")


def test_an_empty_variant_is_unknown(run_script: Run) -> None:
    assert_one_sentence(run_script("train", "--family", "navigation-2d@"), "variant", "maml2017")
