"""benchmark.py checks its arguments as train.py does, and before it builds anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from script_runs import SCRIPTS

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--num-threads", "-1"),
        ("--inner-lr", "nan"),
        ("--hidden-sizes", "0"),
        ("--fvp-fraction", "nan"),
        ("--chunk-size", "-1"),
        ("--meta-batch-size", "0"),
        ("--repeats", "0"),
        ("--device", "cuda"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_sentence(run_script: Run, flag: str, value: str) -> None:
    code, out, err = run_script("benchmark", "iteration", "--family", "navigation-2d", flag, value)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert flag in err
    assert value in err
    assert err.count("\n") == 1


def test_gradients_report_every_estimator_and_the_line_search_of_a_run(
    run_script: Run, finished: Path, tmp_path: Path
) -> None:
    target = tmp_path / "gradients.json"
    code, out, err = run_script("benchmark", "gradients", "--run", finished, "--repeats", "2", "--json", target)
    assert code == 0, err
    *rows, searched = json.loads(target.read_text())
    assert [row["name"] for row in rows] == [f"gradients/{n}" for n in ("reinforce", "lvc", "dice", "first order")]
    for i, row in enumerate(rows):
        assert {"relative_bias", "noise", "relative_sd", "norm"} <= set(row)
        assert row["cosines"][i] == pytest.approx(1.0) and -1 <= row["cosine"] <= 1
    assert 0 <= searched["acceptance_rate"] <= 1 and searched["iterations"] == 2
    assert "relative standard deviation of DiCE over LVC" in out


def test_every_trained_learner_is_timed_against_maml_trpo(run_script: Run, tmp_path: Path) -> None:
    target = tmp_path / "learners.json"
    sizes = ("--meta-batch-size", "2", "--episodes-per-task", "2", "--hidden-sizes", "4", "--repeats", "1")
    code, _, err = run_script("benchmark", "learners", "--family", "navigation-2d", *sizes, "--json", target)
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(target.read_text())}
    assert {"learners/maml-trpo", "learners/promp", "learners/reptile", "learners/pretrain"} <= set(rows)
    assert rows["learners/maml-trpo"]["ratio"] == 1.0 and all(row["cpu_seconds"] > 0 for row in rows.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gradients", "--repeats", "1"), ("--repeats", "2 or more")),
        (("gradients", "--plot", "x.png"), ("no plot",)),
        (("iteration", "--run", "somewhere"), ("--run belongs to gradients",)),
    ],
)
def test_what_belongs_to_another_measurement_is_refused(run_script: Run, arguments: tuple, words: tuple) -> None:
    code, _, err = run_script("benchmark", *arguments)
    assert code == 2 and err.count("\n") == 1
    assert all(word in err for word in words)


def test_bias_and_spread_of_gradients_are_found_where_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean (3, 4), norm 5; a bias of 2; standard deviation 4 in each of two directions, so 4 sqrt(2) in all."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from _benchmark_gradients import gradient_row

    generator = torch.Generator().manual_seed(0)
    truth, draws = torch.tensor([3.0, 4.0], dtype=torch.float64), 20000

    def drawn(mean: torch.Tensor, sd: float) -> torch.Tensor:
        return mean + sd * torch.randn(draws, 2, generator=generator, dtype=torch.float64)

    reference = drawn(truth, 1.0)
    row = gradient_row("x", drawn(truth + torch.tensor([2.0, 0.0]), 4.0), reference)
    assert row.relative_bias == pytest.approx(2 / 5, abs=0.03)
    assert row.relative_sd == pytest.approx(4 * 2**0.5 / 41**0.5, rel=0.03)
    assert row.norm == pytest.approx(41**0.5, rel=0.02)
    assert row.noise == pytest.approx(((32 + 2) / draws) ** 0.5 / 5, rel=0.1)
    # With few draws the noise in a mean must not pass for its norm: 8 times the norm, seen through 40 draws.
    long = torch.full((400,), 0.25, dtype=torch.float64)  # norm 5
    noisy = long + 8 * 5 / 20 * torch.randn(100, 40, 400, generator=generator, dtype=torch.float64)
    found = sorted(gradient_row("x", draws, noisy[0]).relative_sd for draws in noisy)
    assert found[len(found) // 2] == pytest.approx(8, rel=0.1)
