"""Reading videos back. Through ffmpeg itself: imageio-ffmpeg's reader leaves its pipes to the garbage collector."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

VideoReader = Callable[[Path], tuple[np.ndarray, float, str]]


@pytest.fixture
def read_video() -> VideoReader:
    """A function: mp4 -> (frames `[frame, height, width, 3]` uint8, frames per second, codec)."""

    def read(path: Path) -> tuple[np.ndarray, float, str]:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        result = subprocess.run(command, check=True, capture_output=True, timeout=60)
        about = re.search(r"Video: (\w+).*?, (\d+)x(\d+)\b.*?([\d.]+) fps", result.stderr.decode())
        assert about is not None, result.stderr.decode()
        codec, width, height, fps = about.groups()
        frames = np.frombuffer(result.stdout, np.uint8).reshape(-1, int(height), int(width), 3)
        return frames, float(fps), codec

    return read
