"""One torch thread, repeatable property tests that write no files, and `toys` importable from the neighbours."""

import sys
from pathlib import Path

import hypothesis
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
torch.set_num_threads(1)
hypothesis.settings.register_profile("metarl", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("metarl")
