"""Videos of one policy before and after adaptation, side by side on the same task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from metarl.experiment.errors import UserError, one_line
from metarl.experiment.outputs import write_output
from metarl.noise import TaskNoise
from metarl.types import FamilySpec, Params, Policy
from metarl.visualize.frames import PICTURE_HEIGHT, PICTURE_WIDTH, FrameComposer, make_trace, side_text
from metarl.visualize.recorder import Recording, State, record_episodes

MAX_FPS = 50


class Renderer(Protocol):
    """Draws one world; `envs.family.Renderer` is one."""

    def render(self, state: State, lane: int, task: Tensor) -> np.ndarray: ...
    def close(self) -> None: ...


class VisualFamily(Protocol):
    """A task family whose worlds can be drawn; `envs.family.TaskFamily` is one.

    Its `problem` has `make_renderer(width, height)`, and `describe_step` where it has words for a step.
    """

    @property
    def problem(self) -> Any: ...
    def batch(self, tasks: Tensor, episodes_per_task: int, device: str = "cpu") -> Any: ...


def open_renderer(family: VisualFamily) -> Renderer:
    """The family's renderer at the size of a video's pictures.

    Raises:
        UserError: Where nothing can be drawn off screen.
    """
    try:
        return family.problem.make_renderer(PICTURE_WIDTH, PICTURE_HEIGHT)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        # PyOpenGL's way of saying that a library is missing is an AttributeError of None, or an ImportError.
        raise UserError(one_line(error)) from error


def check_ffmpeg() -> None:
    """Makes sure that videos can be written.

    Raises:
        UserError: If ffmpeg is missing.
    """
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise UserError(
            "Videos need ffmpeg: install it with 'pip install imageio-ffmpeg', or set IMAGEIO_FFMPEG_EXE to your own."
        ) from None


def record_before_after(
    family: VisualFamily,
    policy: Policy,
    before: Params,
    after: Params,
    tasks: Tensor,
    chosen: Sequence[int],
    *,
    noise_key: Sequence[int],
    sampled: bool = True,
    device: str = "cpu",
) -> Recording:
    """One episode of each chosen task with `before` and one with `after`, from the same state, with the same noise.

    Args:
        family: Task family.
        policy: The policy module.
        before: Parameters of every task, `[task, ...]`.
        after: Likewise.
        tasks: `[task, task_dim]`.
        chosen: Indices of the tasks to record. To rounding, an episode does not depend on the others.
        noise_key: Key of the random streams.
        sampled: Draw actions as in training and evaluation; otherwise take the distribution's mode.
        device: Where worlds and policy live.

    Returns:
        The recording: lane 2i is task `chosen[i]` before adaptation, lane 2i + 1 after it.
    """
    pick = torch.tensor(list(chosen))
    env = family.batch(tasks[pick].repeat_interleave(2, 0), 1, device)
    noise = TaskNoise(noise_key, len(tasks))
    seeds = noise.reset_seeds(0)
    drawn = noise.action_noise(0, 1, env.horizon, policy.distribution, policy.action_dim)[pick, 0]
    return record_episodes(
        env,
        policy,
        {name: torch.stack([before[name][pick], after[name][pick]], dim=1).flatten(0, 1) for name in before},
        [seeds[i] for i in chosen for _ in range(2)],
        drawn.repeat_interleave(2, 0) if sampled else None,
        getattr(family.problem, "describe_step", None),
    )


def frame_stride(dt: float) -> int:
    """Control steps per frame, so that a video in real time has at most `MAX_FPS` frames per second.

    The small number keeps rounding from skipping a frame where 1 / dt is a multiple of the limit.
    """
    return max(1, int(np.ceil(1.0 / (dt * MAX_FPS) - 1e-9)))


def write_video(
    path: Path,
    recording: Recording,
    lanes: tuple[int, int],
    *,
    spec: FamilySpec,
    task: Tensor,
    renderer: Renderer,
    num_steps: int,
    detail: str,
) -> Path:
    """Writes two lanes of a recording side by side, in real time.

    Args:
        path: The mp4 file; it appears only when it is complete.
        recording: What was recorded.
        lanes: Before and after adaptation.
        spec: The family; its dt is the time of a step.
        task: `[task_dim]`, of both lanes.
        renderer: From `open_renderer`.
        num_steps: Inner steps between the two.
        detail: What was run and how actions were chosen, for the header.

    Returns:
        `path`.

    Raises:
        UserError: If ffmpeg is missing or fails.
    """
    stride = frame_stride(spec.dt)
    composer = FrameComposer(spec, task, detail, num_steps, make_trace(recording, lanes, spec, task))
    with _mp4(path, composer.size, 1.0 / (spec.dt * stride)) as send:
        pictures = [np.zeros((PICTURE_HEIGHT, PICTURE_WIDTH, 3), np.uint8)] * 2
        last = int(recording.lengths[list(lanes)].max())
        for step in range(stride, last + 1, stride):
            state = recording.states[step]
            for side, lane in enumerate(lanes):
                # A world that has diverged cannot be drawn; its last picture stays.
                if all(bool(torch.isfinite(value[lane]).all()) for value in state.values()):
                    pictures[side] = renderer.render(state, lane, task)
            texts = [side_text(recording, lane, step) for lane in lanes]
            send(composer.compose(pictures, texts, step))
    return path


@contextlib.contextmanager
def _mp4(path: Path, size: tuple[int, int], fps: float) -> Iterator[Any]:
    """Gives a function that appends a frame; the file takes its name when all went well."""
    check_ffmpeg()
    import imageio_ffmpeg

    temporary = path.with_name(f".{path.stem}.tmp.mp4")
    # faststart: a web page can play it before it is loaded. The sizes are multiples of 8, which spares resizing.
    writer = imageio_ffmpeg.write_frames(
        str(temporary),
        size,
        fps=fps,  # pyright: ignore[reportArgumentType] (fractions are taken as well)
        codec="libx264",
        macro_block_size=8,
        quality=7,
        ffmpeg_log_level="error",
        output_params=["-movflags", "+faststart"],
    )
    try:
        try:
            writer.send(None)
            yield lambda frame: writer.send(np.ascontiguousarray(frame))
        finally:
            writer.close()
        if not temporary.is_file() or not temporary.stat().st_size:
            raise UserError(f"{path}: ffmpeg wrote nothing; is the disk full?")
        write_output(path, temporary.read_bytes())
    except OSError as error:
        # The exception holds ffmpeg's own words last, below a heading.
        said = [line.strip() for line in str(error).splitlines() if line.strip() and not line.strip().endswith(":")]
        reason = said[-1] if said else "it gave no reason"
        raise UserError(f"{path}: ffmpeg could not write the video ({reason}).") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
