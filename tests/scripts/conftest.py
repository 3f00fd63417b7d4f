"""Running the scripts: in this process where only messages matter, in their own where signals and start-up do."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "scripts"

TINY = [
    *("--meta-batch-size", "3"),
    *("--episodes-per-task", "2"),
    *("--steps-per-task", "0"),
    *("--num-inner-steps", "1"),
    *("--step-weights",),
    *("--hidden-sizes", "64", "64"),
    *("--cg-iters", "3"),
    *("--validation.every", "2"),
    *("--validation.num-tasks", "2"),
    *("--num-threads", "2"),
]
"""A run of fractions of a second per iteration."""


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


def start(name: str, *arguments: object, prefix: str = "") -> subprocess.Popen:
    """Starts a script in its own process; `prefix` is Python code to run first."""
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); sys.argv = {[f'{name}.py', *map(str, arguments)]!r}\n"
        f"{prefix}\nimport {name}; {name}.main()"
    )
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
