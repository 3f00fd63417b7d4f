"""A finished run for the tests of scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from script_runs import TINY, start


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run of two iterations; tests that change it take a copy."""
    path = tmp_path_factory.mktemp("finished") / "run"
    process = start("train", "--run-dir", path, *TINY, "--iterations", 2)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    return path
