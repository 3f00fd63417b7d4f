"""visualize.py as a person runs it, on runs of untrained policies."""

from __future__ import annotations

import dataclasses
import functools
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import envs
from metarl.experiment.checkpoint import save_checkpoint
from metarl.experiment.config import PolicyConfig, TrainConfig, to_json
from metarl.experiment.files import write_json
from metarl.experiment.policy_run import make_policy
from metarl.experiment.presets import preset
from metarl.functional import initial_params

SCRIPT = Path(envs.__file__).parents[1] / "scripts" / "visualize.py"
PROBE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).close()"


def make_run(path: Path, family_id: str) -> Path:
    base = preset("maml-trpo", family_id)
    learner = dataclasses.replace(base.learner, episodes_per_task=1, steps_per_task=0)
    config: TrainConfig = dataclasses.replace(base, policy=PolicyConfig(hidden_sizes=(8,)), learner=learner)
    (path / "checkpoints").mkdir(parents=True)
    write_json(path / "config.json", to_json(config))
    params = initial_params(make_policy(envs.make(family_id), config.policy, 0))
    learned = {"params": params, "iteration": 1, "env_steps": 0, "skipped_updates": 0}
    state = {"algorithm": "maml-trpo", "family": family_id, "learner": learned, "best_score": 0.0}
    save_checkpoint(path / "checkpoints" / "best.pt", state, config)
    (path / "metrics.jsonl").write_text('{"iteration": 1, "return/step_0": -2.0, "return/step_1": -1.0}\n')
    return path


def visualize(*arguments: object, gl: str) -> subprocess.CompletedProcess[str]:
    """Runs the script in a process of its own, because MuJoCo chooses its OpenGL when it is imported."""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["MUJOCO_GL"] = gl
    command = [sys.executable, "-W", "error", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def visualize_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the script in this process, in `tmp_path`."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


@functools.cache
def working_gl() -> str | None:
    """A backend that draws off screen here. MuJoCo chooses when it is imported, so each try has its own process."""
    for gl in ("egl", "osmesa"):
        environment = {**os.environ, "MUJOCO_GL": gl}
        if not subprocess.run(
            [sys.executable, "-c", PROBE], check=False, env=environment, capture_output=True
        ).returncode:
            return gl
    return None


def test_navigation_gets_figures(tmp_path: Path, visualize_here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", "navigation-2d@maml2017")
    visualize_here(run, "--tasks", 3, "--steps", 2)
    written = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("wrote ")]
    names = ["paths.png", "adaptation_curve.png", "training_curve.png"]
    assert written == [str(run / "figures" / name) for name in names]
    assert all(Path(path).stat().st_size > 10_000 for path in written)


def test_half_cheetah_gets_videos(tmp_path: Path, read_video: Any) -> None:
    gl = working_gl()
    if gl is None:
        pytest.skip("MuJoCo cannot open OpenGL here, through egl or osmesa")
    run = make_run(tmp_path / "run", "halfcheetah-vel@promp")
    out = tmp_path / "out" / "here"
    result = visualize(run, "--tasks", 1, "--steps", 1, "--out", out, gl=gl)
    assert result.returncode == 0, result.stderr
    (video,) = out.glob("*.mp4")
    frames, fps, _ = read_video(video)
    assert (len(frames), fps) == (100, 20.0)
    assert frames[0, 200:, :480].std() > 20, "an empty picture"
    assert (frames[0] != frames[-1]).mean() > 0.01, "no motion is seen"
    assert f"wrote {video}" in result.stdout and "target velocity" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == ["adaptation_curve.png", video.name, "training_curve.png"]


def test_no_opengl_is_said_before_the_long_part(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("other systems open OpenGL without a display")
    run = make_run(tmp_path / "run", "halfcheetah-vel@promp")
    result = visualize(run, gl="glfw")
    assert result.returncode == 2 and result.stderr.startswith("error: Rendering needs OpenGL")
    assert result.stderr.count("\n") == 1


def test_bad_input_gets_one_sentence(tmp_path: Path, visualize_here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", "navigation-2d@maml2017")
    (tmp_path / "file").write_text("")
    for arguments, expected in (
        ((run, "--tasks", 41), "41 tasks cannot be shown: the evaluation has the 40 published test tasks."),
        ((run, "--tasks", 0), "--tasks is 0; it must be positive and below 2**31."),
        ((run, "--steps", -1), "--steps is -1; it must be zero or more and below 2**31."),
        ((run, "--seed", -1), "--seed is -1; it must be zero or more and below 2**63."),
        ((run, "--out", tmp_path / "file" / "x"), "a part of that path is a file"),
        ((tmp_path / "nothing",), "is not a run"),
        ((run, "--checkpoint", "last"), "has no checkpoint 'last'; it has: best."),
    ):
        with pytest.raises(SystemExit) as left:
            visualize_here(*arguments)
        error = capsys.readouterr().err
        assert left.value.code == 2 and expected in error, error
        assert error.startswith("error: ") and error.count("\n") == 1


def test_a_run_that_cannot_be_written_is_shown_here(
    tmp_path: Path, visualize_here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", "navigation-2d@maml2017")
    # A file in the directory's place refuses writing also to root, whom permissions do not stop.
    (run / "figures").write_text("")
    (run / "metrics.jsonl").unlink()
    visualize_here(run, "--tasks", 1, "--steps", 1)
    assert "cannot be written; writing to ./figures" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["adaptation_curve.png", "paths.png"]
