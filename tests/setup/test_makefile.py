"""`make setup` with shell scripts in the place of Python: what it refuses, what it repairs, what it installs again."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# An interpreter as far as the Makefile can tell; it makes "environments" whose python is itself, and logs its calls.
FAKE = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
    *version_info*) {version} ;;
    *"import venv"*) {venv} ;;
    "-m venv --clear "*)
        echo venv >>"$LOG"; rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; touch "$4/bin/pip-is-here" ;;
    "-m pip --version") test -f "$here/pip-is-here" ;;
    "-m pip install "*) echo "$*" >>"$LOG"; {install} ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A directory with what the set-up reads."""
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def fake(clone: Path, version: str = "exit 0", venv: str = "exit 0", install: str = "exit 0") -> Path:
    path = clone / "fake-python"
    path.write_text(FAKE.format(version=version, venv=venv, install=install))
    path.chmod(0o755)
    return path


def make(clone: Path, *arguments: str, **variables: str) -> tuple[int, str, list[str]]:
    """Runs `make`; its exit code, the lines that begin with `error:`, and what was called since the last time."""
    log = clone / "log"
    log.write_text("")
    keep = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
    result = subprocess.run(
        ["make", *arguments],
        cwd=clone,
        env={**keep, "LOG": str(log), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    errors = [line for line in result.stdout.splitlines() if line.startswith("error:")]
    assert "Traceback" not in result.stdout + result.stderr
    return result.returncode, "\n".join(errors), log.read_text().splitlines()


def torch_installs(calls: list[str]) -> list[str]:
    return [call for call in calls if call.endswith(" torch")]


def test_no_python_at_all(clone: Path) -> None:
    tools = clone / "tools"
    tools.mkdir()
    for name in ("make", "sh", "cat", "cksum", "cut", "date", "rm"):
        path = shutil.which(name)
        assert path is not None
        (tools / name).symlink_to(path)
    code, error, calls = make(clone, "demo", PATH=str(tools))
    assert code == 2
    assert error.startswith("error: metarl needs Python 3.11 or later, and none was found")
    assert "make demo PYTHON=" in error
    assert calls == []


@pytest.mark.parametrize("kind", ["missing", "old"])
def test_a_named_python_that_does_not_do(clone: Path, kind: str) -> None:
    path = clone / "nowhere" if kind == "missing" else fake(clone, version="exit 1")
    code, error, calls = make(clone, "test", f"PYTHON={path}")
    assert code == 2
    assert error.startswith(f"error: PYTHON={path} does not run Python 3.11 or later")
    assert error.count("\n") == 0
    assert calls == []


def test_a_python_without_venv(clone: Path) -> None:
    code, error, calls = make(clone, f"PYTHON={fake(clone, venv='exit 1')}")
    assert code == 2
    assert "apt-get install python3-venv" in error
    assert error.count("\n") == 0
    assert calls == []


def test_a_half_made_environment_is_made_anew(clone: Path) -> None:
    python = fake(clone)
    (clone / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(python, clone / ".venv" / "bin" / "python")  # interrupted before ensurepip had finished: no pip
    code, _, calls = make(clone, f"PYTHON={python}")
    assert code == 0
    assert calls[0] == "venv"
    assert make(clone, f"PYTHON={python}") == (0, "", [])


def test_an_interrupted_installation_is_run_again_in_the_same_environment(clone: Path) -> None:
    assert make(clone, f"PYTHON={fake(clone, install='exit 1')}")[0] == 2
    python = fake(clone)
    shutil.copy(python, clone / ".venv" / "bin" / "python")
    code, _, calls = make(clone, f"PYTHON={python}")
    assert code == 0
    assert "venv" not in calls
    assert len(calls) == 1


def test_the_source_of_torch_is_remembered_and_a_change_of_it_reinstalls(clone: Path) -> None:
    python = f"PYTHON={fake(clone)}"
    assert torch_installs(make(clone, python)[2]) == []  # comes with the rest
    first, second = "https://index.example/cpu", "https://index.example/cu130"
    (call,) = torch_installs(make(clone, python, f"TORCH_INDEX={first}")[2])
    assert "--force-reinstall" in call
    assert f"--index-url {first}" in call
    for again in ((), (f"TORCH_INDEX={first}",)):
        assert make(clone, python, *again)[2] == []
    # As .ci/run's caller would say it.
    assert f"--index-url {second}" in torch_installs(make(clone, python, TORCH_INDEX=second)[2])[0]
    # What is to be installed changed, where torch comes from did not.
    (clone / "constraints.txt").write_text("torch==9\n")
    (call,) = torch_installs(make(clone, python)[2])
    assert f"--index-url {second}" in call
    assert "--force-reinstall" not in call
    # And back to the package index.
    (call,) = torch_installs(make(clone, python, "TORCH_INDEX=")[2])
    assert "--force-reinstall" in call
    assert "--index-url" not in call
    assert make(clone, python)[2] == []
