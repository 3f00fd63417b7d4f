"""The commands and examples of README and docs do what they say. Each code block of README, docs/fewshot.md and
docs/extending.md is marked fast, slow, as one that continues the block before, or as not run and why.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {page: (REPOSITORY / page).read_text() for page in ("README.md", "docs/fewshot.md")}
EXTENDING = (REPOSITORY / "docs" / "extending.md").read_text()
BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>fast|slow|continues|no \([^)]+\)) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.S
)
BLOCKS = [(page, block) for page, text in PAGES.items() for block in BLOCK.finditer(text)]


def blocks(language: str) -> list:
    """The runnable blocks of a language as pytest parameters."""
    return [
        pytest.param(
            block["code"],
            marks=[pytest.mark.slow] if block["mark"] == "slow" else [],
            id=f"{page}-line{block.string[: block.start()].count(chr(10)) + 1}",
        )
        for page, block in BLOCKS
        if block["language"] == language and not (block["mark"] or "no").startswith("no")
    ]


def test_every_block_says_whether_it_is_tested() -> None:
    assert len(BLOCKS) >= 8
    assert all(block["mark"] for _, block in BLOCKS), [block["code"] for _, block in BLOCKS if not block["mark"]]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A directory where the README's relative paths work and nothing of the clone is changed."""
    for name in ("scripts", "metarl", "envs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "pretrained", tmp_path / "pretrained")
    return tmp_path


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}


@pytest.mark.parametrize("code", blocks("python"))
def test_python_example(code: str, workplace: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=workplace, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_extending_is_one_program_that_runs(workplace: Path) -> None:
    found = list(BLOCK.finditer(EXTENDING))
    assert all(block["mark"] for block in found)
    program = "\n".join(block["code"] for block in found if block["mark"] in ("fast", "continues"))
    learner = next(block["code"] for block in found if "class NaturalGradient" in block["code"])
    assert learner.count("\n") < 150
    test_python_example(program, workplace)
    (workplace / "my_learner.py").write_text(program.split("import envs\n")[0])
    (command,) = (block["code"] for block in found if block["language"] == "bash")
    sizes = "--iterations 1 --meta-batch-size 2 --steps-per-task 200 --validation.every 0 --run-dir run"
    test_commands(f"{command.strip()} {sizes}", workplace)
    assert (workplace / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("code", blocks("bash"))
def test_commands(code: str, workplace: Path) -> None:
    if "make " in code:
        # In a clone of its own, as a newcomer would; `make test` itself is what runs this test in CI.
        target = workplace / "clone"
        subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(target)], check=True)
        code, workplace = "make demo", target
    result = subprocess.run(
        ["bash", "-e", "-c", code], cwd=workplace, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))])
def test_links_and_pictures_exist(page: str) -> None:
    path = REPOSITORY / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_the_tests_that_the_tour_names_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGES["docs/fewshot.md"])
    assert len(named) > 15
    for file, name in named:
        assert f"def {name}(" in (REPOSITORY / file).read_text(), f"{file}::{name}"
