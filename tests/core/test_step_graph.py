"""The step that CUDA captures, run on the CPU as it stands: the same episodes as the plain loop, bit for bit.

What the capture itself adds can only be seen on a GPU: tests/gpu.
"""

import gc
import weakref

import pytest
import torch
from torch.utils._pytree import tree_map

import envs
from metarl import collect as collect_module
from metarl.collect import collect
from metarl.noise import DeviceNoise, TaskNoise, collection_noise
from metarl.ops import gaussian
from metarl.policies import GaussianMLPPolicy
from metarl.step_graph import StepGraph, step_graph

TASKS, EPISODES = 3, 2


def set_up(name, backend="auto"):
    family = envs.make(name)
    env = family.batch(family.sample_tasks(TASKS), EPISODES, backend=backend)
    policy = GaussianMLPPolicy(family.observation_dim, family.action_dim, (8,))
    generator = torch.Generator().manual_seed(0)
    params = {n: 0.3 * torch.randn(TASKS, *v.shape, generator=generator) for n, v in policy.named_parameters()}
    return env, policy, params


@pytest.mark.parametrize(("name", "backend"), [("navigation-2d", "auto"), ("halfcheetah-vel", "warp")])
def test_the_captured_step_records_what_the_plain_loop_records(name, backend, monkeypatch):
    env, policy, params = set_up(name, backend)
    expected = [collect(env, policy, params, TaskNoise((0, k), TASKS)) for k in range(2)]
    monkeypatch.setattr(collect_module, "_uses_graph", lambda env: True)
    found = [collect(env, policy, params, TaskNoise((0, k), TASKS)) for k in range(2)]
    for a, b in zip(expected, found, strict=True):
        valid = a.valid
        assert torch.equal(valid, b.valid)
        for field in ("observations", "actions", "rewards", "terminated", "truncated", "log_prob"):
            assert torch.equal(getattr(a, field)[valid], getattr(b, field)[valid]), field
        assert torch.equal(a.final_observation, b.final_observation)
    assert not torch.equal(found[0].actions, found[1].actions), "a rollout is not overwritten by the next"


def test_a_graph_follows_physics_that_moved_to_other_memory(monkeypatch):
    """Contacts found no room: the reset before an episode makes the buffers anew, and the graph must follow."""
    pytest.importorskip("mujoco_warp")
    env, policy, params = set_up("halfcheetah-vel", "warp")
    monkeypatch.setattr(collect_module, "_uses_graph", lambda env: True)
    first = collect(env, policy, params, TaskNoise((0, 0), TASKS))
    before = env.memory_generation
    env.simulator._arrays["overflow"].fill_(1)
    with pytest.warns(UserWarning, match="had no room"):
        again = collect(env, policy, params, TaskNoise((0, 0), TASKS))
    assert env.memory_generation > before
    torch.testing.assert_close(again.observations[:, :, :5], first.observations[:, :, :5], rtol=1e-4, atol=1e-4)
    noise = torch.zeros(env.horizon, TASKS, EPISODES, 6)
    stale = StepGraph(env, policy, params, noise)
    env.simulator.memory_generation += 1
    with pytest.raises(RuntimeError, match="other memory"):
        stale.run(env, params, noise, env.reset(0), torch.ones(TASKS, EPISODES, dtype=torch.bool))


def graph_of(env, policy, params, noise):
    return step_graph(env, policy, params, noise, lambda: env.reset(0).float())[0]


def test_new_tasks_and_parameters_reach_a_graph_that_is_there():
    env, policy, params = set_up("navigation-2d")
    noise = torch.zeros(env.horizon, TASKS, EPISODES, 2)
    live = torch.ones(TASKS, EPISODES, dtype=torch.bool)
    graph = graph_of(env, policy, params, noise)
    first = tree_map(torch.clone, graph.run(env, params, noise, env.reset(0).float(), live)[0])
    env.set_tasks(env.tasks + 0.2)
    other = {name: value + 0.1 for name, value in params.items()}
    assert graph_of(env, policy, other, noise) is graph
    second = graph.run(env, other, noise, env.reset(0).float(), live)[0]
    assert not torch.equal(first.reward[0], second.reward[0]) and not torch.equal(first.action, second.action)


def test_a_graph_is_made_anew_for_another_policy_shape_or_memory_and_freed_with_its_environment():
    env, policy, params = set_up("navigation-2d")
    noise = torch.zeros(env.horizon, TASKS, EPISODES, 2)
    graph = graph_of(env, policy, params, noise)
    assert graph_of(env, policy, params, noise) is graph
    assert not graph.fits(env, GaussianMLPPolicy(2, 2, (8,)), params, noise)
    assert not graph.fits(env, policy, params, noise[:-1])
    assert not graph.fits(env, policy, params, noise.double())
    env.simulator.memory_generation += 1
    assert graph_of(env, policy, params, noise) is not graph
    gone = weakref.ref(env)
    del env, graph
    gc.collect()
    assert gone() is None


def test_warming_up_leaves_the_fixed_memory_in_range():
    env, policy, params = set_up("navigation-2d")
    noise = torch.zeros(env.horizon, TASKS, EPISODES, 2)
    graph = StepGraph(env, policy, params, noise)
    for _ in range(env.horizon + 3):
        graph._step(env)
    assert int(graph._t) == 3
    live = torch.ones(TASKS, EPISODES, dtype=torch.bool)
    noise = torch.randn(env.horizon, TASKS, EPISODES, 2, generator=torch.Generator().manual_seed(0))
    record, last = graph.run(env, params, noise, env.reset(0).float(), live)
    fresh = StepGraph(env, policy, params, noise)
    again, same = fresh.run(env, params, noise, env.reset(0).float(), live)
    assert torch.equal(record.action, again.action) and torch.equal(last, same), "an episode begins at its beginning"


def test_noise_of_a_device_is_a_function_of_its_key():
    shape = (0, 4, 5, gaussian, 2)

    def noise(*key):
        return DeviceNoise(key, TASKS, torch.device("cpu")).action_noise(*shape)

    assert noise(0, 1).shape == (TASKS, 4, 5, 2)
    assert torch.equal(noise(0, 1), noise(0, 1)) and not torch.equal(noise(0, 1), noise(0, 2))
    seeds = DeviceNoise((0, 1), TASKS, torch.device("cpu"))
    assert seeds.reset_seeds(0) != seeds.reset_seeds(1)
    assert isinstance(collection_noise((0,), 1, torch.device("cpu")), TaskNoise)
    assert isinstance(collection_noise((0,), 1, torch.device("meta")), DeviceNoise)


def test_a_graph_sees_statistics_changed_in_place_and_is_made_anew_for_other_ones():
    env, policy, params = set_up("navigation-2d")
    policy.register_buffer("centre", torch.zeros(2))
    noise = torch.zeros(env.horizon, TASKS, EPISODES, 2)
    first, _ = step_graph(env, policy, params, noise, lambda: env.reset(0).float())
    policy.centre.fill_(1.0)
    assert step_graph(env, policy, params, noise, lambda: env.reset(0).float())[0] is first
    kept, policy.centre = policy.centre, torch.zeros(2)
    assert step_graph(env, policy, params, noise, lambda: env.reset(0).float())[0] is not first
    assert bool((kept == 1.0).all())
