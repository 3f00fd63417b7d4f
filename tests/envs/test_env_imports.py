"""`import envs` is light and ours, and everything is reachable by Gymnasium id in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import gymnasium
import pytest

import envs
from envs import registry
from envs.presets import FAMILIES
from metarl import shadowing

ROOT = Path(__file__).parents[2]


def run(program: str, cwd: Path) -> str:
    """Runs a program in a fresh process with warnings as errors; returns what it printed."""
    code = f"import sys; sys.path.insert(0, {str(Path(envs.__file__).parents[1])!r})\n{program}"
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_the_imported_package_is_ours() -> None:
    # Strangers own the name `envs` on the package index. Ours lies beside the tests, or in the installed wheel.
    path = Path(envs.__file__)
    assert path.is_relative_to(ROOT) or (path.parents[1] / "metarl").is_dir()
    assert envs.TaskFamily.__module__ == "envs.family"
    assert callable(envs.make)


def test_import_is_light(tmp_path: Path) -> None:
    program = """
import envs, envs.presets, gymnasium
assert "metarl/HalfCheetahVel-v0" in gymnasium.registry and "metarl/Navigation2D-v0" in gymnasium.registry
heavy = sorted({"torch", "mujoco"} & set(sys.modules))
print(heavy)
"""
    assert run(program, tmp_path) == "[]\n"


def test_the_plugin_entry_point_is_a_function_that_can_run_again() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["gymnasium.envs"]
    (name, value), *_ = declared.items()
    entry = EntryPoint(name, value, "gymnasium.envs")
    assert entry.attr, "Gymnasium's plugin loader refuses a module"
    before = dict(gymnasium.registry)
    entry.load()()
    assert gymnasium.registry == before


def test_the_listing_names_every_family_with_its_variants_under_it() -> None:
    rows = registry.describe()
    for family, entry in FAMILIES.items():
        at = rows.index((family, entry.summary))
        following = [name.strip() for name, _ in rows[at + 1 : at + 1 + len(entry.variants)]]
        assert following[0] == f"{family}@{entry.default_variant}"
        assert set(following) == {f"{family}@{variant}" for variant in entry.variants}
    assert [name.strip() for name, _ in rows if "@" in name] == registry.names()


def test_a_family_without_physics_loads_no_mujoco(tmp_path: Path) -> None:
    program = """
import envs
for name in ("navigation-2d", "halfcheetah-vel"):
    family = envs.make(name)
    family.sample_tasks(2)
navigation = envs.make("navigation-2d")
navigation.batch(navigation.sample_tasks(2), 2).reset(0)
print("mujoco" in sys.modules)
"""
    assert run(program, tmp_path) == "False\n"


def test_made_by_id_in_a_fresh_process_without_a_trace(tmp_path: Path) -> None:
    """gymnasium.make and make_vec by `module:id`; no warning, nothing on stderr, no log file left behind."""
    program = """
import gymnasium
env = gymnasium.make("envs:metarl/HalfCheetahVel-v0", variant="maml2017", task=[1.0])
env.unwrapped.set_task([1.5])
print(env.reset(seed=0)[0].shape, env.step(env.action_space.sample())[0].shape)
env.unwrapped.step(env.action_space.sample() * float("nan"))
vector = gymnasium.make_vec("metarl/HalfCheetahVel-v0", num_envs=4, env_tasks=[[1.0], [2.0]])
print(vector.reset(seed=0)[0].shape, vector.step(vector.action_space.sample())[1].shape)
env.close(); env.close(); vector.close()
"""
    assert run(program, tmp_path) == "(20,) (20,)\n(4, 17) (4,)\n"
    assert list(tmp_path.iterdir()) == []


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", ["folder", "file", "namespace", "installed", "installed over ours", "ours", "nothing"])
def test_what_takes_the_place_of_envs_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: what `import envs` would find is asked of a path that starts with the stranger's."""
    site, beside = tmp_path / "site-packages", ROOT / "envs"
    found = {
        "folder": tmp_path / "envs" / "__init__.py",
        "file": tmp_path / "envs.py",
        "namespace": tmp_path / "envs" / "mine.py",
        "installed": site / "envs" / "__init__.py",
        "installed over ours": site / "envs" / "__init__.py",
    }.get(kind)
    if found is not None:
        write(found, "make = None\n")
    if kind.startswith("installed"):
        write(site / "envs-1.4.dist-info" / "METADATA", "Name: envs\nVersion: 1.4\n")
        write(site / "envs-1.4.dist-info" / "top_level.txt", "envs\n")
    if kind == "installed over ours":
        beside = site / "envs"
        write(beside / "registry.py")
    only_theirs = kind in ("namespace", "nothing")  # a package anywhere on the path goes before a folder without one
    paths = [str(path) for path in (site, tmp_path)] + ([] if only_theirs else sys.path)
    monkeypatch.setattr(sys, "path", paths)
    monkeypatch.setattr(shadowing, "_BESIDE", beside)
    for name in [name for name in sys.modules if name.partition(".")[0] == "envs"]:
        monkeypatch.delitem(sys.modules, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shadowing.warn_if_envs_is_shadowed()
    words = [str(warning.message) for warning in caught]
    if found is None:
        assert words == []
        return
    (sentence,) = words
    shown = found.parent if kind == "namespace" else found
    assert sentence.startswith(f"`import envs` finds {shown} and not metarl's package of task families ({beside}): ")
    assert ("pip uninstall envs" in sentence) == kind.startswith("installed")
    assert ("rename it" in sentence) != kind.startswith("installed")


def test_import_metarl_warns_of_a_folder_beside_the_program_and_works(tmp_path: Path) -> None:
    folder = write(tmp_path / "envs" / "__init__.py")
    program = write(tmp_path / "program.py", "import metarl\nprint(metarl.MetaLearner.__name__)\n")
    path = {"PYTHONPATH": str(ROOT), "PATH": ""}
    result = subprocess.run([sys.executable, str(program)], check=False, capture_output=True, text=True, env=path)
    assert result.stdout == "MetaLearner\n"
    assert f"program.py:1: UserWarning: `import envs` finds {folder} and not" in result.stderr
    assert "Traceback" not in result.stderr
