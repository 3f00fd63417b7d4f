"""benchmark.py checks its arguments as train.py does, and before it builds anything."""

from __future__ import annotations

from collections.abc import Callable

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
