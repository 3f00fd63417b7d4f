"""Metrics for TensorBoard, written by the thread that trains: a disk that is full ends a run as any other file does."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import final

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue] (made at run time)
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] (likewise)
from tensorboard.summary.writer.record_writer import RecordWriter

from metarl.experiment.files import append


@final
class Events:
    """An events file, made at the first metrics that are added.

    Args:
        run: The run directory.
        purge_step: TensorBoard is to forget what earlier files say from this step on; None for a new run.
    """

    def __init__(self, run: Path, purge_step: int | None = None) -> None:
        self._run = run
        self._path: Path | None = None
        self._first = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._first.append(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds scalars of a step.

        Raises:
            OSError: If they cannot be written, naming the file.
        """
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        events = [Event(wall_time=time.time(), step=step, summary=Summary(value=values))]
        if self._path is None:
            self._path, events = self._new_file(), [*self._first, *events]
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            writer.write(event.SerializeToString())
        append(self._path, records.getvalue())

    def _new_file(self) -> Path:
        """A name that TensorBoard knows and sorts by time, and that is not taken."""
        stem = f"events.out.tfevents.{time.time_ns() // 10**9:010}.{socket.gethostname()}.{os.getpid()}"
        number = 0
        while (path := self._run / f"{stem}.{number}").exists():
            number += 1
        return path
