"""A window that shows frames, for render_mode="human". Needs only the standard library, and a display."""

from __future__ import annotations

import os
import sys
import time
from typing import final

import numpy as np


def display_exists() -> bool:
    """Whether this process can open a window."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@final
class Window:
    """Shows RGB frames no faster than `fps`.

    Args:
        title: Of the window.
        fps: Frames per second.
    """

    def __init__(self, title: str, fps: float) -> None:
        import tkinter

        self._tkinter = tkinter
        self._period = 1.0 / fps
        self._due = 0.0
        self._root = tkinter.Tk()
        self._root.title(title)
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._image: object = None

    def show(self, frame: np.ndarray) -> None:
        """Shows `frame [height, width, 3]` uint8."""
        height, width, _ = frame.shape
        image = self._tkinter.PhotoImage(data=b"P6 %d %d 255 " % (width, height) + frame.tobytes())
        self._label.configure(image=image)
        self._image = image  # Tk keeps no reference of its own
        self._root.update()
        time.sleep(max(0.0, self._due - time.perf_counter()))
        self._due = time.perf_counter() + self._period

    def close(self) -> None:
        self._root.destroy()
