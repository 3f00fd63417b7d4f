"""Scripts in their own process, and the flags of a run that takes fractions of a second per iteration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
