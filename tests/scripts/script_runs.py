"""Scripts in their own process, and the flags of a run that takes fractions of a second per iteration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

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


def content(run: Path) -> dict[Path, bytes]:
    """Every file of a run."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


def iterations(run: Path) -> list[int]:
    """Those that its metrics are of."""
    return [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def as_format_1(file: Path) -> None:
    """Makes a checkpoint what it was before it had a config and a digest."""
    state = torch.load(file, weights_only=True)
    torch.save({name: value for name, value in state.items() if name not in ("config", "digest")} | {"format": 1}, file)
