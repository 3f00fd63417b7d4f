"""What a picture that was drawn is to the script that asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """A file that was written, and what there is to say about it ("" for nothing)."""

    path: Path
    note: str = ""
