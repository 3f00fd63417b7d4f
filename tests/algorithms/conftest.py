"""One torch thread, repeatable property tests that write no files, and `problems` and `toys` importable."""

import sys
from pathlib import Path

import hypothesis
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "core")]
torch.set_num_threads(1)
hypothesis.settings.register_profile("metarl", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("metarl")
