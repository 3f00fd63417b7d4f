"""The device of these tests: an emulated one, everywhere; with -m gpu the machine's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from emulated_cuda import emulated_cuda, register

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    register()  # here, as tests of other folders may run first in this process


@pytest.fixture(
    autouse=True,
    params=[
        pytest.param("emulated", marks=pytest.mark.skipif(HAS_GPU, reason="there is a real CUDA device: -m gpu")),
        pytest.param("gpu", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")]),
    ],
)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "gpu":
        yield "gpu"
        return
    with emulated_cuda():
        yield "emulated"
