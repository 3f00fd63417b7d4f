"""Matrix products in full precision inside a training step; torch's switches readable there and as before after it."""

import os
import threading

import pytest
import torch

from metarl.fewshot.config import MethodConfig
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.maml import MAML
from metarl.fewshot.networks import Network
from metarl.fewshot.sinusoid import Sinusoid
from metarl.precision import no_tf32

CUDA, CPU = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul

CHOICES = {
    "nothing": lambda: None,
    "older, medium": lambda: torch.set_float32_matmul_precision("medium"),
    "older, for CUDA": lambda: setattr(CUDA, "allow_tf32", True),
    "newer, for CUDA": lambda: setattr(CUDA, "fp32_precision", "ieee"),
    "newer, for CUDA, in contradiction": lambda: setattr(CUDA, "fp32_precision", "tf32"),
    "newer, for the CPU": lambda: setattr(CPU, "fp32_precision", "bf16"),
}


def switches():
    def read(switch):
        try:
            return switch()
        except RuntimeError:
            return "contradiction"

    older = (lambda: CUDA.allow_tf32, torch.get_float32_matmul_precision)
    return [CUDA.fp32_precision, CPU.fp32_precision, *map(read, older)]


@pytest.fixture(autouse=True)
def as_before():
    newer = CUDA.fp32_precision, CPU.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    CUDA.fp32_precision, CPU.fp32_precision = newer


@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES.keys())
def test_products_are_exact_inside_and_every_switch_is_as_before_outside(choose):
    choose()
    before = switches()
    with no_tf32():
        assert [CUDA.fp32_precision, CPU.fp32_precision] == ["ieee", "ieee"]
        with no_tf32():
            pass
        assert [CUDA.fp32_precision, CPU.fp32_precision] == ["ieee", "ieee"]
        if "contradiction" not in before:
            assert CUDA.allow_tf32 is False and torch.get_float32_matmul_precision() == "highest"
    assert switches() == before


def test_blocks_of_two_threads_share_one_turn_and_the_last_puts_back():
    torch.set_float32_matmul_precision("medium")
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other():
        with no_tf32():
            entered.set()
            leave.wait(10)
            seen.append(torch.get_float32_matmul_precision())

    thread = threading.Thread(target=other)
    with no_tf32():
        thread.start()
        entered.wait(10)
    assert torch.get_float32_matmul_precision() == "highest", "the other block is still open"
    leave.set()
    thread.join()
    assert seen == ["highest"] and torch.get_float32_matmul_precision() == "medium"


def test_a_few_shot_step_is_in_full_precision(monkeypatch):
    config = MethodConfig(meta_batch_size=2)
    learner = FewShotLearner(MAML(Network(torch.nn.Linear(1, 1))), Sinusoid(5, 5), config, iterations=1)
    seen, direction = [], learner.mean_direction
    monkeypatch.setattr(learner, "mean_direction", lambda tasks: (seen.append(CPU.fp32_precision), direction(tasks))[1])
    CPU.fp32_precision = "bf16"
    learner.iterate()
    assert seen == ["ieee"] and CPU.fp32_precision == "bf16"


def test_a_block_goes_on_in_a_forked_child():
    torch.set_float32_matmul_precision("high")
    with no_tf32():
        child = os.fork()
        if not child:
            inside = torch.get_float32_matmul_precision() == "highest"
            os._exit(0 if inside else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.get_float32_matmul_precision() == "high"
