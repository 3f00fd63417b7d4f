"""benchmark.py checks its arguments as train.py does, and before it builds anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

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
        assert row["relative_sd"] > 0 and row["norm"] > 0 and row["relative_bias"] >= 0
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
