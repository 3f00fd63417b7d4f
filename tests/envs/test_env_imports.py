"""`import envs` is light and ours, and everything is reachable by Gymnasium id in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import gymnasium

import envs
from envs import registry
from envs.presets import FAMILIES

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
vector = gymnasium.make_vec("metarl/HalfCheetahVel-v0", num_envs=4, tasks=[[1.0], [2.0]])
print(vector.reset(seed=0)[0].shape, vector.step(vector.action_space.sample())[1].shape)
env.close(); env.close(); vector.close()
"""
    assert run(program, tmp_path) == "(20,) (20,)\n(4, 17) (4,)\n"
    assert list(tmp_path.iterdir()) == []
