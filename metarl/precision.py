"""Float32 products in float32: conjugate gradient amplifies what a Fisher product is off by (docs/gpu.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def no_tf32() -> Iterator[None]:
    """Keeps matrix products out of TF32, and on the CPU out of bfloat16, whatever the program or its environment chose.

    NVIDIA's containers, for one, set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE. torch has an older switch for all products and a
    newer one for each library; where they contradict one another, reading the older one (`allow_tf32`) is an error. So
    both are turned, and put back, but for an older one that the program itself has left in contradiction.
    """
    libraries = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    of_libraries = [library.fp32_precision for library in libraries]
    try:
        of_all = torch.get_float32_matmul_precision()
    except RuntimeError:
        of_all = None
    if of_all is not None:
        torch.set_float32_matmul_precision("highest")
    for library in libraries:
        library.fp32_precision = "ieee"
    try:
        yield
    finally:
        if of_all is not None:
            torch.set_float32_matmul_precision(of_all)
        for library, precision in zip(libraries, of_libraries, strict=True):
            library.fp32_precision = precision
