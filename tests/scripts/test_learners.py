"""Every learner through the scripts: training, exact resuming, step sizes chosen by validation, comparison."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from script_runs import SCRIPTS, as_format_1

from metarl.algorithms.learners import LEARNERS
from metarl.evaluation import AdaptationCurve
from metarl.experiment.checks import check, read_config
from metarl.experiment.config import TrainConfig
from metarl.experiment.policy_run import PolicyValidation
from metarl.experiment.presets import preset
from metarl.experiment.trainer import Trainer

Run = Callable[..., tuple[int, str, str]]
SIZES = [
    *("--meta-batch-size", "3", "--episodes-per-task", "2", "--steps-per-task", "0", "--hidden-sizes", "8"),
    *("--validation.every", "2", "--validation.num-tasks", "2", "--num-threads", "1"),
]
"""The sizes of a tiny run, leaving alone what makes a learner the one it is."""


def rows(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in lines]


def checkpoint(run: Path, name: str = "last") -> dict:
    return torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)


@pytest.mark.parametrize(
    "family", ["navigation-2d@maml2017", "navigation-2d-corners@promp", "halfcheetah-vel@maml2017"]
)
@pytest.mark.parametrize("name", list(LEARNERS))
def test_every_preset_makes_sense(name: str, family: str) -> None:
    config = preset(name, family)
    check(config)
    assert isinstance(config, TrainConfig) and config.algorithm == name


@pytest.mark.parametrize("name", ["promp", "meta-sgd", "pretrain", "cavia", "reptile"])
def test_a_run_that_was_stopped_continues_bitwise(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_script("train", name, *SIZES, "--iterations", 4, "--run-dir", whole)[0] == 0
    save = Trainer._save_checkpoints

    def stopped(self: Trainer) -> None:
        save(self)
        if self.learner.iteration == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoints", stopped)
        assert run_script("train", name, *SIZES, "--iterations", 4, "--run-dir", parts)[0] == 130
    assert len(rows(parts)) == 3
    assert run_script("train", "--resume", parts)[0] == 0
    assert rows(parts) == rows(whole)
    first, second = checkpoint(whole), checkpoint(parts)
    flat_a, flat_b = (torch.utils._pytree.tree_flatten(state)[0] for state in (first, second))
    assert len(flat_a) == len(flat_b)
    for a, b in zip(flat_a, flat_b, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_fine_tuned_runs_step_size_is_chosen_on_training_tasks_and_used(run_script: Run, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out.json"
    lrs = ("--validation.inner-lrs", "0.001", "2.0")
    assert run_script("train", "pretrain", *SIZES, "--iterations", 2, *lrs, "--run-dir", run)[0] == 0
    chosen = checkpoint(run, "best")["inner_lr"]
    assert chosen in (0.001, 2.0) and rows(run)[-1]["validation/inner_lr"] == chosen
    assert run_script("evaluate", run, "--num-tasks", 3, "--episodes", 2, "--json", out)[0] == 0
    picked = json.loads(out.read_text())["return_mean"]
    curves = {}
    for lr in (0.001, 2.0):
        copy = Path(shutil.copytree(run, tmp_path / f"{lr}"))
        state = checkpoint(copy, "best") | {"inner_lr": lr}
        torch.save(state, copy / "checkpoints" / "best.pt")
        as_format_1(copy / "checkpoints" / "best.pt")  # no digest: what was changed here is not damage
        assert run_script("evaluate", copy, "--num-tasks", 3, "--episodes", 2, "--json", out)[0] == 0
        curves[lr] = json.loads(out.read_text())["return_mean"]
    assert picked == curves[chosen] and curves[0.001] != curves[2.0]


def test_the_better_of_two_step_sizes_is_chosen(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {0.1: -5.0, 0.2: -3.0, 0.3: -4.0, 0.4: float("nan")}

    def curve(self: PolicyValidation, inner_lr: float) -> AdaptationCurve:
        return AdaptationCurve(torch.tensor([[-9.0, scores[inner_lr]]], dtype=torch.float64), 0)

    monkeypatch.setattr(PolicyValidation, "_curve", curve)
    lrs = ("--validation.inner-lrs", *scores, "--validation.steps", 1)
    assert run_script("train", "pretrain", *SIZES, *lrs, "--iterations", 2, "--run-dir", tmp_path / "run")[0] == 0
    assert checkpoint(tmp_path / "run", "best")["inner_lr"] == 0.2
    assert rows(tmp_path / "run")[-1]["validation/score"] == -3.0


def test_an_oracle_sees_its_task_and_is_measured_before_adapting(run_script: Run, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out.json"
    assert run_script("train", "oracle", *SIZES, "--iterations", 2, "--run-dir", run)[0] == 0
    assert checkpoint(run)["learner"]["params"]["mean.layers.0.weight"].shape == (8, 4)
    assert rows(run)[-1]["validation/score"] == rows(run)[-1]["validation/return_step_0"]
    assert run_script("evaluate", run, "--episodes", 1, "--json", out)[0] == 0
    assert len(json.loads(out.read_text())["return_mean"]) == 1


def test_from_scratch_is_evaluated_after_its_whole_budget(run_script: Run, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out.json"
    flags = ("--validation.steps", 7, "--validation.inner-lrs", "0.1")
    assert run_script("train", "from-scratch", *SIZES, *flags, "--run-dir", run)[0] == 0
    assert read_config(run).iterations == 1
    code, text, _ = run_script("evaluate", run, "--episodes", 1, "--num-tasks", 2, "--json", out)
    assert code == 0
    assert len(json.loads(out.read_text())["return_mean"]) == 8
    assert text.split("adaptation step")[1].splitlines()[0].split() == ["0", "1", "2", "3", "7"]


def test_runs_are_compared_on_the_same_tasks(run_script: Run, finished: Path, tmp_path: Path) -> None:
    oracle, target, figure = tmp_path / "oracle", tmp_path / "out.json", tmp_path / "figure.png"
    assert run_script("train", "oracle", *SIZES, "--iterations", 1, "--run-dir", oracle)[0] == 0
    flags = ("--num-tasks", 4, "--episodes", 1, "--json", target, "--plot", figure)
    code, text, err = run_script("evaluate", finished, oracle, *flags)
    assert code == 0, err
    records = json.loads(target.read_text())["runs"]
    assert [record["algorithm"] for record in records] == ["maml-trpo", "oracle"]
    assert records[0]["tasks"] == records[1]["tasks"]
    table = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert f"{records[1]['return_mean'][0]:.2f}" in table["oracle"]
    _, text, _ = run_script("evaluate", finished, finished, *flags)
    assert text.count(f"\n{finished} ") == 2, "runs of one name are told apart by their paths"
    assert figure.read_bytes().startswith(b"\x89PNG")
    alone = tmp_path / "alone.json"
    run_script("evaluate", finished, "--num-tasks", 4, "--episodes", 1, "--json", alone)
    assert json.loads(alone.read_text()) == records[0]


def test_runs_of_other_families_are_not_compared(run_script: Run, finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    family = ("--family", "navigation-2d-corners@promp")
    assert run_script("train", "maml-vpg", *family, *SIZES, "--iterations", 1, "--run-dir", other)[0] == 0
    code, _, err = run_script("evaluate", finished, other)
    assert code == 2 and err.count("\n") == 1
    assert "same family" in err and str(other) in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("maml-trpo", "--clip-range", "0.2"), ("--clip-range", "--outer-optimizer trpo", "only adam reads it")),
        (("promp", "--max-kl", "0.1"), ("--max-kl", "only trpo")),
        (("reptile", "--num-inner-steps", "0"), ("--num-inner-steps", "reptile")),
        (("maml-vpg", "--clip-range", "1.0"), ("--clip-range", "below 1")),
        (("maml-vpg", "--outer-lr", "0"), ("--outer-lr", "positive")),
        (("maml-vpg", "--outer-epochs", "0"), ("--outer-epochs", "positive")),
        (("maml-trpo", "--adapted", "context"), ("--adapted", "--context-dim")),
        (("maml-trpo", "--context-dim", "3"), ("--adapted", "--context-dim")),
        (("maml-trpo", "--inner-estimator", "best"), ("--inner-estimator", "reinforce, lvc, dice")),
        (("e-maml-trpo", "--exploration-credit", "-1"), ("--exploration-credit", "zero or more")),
        (("pretrain", "--validation.inner-lrs", "0"), ("--validation.inner-lrs", "positive")),
        (("meta-sgd", "--validation.inner-lrs", "0.1"), ("--validation.inner-lrs", "--learned-lr")),
        (("oracle", "--exploration-credit", "1"), ("--exploration-credit", "--num-inner-steps is 0")),
    ],
)
def test_what_does_not_compose_is_said_in_one_sentence(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, words: tuple
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run_script("train", *arguments)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


def test_moments_of_another_run_are_refused(run_script: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_script("train", "promp", *SIZES, "--iterations", 2, "--run-dir", run)[0] == 0
    state = checkpoint(run)
    state["learner"]["outer"]["log_std"]["exp_avg"] = torch.zeros(7)
    torch.save(state, run / "checkpoints" / "last.pt")
    as_format_1(run / "checkpoints" / "last.pt")
    code, _, err = run_script("train", "--resume", run, "--iterations", 3)
    assert code == 2 and err.count("\n") == 1 and "last.pt" in err and "Adam moments" in err


def test_a_run_from_before_a_setting_existed_does_what_it_did(run_script: Run, finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    for name in ("inner_estimator", "outer_optimizer", "clip_range", "learned_lr"):
        del config["learner"][name]
    del config["policy"]["context_dim"]
    (run / "config.json").write_text(json.dumps(config))
    assert read_config(run) == read_config(finished)


def test_replication_of_learners_prints_a_row_for_each(run_script: Run, tmp_path: Path) -> None:
    table, figure = tmp_path / "table.json", tmp_path / "figure.png"
    flags = ("--learners", "maml-vpg", "reptile", "--seeds", 2, "--env-steps", 1, "--steps", 1, "--out", tmp_path)
    code, text, err = run_script("replicate", "learners", *flags, "--json", table, "--plot", figure)
    assert code == 0, err
    found = json.loads(table.read_text())["navigation-2d"]
    for name in ("maml-vpg", "reptile"):
        seeds = [record["return_mean"] for record in found[name]["seeds"]]
        assert found[name]["return_mean"] == pytest.approx([sum(column) / 2 for column in zip(*seeds, strict=True)])
        (line,) = [line for line in text.splitlines() if line.startswith(name)]
        assert f"{found[name]['return_mean'][1]:.2f} ± {found[name]['interval'][1]:.2f}" in line
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert run_script("replicate", "learners", "--learners", "magic", "--out", tmp_path)[0] == 2
    code, _, err = run_script("replicate", "maml2017", "--env-steps", 1, "--out", tmp_path)
    assert code == 2 and "--env-steps means nothing to the protocol maml2017" in err


def test_intervals_by_hand_and_over_random_seeds_and_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from _replicate_protocols import interval95

    # Two seeds, two tasks: means of seeds 2 and 6 (sd sqrt 8), of tasks 3 and 5 (sd sqrt 2).
    returns = torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]], dtype=torch.float64)
    of_tasks, of_seeds = 1.96 * 2**0.5 / 2**0.5, 12.706 * 8**0.5 / 2**0.5
    assert float(interval95(returns)) == pytest.approx((of_tasks**2 + of_seeds**2) ** 0.5)
    assert float(interval95(returns[:1])) == pytest.approx(1.96)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    covered = 0
    for _ in range(2000):
        returns = 0.3 * normal(3, 1, 1) + normal(1, 40, 1) + 0.5 * normal(3, 40, 1)
        covered += bool((returns.mean() - 0.0).abs() <= interval95(returns)[0])
    assert 0.93 < covered / 2000 < 0.99


@pytest.mark.parametrize("name", [name for name, named in LEARNERS.items() if named.is_trained])
def test_every_learner_gets_the_same_number_of_environment_steps(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from _replicate_protocols import equal_steps_config

    config = equal_steps_config(name, "navigation-2d", 100, 6_000_000)
    learner = config.learner
    collections = learner.num_inner_steps + (name != "reptile")
    steps = config.iterations * learner.meta_batch_size * learner.steps_per_task * collections
    assert steps == pytest.approx(6_000_000, rel=0.02)
    check(config)


def test_a_seed_that_diverged_does_not_take_the_table_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from _replicate_protocols import Summary

    records = [
        {"per_task": [[1.0, 2.0], [3.0, 4.0]], "seed": 0},
        {"per_task": [[math.nan, 1.0], [1.0, 1.0]], "seed": 1},
    ]
    row = Summary("x", records).mean_row()
    assert math.isnan(row.mean[0]) and row.mean[1] == 2.0 and math.isfinite(row.interval[1])
    assert Summary("x", records).record()["return_mean"][1] == 2.0


def test_gradients_of_a_run_with_learned_step_sizes_are_measured(run_script: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_script("train", "meta-sgd", *SIZES, "--iterations", 1, "--run-dir", run)[0] == 0
    code, out, err = run_script("benchmark", "gradients", "--run", run, "--repeats", 2)
    assert code == 0, err
    assert "gradients/dice" in out
