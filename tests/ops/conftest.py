"""One torch thread (small tensors), and property tests that draw the same examples every time and write no files."""

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("metarl", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("metarl")
