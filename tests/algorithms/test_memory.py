"""Training takes the same memory at every iteration, and gives all of it back with the learner."""

import ctypes
import gc
import sys
import weakref

import pytest
import torch
from toys import PointFamily

from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
from metarl.algorithms.meta_learner import MetaLearner
from metarl.evaluation import evaluate_adaptation
from metarl.policies import GaussianMLPPolicy
from metarl.rollout_adaptation import AdvantageSettings

ROUNDING = 100_000
"""Bytes by which the allocator's own books may differ; five graphs that are not given back are more."""

EPISODES, HORIZON = 10, 4


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def live_bytes():
    """Bytes in use of all that malloc has given out, tensors among it."""
    gc.collect()
    info = _libc.mallinfo2()
    return info.uordblks + info.hblkhd


_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
if not hasattr(_libc, "mallinfo2"):
    pytest.skip("needs glibc 2.33 or later to count live bytes", allow_module_level=True)
_libc.mallinfo2.restype = _MallInfo


def make(name, **settings):
    short = {"cg_iters": 2} if LEARNERS[name].settings.get("outer_optimizer", "trpo") == "trpo" else {}
    small = {"meta_batch_size": 4, "episodes_per_task": EPISODES, **short}
    config = LearnerConfig(**{**LEARNERS[name].settings, **small, **settings})
    policy = GaussianMLPPolicy(2, 2, (32,), context_dim=config.context_dim)
    return MetaLearner(PointFamily(horizon=HORIZON), policy, config, num_threads=1)


@pytest.mark.parametrize(
    ("name", "settings", "iterations"),
    [
        *((name, {}, 8) for name in LEARNERS),
        ("maml-trpo", {"chunk_size": 4}, 25),
        ("maml-trpo", {"fvp_fraction": 0.5, "memory_budget_mb": 1}, 8),
    ],
    ids=str,
)
def test_memory_stays_the_same_over_iterations_and_goes_with_the_learner(name, settings, iterations):
    make(name, **settings).iterate()  # what is made once in a process
    before = live_bytes()
    learner = make(name, **settings)
    for _ in range(3):
        learner.iterate()
    early = live_bytes()
    for _ in range(iterations - 3):
        learner.iterate()
    assert live_bytes() - early < ROUNDING
    policy, inner = weakref.ref(learner.policy), weakref.ref(learner.inner)
    del learner
    assert live_bytes() - before < ROUNDING
    assert policy() is None and inner() is None


def test_an_evaluation_keeps_numbers_and_no_rollouts():
    learner = make("maml-trpo")
    tasks = learner.family.sample_tasks(4, "test")

    def kept(num_steps, **options):
        before = live_bytes()
        result = evaluate_adaptation(
            learner.family, learner.inner, learner.params, tasks, num_steps=num_steps, noise_key=(2, 0),
            settings=AdvantageSettings(), episodes_per_task=EPISODES, **options,
        )  # fmt: skip
        return live_bytes() - before, result

    kept(1)
    few, many = kept(1)[0], kept(41)[0]
    one_rollout = 4 * EPISODES * HORIZON * 4 * (2 + 2 + 1 + 1 + 2 + 2)
    assert many - few < ROUNDING < 20 * one_rollout
    everything, (curve, data) = kept(41, keep_rollouts=True)
    assert everything > 40 * one_rollout and len(data.rollouts) == 42
    returns = torch.stack([rollout.mean_return() for rollout in data.rollouts], 1).double()
    assert torch.equal(curve.returns, returns)
    assert curve.env_steps == sum(rollout.num_steps() for rollout in data.rollouts) and curve.episodes == EPISODES
