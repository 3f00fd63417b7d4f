"""Recordings, the words on a video's frames, and the file that comes out."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torch import Tensor

import envs
from metarl.collect import collect
from metarl.experiment.errors import UserError
from metarl.functional import initial_params
from metarl.noise import TaskNoise
from metarl.ops.tree import expand_tasks
from metarl.policies import GaussianMLPPolicy
from metarl.types import Params
from metarl.visualize.frames import PICTURE_HEIGHT, PICTURE_WIDTH, FrameComposer, make_trace, side_text, task_text
from metarl.visualize.recorder import Recording, State, record_episodes
from metarl.visualize.video import frame_stride, record_before_after, write_video

KEY = (2, 0, 4)


class Painter:
    """Stands in for OpenGL: a plain colour that tells the lane, and a count of what was asked for."""

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def render(self, state: object, lane: int, task: Tensor) -> np.ndarray:
        self.drawn.append(lane)
        return np.full((PICTURE_HEIGHT, PICTURE_WIDTH, 3), 60 + 120 * lane, np.uint8)

    def close(self) -> None: ...


def cheetah(variant: str = "maml2017") -> tuple[envs.TaskFamily, GaussianMLPPolicy]:
    family = envs.make(f"halfcheetah-vel@{variant}")
    return family, GaussianMLPPolicy(family.observation_dim, family.action_dim, hidden_sizes=(8,))


def shared(policy: GaussianMLPPolicy, num_tasks: int) -> Params:
    return expand_tasks(initial_params(policy), num_tasks)


def recording(lengths: tuple[int, int] = (4, 2), unit: str = "m/s") -> Recording:
    states: list[State] = [{"qpos": torch.zeros(2, 3)} for _ in range(5)]
    velocity = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, 9.0, 9.0]])
    return Recording(states, torch.full((2, 4), -1.5), torch.tensor(lengths), {"velocity": (velocity, unit)})


def test_a_recording_is_the_episode_that_collect_sees() -> None:
    family, policy = cheetah()
    tasks, params, noise = family.sample_tasks(2, "test"), shared(policy, 2), TaskNoise(KEY, 2)
    rollout = collect(family.batch(tasks, 1), policy, params, noise)
    drawn = noise.action_noise(0, 1, family.horizon, policy.distribution, policy.action_dim)[:, 0]
    got = record_episodes(family.batch(tasks, 1), policy, params, noise.reset_seeds(0), drawn)
    torch.testing.assert_close(got.rewards.float(), rollout.rewards[:, 0], rtol=0, atol=0)
    assert len(got.states) == family.horizon + 1 and got.lengths.tolist() == [family.horizon] * 2
    assert got.states[0]["qpos"].dtype == torch.float64
    observed = torch.stack([family.problem.observe(state).float() for state in got.states[:-1]], dim=1)
    torch.testing.assert_close(observed, rollout.observations[:, 0], rtol=0, atol=0)


def test_a_finished_episode_stays() -> None:
    family = envs.make("navigation-2d")
    policy = GaussianMLPPolicy(2, 2, hidden_sizes=(4,))
    params = {name: torch.zeros_like(value) for name, value in shared(policy, 2).items()}
    params["mean.layers.1.bias"][:] = 1.0
    # 0.1 per step and coordinate: the first goal is reached by the third step, the second one never.
    goals = torch.tensor([[0.3, 0.3], [-0.3, 0.3]])
    got = record_episodes(family.batch(goals, 1), policy, params, [0, 0])
    assert got.lengths.tolist() == [3, 100] and got.measured == {}
    assert got.rewards[0, 3:].eq(0).all() and len(got.states) == 101
    torch.testing.assert_close(got.states[-1]["position"][0], torch.full((2,), 0.3, dtype=torch.float64))


def test_an_environment_with_several_episodes_is_refused() -> None:
    family, policy = cheetah()
    with pytest.raises(ValueError, match="2 episodes per task"):
        record_episodes(family.batch(family.sample_tasks(1), 2), policy, shared(policy, 1), [0])


@pytest.mark.parametrize("sampled", [True, False])
def test_before_and_after_differ_by_their_parameters_alone(sampled: bool) -> None:
    family, policy = cheetah()
    tasks, before = family.sample_tasks(3, "test"), shared(policy, 3)
    after = {name: value + (0.1 if "bias" in name else 0.0) for name, value in before.items()}
    options = {"noise_key": KEY, "sampled": sampled}
    same = record_before_after(family, policy, before, before, tasks, [0, 2], **options)
    torch.testing.assert_close(same.states[-1]["qpos"][0::2], same.states[-1]["qpos"][1::2], rtol=0, atol=0)
    other = record_before_after(family, policy, before, after, tasks, [0, 2], **options)
    torch.testing.assert_close(other.states[0]["qpos"][0::2], other.states[0]["qpos"][1::2], rtol=0, atol=0)
    torch.testing.assert_close(other.states[-1]["qpos"][0::2], same.states[-1]["qpos"][0::2], rtol=0, atol=0)
    assert (other.states[-1]["qpos"][0::2] != other.states[-1]["qpos"][1::2]).any()
    alone = record_before_after(family, policy, before, after, tasks, [2], **options)
    # To rounding, which the batch size decides and the physics amplifies.
    torch.testing.assert_close(alone.states[10]["qpos"], other.states[10]["qpos"][2:], rtol=0, atol=1e-4)
    values, unit = other.measured["velocity"]
    # The reward is -|v - v*| minus the control cost, so |v - v*| <= -reward.
    assert unit == "m/s" and values.shape == other.rewards.shape
    assert ((values - tasks[[0, 0, 2, 2]]).abs() <= -other.rewards + 1e-12).all()


def test_what_stands_on_a_frame() -> None:
    assert side_text(recording(), 0, 1) == [
        ("velocity now", "1.00 m/s"), ("mean so far", "1.00 m/s"), ("reward so far", "-1.50"),
    ]  # fmt: skip
    assert side_text(recording(), 0, 4) == [
        ("velocity now", "4.00 m/s"), ("mean so far", "2.50 m/s"), ("reward so far", "-6.00"),
    ]  # fmt: skip
    # Its episode is over after two steps: nothing that follows counts.
    assert side_text(recording(), 1, 4) == [
        ("velocity now", "-2.00 m/s"), ("mean so far", "-1.50 m/s"), ("reward so far", "-3.00"),
        ("episode over after", "2 steps"),
    ]  # fmt: skip
    assert task_text(cheetah()[0].spec, [1.234]) == "target velocity 1.23 m/s"
    assert task_text(envs.make("navigation-2d").spec, [0.1, float("nan")]) == "goal x 0.10, goal y not finite"


def test_the_trace_and_its_target() -> None:
    spec = cheetah()[0].spec
    trace = make_trace(recording(), (0, 1), spec, torch.tensor([1.5]))
    assert trace is not None and trace.label == "velocity (m/s)" and trace.target == 1.5
    np.testing.assert_allclose(trace.means[0], [1.0, 1.5, 2.0, 2.5])
    np.testing.assert_allclose(trace.means[1], [-1.0, -1.5, np.nan, np.nan])
    unrelated = make_trace(recording(unit=""), (0, 1), spec, torch.tensor([1.5]))
    assert unrelated is not None and unrelated.label == "velocity" and unrelated.target is None


def test_a_frame_without_a_trace_is_smaller() -> None:
    spec, task = cheetah()[0].spec, torch.tensor([1.5])
    composer = FrameComposer(spec, task, "a run", 2, None)
    pictures = [np.zeros((PICTURE_HEIGHT, PICTURE_WIDTH, 3), np.uint8)] * 2
    frame = composer.compose(pictures, [[("a", "b")], []], 1)
    assert frame.shape[:2] == composer.size[::-1] and frame.shape[0] % 8 == 0
    traced = FrameComposer(spec, task, "a run", 2, make_trace(recording(), (0, 1), spec, task))
    assert traced.size[1] > composer.size[1] and traced.size[1] % 8 == 0
    assert (traced.compose(pictures, [[], []], 1) != traced.compose(pictures, [[], []], 4)).any()


@pytest.mark.parametrize(("dt", "stride"), [(0.05, 1), (0.01, 2), (0.02, 1), (0.002, 10), (0.015, 2)])
def test_real_time_with_at_most_fifty_frames(dt: float, stride: int) -> None:
    assert frame_stride(dt) == stride
    assert 1 / (dt * stride) <= 50 + 1e-9


@pytest.mark.parametrize(("variant", "frames", "fps"), [("maml2017", 100, 50.0), ("promp", 100, 20.0)])
def test_the_video_plays_in_real_time(variant: str, frames: int, fps: float, tmp_path: Path, read_video: Any) -> None:
    family, policy = cheetah(variant)
    tasks, params, painter = family.sample_tasks(1, "test"), shared(policy, 1), Painter()
    got = record_before_after(family, policy, params, params, tasks, [0], noise_key=KEY)
    path = write_video(
        tmp_path / "v.mp4", got, (0, 1), spec=family.spec, task=tasks[0], renderer=painter, num_steps=2, detail="a run"
    )
    assert list(tmp_path.iterdir()) == [path] and painter.drawn == [0, 1] * frames
    played, rate, codec = read_video(path)
    assert (rate, codec) == (fps, "h264")
    assert played.shape == (frames, 544, 2 * PICTURE_WIDTH, 3)
    # The middle of each picture, where nothing is written, holds what the renderer drew.
    assert abs(played[-1][300, 240].astype(int) - 60).max() < 8
    assert abs(played[-1][300, 720].astype(int) - 180).max() < 8


def test_a_diverged_world_keeps_its_last_picture(tmp_path: Path) -> None:
    got, painter = recording((4, 4)), Painter()
    got.states[3]["qpos"][1] = torch.nan
    spec, task = cheetah("plain")[0].spec, torch.tensor([1.5])
    write_video(tmp_path / "v.mp4", got, (0, 1), spec=spec, task=task, renderer=painter, num_steps=1, detail="a run")
    assert painter.drawn == [0, 1, 0, 1, 0, 0, 1]


def write(path: Path) -> None:
    spec, task = cheetah("plain")[0].spec, torch.tensor([1.5])
    write_video(path, recording(), (0, 1), spec=spec, task=task, renderer=Painter(), num_steps=1, detail="a run")


# imageio-ffmpeg leaves its pipe to the garbage collector when ffmpeg dies.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_failing_ffmpeg_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    with pytest.raises(UserError, match="ffmpeg could not write the video"):
        write(tmp_path / "v.mp4")
    assert list(tmp_path.iterdir()) == []
    gc.collect()


def test_no_ffmpeg_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(UserError, match="pip install imageio-ffmpeg"):
        write(tmp_path / "v.mp4")
