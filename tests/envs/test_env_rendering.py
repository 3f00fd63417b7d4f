"""Pictures. MuJoCo chooses its OpenGL when it is first imported, so each backend has a process of its own."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import envs
from envs.gym_adapter import FamilyEnv
from envs.window import display_exists

PROBE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).close()"
MOTION = """
import gymnasium, numpy as np, warnings
from gymnasium.utils.env_checker import check_env
env = gymnasium.make("envs:metarl/HalfCheetahVel-v0", task=[1.0], render_mode="rgb_array", width=160, height=120)
env.reset(seed=0)
first = env.render()
assert first.shape == (120, 160, 3) and first.dtype == np.uint8, (first.shape, first.dtype)
assert first.std() > 20, "an empty picture"
again = env.render()
assert (again == first).all()
for _ in range(5):
    env.step(env.action_space.sample())
assert (env.render() != first).any(), "no motion is seen"
assert (first == again).all(), "a frame changed after it was returned"
env.close()
large = gymnasium.make("metarl/HalfCheetahVel-v0", render_mode="rgb_array", width=800, height=600)
large.reset(seed=0)
assert large.render().shape == (600, 800, 3)
large.close()
vector = gymnasium.make_vec("metarl/HalfCheetahVel-v0", num_envs=2, render_mode="rgb_array", width=64, height=48)
vector.reset(seed=0)
frames = vector.render()
assert len(frames) == 2 and frames[0].shape == (48, 64, 3) and (frames[0] != frames[1]).any()
vector.close()
unwrapped = gymnasium.make("metarl/HalfCheetahVel-v0", render_mode="rgb_array").unwrapped
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*infinity")
    check_env(unwrapped)
unwrapped.close()
"""


def run(program: str, gl: str, display: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MUJOCO_GL": gl, "PYTHONPATH": str(Path(envs.__file__).parents[1])}
    if not display:
        environment.pop("DISPLAY", None)
        environment.pop("WAYLAND_DISPLAY", None)
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)


@functools.cache
def available(gl: str) -> bool:
    return run(PROBE, gl).returncode == 0


@pytest.mark.parametrize("gl", ["egl", "osmesa"])
def test_half_cheetah_is_drawn_off_screen(gl: str, tmp_path: Path) -> None:
    if not available(gl):
        pytest.skip(f"MuJoCo cannot open OpenGL through {gl} here")
    result = run(MOTION, gl)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems open OpenGL without a display")
def test_no_opengl_is_said_in_one_sentence() -> None:
    program = """
import envs
problem = envs.make("halfcheetah-vel").problem
try:
    problem.make_renderer(64, 48)
except RuntimeError as error:
    print(error)
"""
    result = run(program, "glfw")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Rendering needs OpenGL and none could be opened (MUJOCO_GL='glfw')")
    assert result.stdout.count("\n") == 1


def test_human_is_declared_only_with_a_display() -> None:
    program = 'import envs.gym_adapter; print(envs.gym_adapter.FamilyEnv.metadata["render_modes"])'
    assert run(program, "egl").stdout == "['rgb_array']\n"
    assert ("human" in FamilyEnv.metadata["render_modes"]) == display_exists()


def test_navigation_is_drawn() -> None:
    env = FamilyEnv("navigation-2d", task=[0.4, 0.3], render_mode="rgb_array", width=200, height=200)
    env.reset(seed=0)
    before = env.render()
    assert before is not None
    # 1.4 m of the plane is 200 pixels: the goal is at (100 + 0.4 * 142.9, 100 - 0.3 * 142.9).
    assert tuple(before[57, 157]) == (220, 50, 47)
    assert tuple(before[100, 100]) == (38, 90, 190)
    env.step(np.array([1.0, 0.0]))
    after = env.render()
    assert after is not None
    assert tuple(after[100, 114]) == (38, 90, 190)
    assert FamilyEnv("navigation-2d").render() is None


@pytest.mark.skipif(not display_exists(), reason="render_mode='human' needs a display")
def test_human_opens_a_window() -> None:
    env = FamilyEnv("navigation-2d", render_mode="human")
    env.reset(seed=0)
    env.step(np.zeros(2))
    assert env.render() is None
    env.close()
