"""The scripts with `--device cuda`, on the emulated device everywhere and on a real one with -m gpu."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

TINY = [
    *("--meta-batch-size", 2), *("--episodes-per-task", 2), *("--hidden-sizes", 8), *("--num-threads", 1),
    *("--device", "cuda"),
]  # fmt: skip
TRAIN = [
    *("maml-trpo", "--family", "navigation-2d", "--steps-per-task", 0, "--cg-iters", 3, "--num-inner-steps", 1),
    *("--step-weights", "--validation.every", 1, "--validation.num-tasks", 2, *TINY),
]  # fmt: skip


def untimed_metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def test_a_run_trains_resumes_is_evaluated_and_drawn(run_script, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def succeed(*arguments):
        code, out, err = run_script(*arguments)
        assert code == 0, out + err

    succeed("train", *TRAIN, "--iterations", 2, "--run-dir", whole)
    succeed("train", *TRAIN, "--iterations", 1, "--run-dir", cut)
    succeed("train", "--resume", cut, "--iterations", 2)
    assert all(line["nonfinite_steps"] == 0 and line["skipped_updates"] == 0 for line in untimed_metrics(whole))
    # To rounding, not to the bit as on the CPU: a resumed run's parameters lie elsewhere in memory.
    for resumed, unbroken in zip(untimed_metrics(cut), untimed_metrics(whole), strict=True):
        assert resumed == pytest.approx(unbroken, rel=1e-3)
    saved = torch.load(whole / "checkpoints" / "last.pt", map_location="cpu", weights_only=True)["learner"]["params"]
    assert all(torch.isfinite(value).all() for value in saved.values())
    for where in ("cpu", "cuda"):
        table = tmp_path / f"{where}.json"
        succeed("evaluate", whole, "--num-tasks", 2, "--episodes", 2, "--device", where, "--json", table)
        assert all(value < 0 for value in json.loads(table.read_text())["return_mean"])
    succeed("visualize", whole, "--tasks", 1, "--out", tmp_path / "drawn")
    assert list((tmp_path / "drawn").glob("*.png"))


@pytest.mark.parametrize("family", ["navigation-2d", "halfcheetah-vel"])
def test_benchmarks_compare_the_loop_with_the_physics_and_the_cpu(family, run_script, tmp_path):
    if family == "halfcheetah-vel":
        pytest.importorskip("mujoco_warp")
    cases = [("rollout", ("--worlds", 4), ["open_loop", "closed_loop", "cpu"])]
    if family == "navigation-2d":  # the other takes half a minute on the emulated device and shows no more
        cases.append(("iteration", (), ["sampling", "update", "total"]))
    for what, arguments, names in cases:
        table, plot = tmp_path / f"{what}.json", tmp_path / f"{what}.png"
        code, out, err = run_script(
            "benchmark", what, "--family", family, *arguments, *TINY, "--repeats", 1, "--json", table, "--plot", plot
        )
        assert code == 0, out + err
        rows = json.loads(table.read_text())
        assert [row["name"] for row in rows] == [f"{what}/{name}" for name in names]
        assert all(row["measured"] > 0 and row["limit"] > 0 for row in rows) and plot.stat().st_size > 5000


def test_a_script_starts_on_the_emulated_device(tmp_path):
    """The command of docs/gpu.md, as short as it goes."""
    run = tmp_path / "run"
    arguments = ["scripts/train.py", *map(str, TRAIN), "--iterations", "1", "--run-dir", str(run)]
    command = [sys.executable, "-W", "error", "tests/gpu/emulate.py", *arguments]
    process = subprocess.run(command, cwd=SCRIPTS.parent, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert json.loads((run / "versions.json").read_text())[0]["gpu"] == "emulated"
