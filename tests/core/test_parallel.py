"""Chunks over threads: order, splitting, thread settings, failures; bytes that autograd keeps."""

import threading

import pytest
import torch
from toys import OneStepFamily

from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.meta_learner import MetaLearner
from metarl.evaluation import evaluate_adaptation
from metarl.functional import initial_params
from metarl.memory import SavedBytes
from metarl.parallel import TaskChunks, cached_chunk_size, num_cores, one_intra_op_thread
from metarl.policies import GaussianMLPPolicy
from metarl.policy_gradient import policy_inner_loop
from metarl.rollout_adaptation import AdvantageSettings


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100])
def test_chunks_cover_every_task_once_and_in_order(chunk_size, num_threads):
    chunks = TaskChunks(chunk_size, num_threads)
    tree = {"x": torch.arange(7), "y": [torch.arange(14).reshape(7, 2)]}
    parts = chunks.map(lambda t, scale: t["x"] * scale + t["y"][0].sum(-1), 7, tree, torch.full((7,), 10))
    assert torch.equal(torch.cat(parts), 10 * torch.arange(7) + torch.arange(14).reshape(7, 2).sum(-1))
    assert all(len(part) <= chunk_size for part in parts) and len(parts) == len(chunks.slices(7))


def test_results_keep_their_order_when_later_items_finish_first():
    first_may_end = threading.Event()

    def work(i):
        if i == 0:
            assert first_may_end.wait(10)
        else:
            first_may_end.set()
        return i

    assert TaskChunks(1, 2).map_items(work, [0, 1, 2]) == [0, 1, 2]


def test_intra_op_threads_are_one_inside_and_restored_outside_also_after_a_failure():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for num_threads in (1, 2):
            chunks = TaskChunks(1, num_threads)
            assert chunks.map_items(lambda _: torch.get_num_threads(), [0, 1, 2]) == [1, 1, 1]
            assert torch.get_num_threads() == 2
            with pytest.raises(ZeroDivisionError):
                chunks.map_items(lambda i: 1 / i, [1, 0])
            assert torch.get_num_threads() == 2
        with one_intra_op_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("num_tasks", "layer_bytes", "expected"),
    [(20, 2000 * 64 * 4, 2), (20, 2000 * 100 * 4, 1), (40, 4000 * 100 * 4, 1), (40, 1000, 10), (3, 1000, 1)],
)
def test_chunks_fit_the_cache_and_leave_work_for_the_cores(num_tasks, layer_bytes, expected):
    assert cached_chunk_size(num_tasks, layer_bytes) == expected


def test_impossible_chunk_sizes_are_refused_and_cores_are_counted():
    with pytest.raises(ValueError, match="chunk_size is 0"):
        TaskChunks(0)
    assert num_cores() >= 1 and TaskChunks().num_threads == num_cores()


def test_saved_bytes_counts_each_storage_once():
    x = torch.randn(100, dtype=torch.float64, requires_grad=True)
    with SavedBytes() as saved:
        y = x.exp()  # keeps its result
        z = y.square()  # keeps its input, the same tensor
    assert saved.total == 800
    with SavedBytes() as nothing:
        (x.detach() + 1).sum()
    assert nothing.total == 0
    torch.testing.assert_close(torch.autograd.grad(z.sum(), x)[0], 2 * (2 * x).exp().detach())


def test_a_number_of_threads_reaches_every_batch():
    asked = []

    class Family(OneStepFamily):
        def batch(self, tasks, episodes_per_task, device="cpu", *, num_threads=None):
            asked.append(num_threads)
            return super().batch(tasks, episodes_per_task, device)

    family = Family(1, (-1.0, 1.0), lambda actions, tasks: -actions.squeeze(-1).square())
    policy = GaussianMLPPolicy(1, 1, ())
    learner = MetaLearner(family, policy, LearnerConfig(meta_batch_size=2, episodes_per_task=2), num_threads=3)
    assert asked == []  # to adapt to one task nobody needs the worlds of training
    learner.iterate()
    for chunks in (TaskChunks(1, 2), None):
        evaluate_adaptation(
            family, policy_inner_loop(policy), initial_params(policy), family.sample_tasks(2),
            num_steps=0, noise_key=(2, 0), settings=AdvantageSettings(), episodes_per_task=1, chunks=chunks,
        )  # fmt: skip
    assert asked == [3, 2, None]
