"""Float32 products in float32: conjugate gradient amplifies what a Fisher product is off by (docs/gpu.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def no_tf32() -> Iterator[None]:
    """Keeps CUDA's matrix products out of TF32 inside the block, whatever the program or its environment chose.

    NVIDIA's containers, for one, set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
