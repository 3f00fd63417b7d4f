"""Running the scripts inside this process, where only messages and files matter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from script_runs import SCRIPTS, TINY, start


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    """`run_script("train", *arguments) -> (exit code, stdout, stderr)`, inside this process."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        code = 0
        try:
            module.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run of two iterations; tests that change it take a copy."""
    path = tmp_path_factory.mktemp("finished") / "run"
    process = start("train", "--run-dir", path, *TINY, "--iterations", 2)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    return path
