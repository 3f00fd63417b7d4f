"""A MAML-TRPO update as a GPU would do it, against the CPU's: from the same rollouts, the same parameters.

The rollouts are MuJoCo Warp's (its CPU device); the GPU's way is all tasks in one chunk on one thread, in float32.
"""

import pytest
import torch

pytest.importorskip("mujoco_warp")

import envs
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.meta_learner import make_chunks
from metarl.algorithms.objective import MetaBatch
from metarl.algorithms.trust_region import trust_region_update
from metarl.functional import initial_params
from metarl.ops.tree import flatten
from metarl.parallel import TaskChunks
from metarl.policies import GaussianMLPPolicy
from metarl.policy_gradient import policy_inner_loop
from metarl.rollout_adaptation import AdvantageSettings, adapt_on_rollouts

TASKS, EPISODES = 8, 5


@pytest.fixture(scope="module")
def rollouts():
    family = envs.make("halfcheetah-vel")
    policy = GaussianMLPPolicy(family.observation_dim, family.action_dim, (32, 32))
    env = family.batch(family.sample_tasks(TASKS), EPISODES, backend="warp")
    return policy, adapt_on_rollouts(
        env, policy_inner_loop(policy), initial_params(policy), num_steps=1, noise_key=(0, 0, 0),
        settings=AdvantageSettings(),
    )  # fmt: skip


def test_the_gpus_way_of_updating_gives_the_cpus_parameters(rollouts):
    policy, data = rollouts
    config, params = LearnerConfig(meta_batch_size=TASKS, episodes_per_task=EPISODES), initial_params(policy)
    batch = MetaBatch.of(data, config)
    by_cpu = make_chunks(config, policy, 200, "cpu", 2)
    assert by_cpu.chunk_size < TASKS
    here, there = (
        trust_region_update(policy_inner_loop(policy), params, batch, config, chunks)[0]
        for chunks in (by_cpu, TaskChunks(TASKS, 1))
    )
    step, other = (flatten(result.params)[0] - flatten(params)[0] for result in (here, there))
    assert here.accepted and there.step_fraction == here.step_fraction
    # Ten steps of conjugate gradient amplify float32's rounding in the directions that hardly matter.
    assert (other - step).norm() < 0.02 * step.norm()
    assert there.kl == pytest.approx(here.kl, rel=0.01)
    assert there.actual_gain == pytest.approx(here.actual_gain, rel=0.01)


def test_in_float64_the_two_ways_are_one(rollouts):
    policy, data = rollouts
    config = LearnerConfig(meta_batch_size=TASKS, episodes_per_task=EPISODES)
    params = {name: value.double() for name, value in initial_params(policy).items()}
    batch = torch.utils._pytree.tree_map(
        lambda x: x.double() if x.is_floating_point() else x, MetaBatch.of(data, config)
    )
    here, there = (
        trust_region_update(policy_inner_loop(policy), params, batch, config, TaskChunks(size, 1))[0]
        for size in (1, TASKS)
    )
    step, other = (flatten(result.params)[0] - flatten(params)[0] for result in (here, there))
    assert (other - step).norm() < 1e-6 * step.norm()
