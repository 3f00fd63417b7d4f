"""Captured episodes, parity with the CPU, no waiting inside an episode, training: on CUDA, real or emulated.

Everywhere they run on the emulated device (`emulated_cuda`); `pytest -m gpu tests/gpu` runs them on a real one.
"""

import gc
import importlib
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_map

import envs
from envs.family import TaskFamily
from envs.navigation import Navigation2D, Navigation2DConfig
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
from metarl.algorithms.meta_learner import MetaLearner, make_chunks
from metarl.algorithms.objective import MetaBatch, meta_gradient
from metarl.algorithms.trust_region import LinearizedBatch, trust_region_update
from metarl.collect import collect
from metarl.functional import initial_params
from metarl.noise import DeviceNoise, TaskNoise
from metarl.ops.tree import expand_tasks, flatten
from metarl.ops.trust_region import conjugate_gradient
from metarl.policies import GaussianMLPPolicy
from metarl.policy_gradient import policy_inner_loop
from metarl.rollout_adaptation import AdvantageSettings, adapt_on_rollouts
from metarl.step_graph import StepGraph

TASKS, EPISODES = 4, 8
FAMILIES = ["navigation-2d", "halfcheetah-vel", "halfcheetah-vel@maml2017", "halfcheetah-vel@pearl"]


def set_up(name, device, episodes=EPISODES, horizon=None):
    family = envs.make(name)
    env = family.batch(family.sample_tasks(TASKS), episodes, device)
    env.horizon = horizon or env.horizon
    policy = GaussianMLPPolicy(family.observation_dim, family.action_dim, (16, 16))
    params = {n: v.to(device) for n, v in expand_tasks(initial_params(policy), TASKS).items()}
    return family, env, policy, params


def move(batch, device, dtype=torch.float32):
    return tree_map(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else x.dtype), batch)


@pytest.fixture(autouse=True)
def no_fallback_warning():
    """A capture that failed warns and runs slowly; here it fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", FAMILIES)
def test_a_replayed_episode_is_the_eager_one(name, device):
    family, env, policy, params = set_up(name, "cuda", horizon=20)
    noise = torch.randn(env.horizon, TASKS, EPISODES, family.action_dim, device="cuda")
    live = torch.ones(TASKS, EPISODES, dtype=torch.bool, device="cuda")
    captured = StepGraph(env, policy, params, noise)
    eager = StepGraph(env, policy, params, noise)
    eager._graph = None
    records = []
    for graph in (captured, captured, eager):
        record, last = graph.run(env, params, noise, env.reset(3).float(), live)
        records.append((record.observation.clone(), record.action.clone(), record.reward.unsqueeze(-1).clone()))
        assert torch.isfinite(last).all()
    # On a GPU atomics make the order of contacts, and so the last bits, a matter of chance, which contacts amplify: in
    # three steps not far, in ten not far in most worlds.
    repeatable = 20 if device == "emulated" else 3
    for other in records[1:]:
        for a, b in zip(records[0], other, strict=True):
            torch.testing.assert_close(a[:repeatable], b[:repeatable], rtol=1e-3, atol=1e-3)
            assert (a - b)[:10].abs().amax((0, -1)).median() < 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gpu_steps_as_the_cpu_does(name):
    family, gpu, _, _ = set_up(name, "cuda")
    _, cpu, _, _ = set_up(name, "cpu")
    generator = torch.Generator().manual_seed(0)
    initial = family.problem.initial_state(TASKS * EPISODES, generator)
    initial = {key: value.float() for key, value in initial.items()}
    cpu.reset_to({key: value.double() for key, value in initial.items()})
    gpu.reset_to({key: value.cuda() for key, value in initial.items()})
    for _ in range(3):
        action = 2 * torch.rand(TASKS, EPISODES, family.action_dim, generator=generator) - 1
        ours, reference = gpu.step(action.cuda()), cpu.step(action.double())
        torch.testing.assert_close(ours.observation.cpu().double(), reference.observation, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(ours.reward.cpu().double(), reference.reward, rtol=1e-3, atol=2e-3)
        assert torch.equal(ours.terminated.cpu(), reference.terminated)


@pytest.mark.parametrize("name", FAMILIES[:2])
def test_nothing_waits_inside_an_episode(name, device):
    family, env, policy, params = set_up(name, "cuda", horizon=20 if device == "emulated" else None)
    noise = torch.randn(env.horizon, TASKS, EPISODES, family.action_dim, device="cuda")
    live = torch.ones(TASKS, EPISODES, dtype=torch.bool, device="cuda")
    graph = StepGraph(env, policy, params, noise)
    observation = env.reset(0).float()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode")
            torch.cuda.set_sync_debug_mode("error")
        graph.run(env, params, noise, observation, live)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_collections_repeat_and_do_not_overwrite_one_another():
    _, env, policy, params = set_up("navigation-2d", "cuda")
    first, again = (collect(env, policy, params, DeviceNoise((0, 1), TASKS, env.device)) for _ in range(2))
    other = collect(env, policy, params, DeviceNoise((0, 2), TASKS, env.device))
    assert torch.equal(first.actions, again.actions) and not torch.equal(first.actions, other.actions)


@pytest.mark.parametrize("name", FAMILIES[:2])
def test_an_update_from_the_same_rollouts_gives_the_same_parameters(name):
    family, env, policy, _ = set_up(name, "cpu", episodes=20)
    config = LearnerConfig(meta_batch_size=TASKS, episodes_per_task=20)
    params = initial_params(policy)
    data = adapt_on_rollouts(
        env, policy_inner_loop(policy), params, num_steps=1, noise_key=(0, 0), settings=AdvantageSettings(),
    )  # fmt: skip
    batch = MetaBatch.of(data, config)
    steps, gradients = [], []
    for device in ("cpu", "cuda"):
        moved = move(batch, device)
        there = {n: v.to(device) for n, v in params.items()}
        chunks = make_chunks(config, policy, family.horizon, device, None)
        gradients.append(meta_gradient(policy_inner_loop(policy), there, moved, config, chunks)[0])
        steps.append(trust_region_update(policy_inner_loop(policy), there, moved, config, chunks)[0])
    for n in params:
        torch.testing.assert_close(gradients[1][n].cpu(), gradients[0][n], rtol=1e-3, atol=1e-5)
        step = (steps[0].params[n] - params[n]).abs().max()
        assert (steps[1].params[n].cpu() - steps[0].params[n]).abs().max() < 0.05 * step + 1e-6
    assert steps[1].kl == pytest.approx(steps[0].kl, rel=0.05)


@pytest.mark.parametrize("name", FAMILIES[:2])
def test_training_learns_from_end_to_end(name, device):
    tasks, episodes, iterations = (4, 5, 2) if device == "emulated" else (8, 10, 3)
    family = envs.make(name)
    policy = GaussianMLPPolicy(family.observation_dim, family.action_dim, (32, 32))
    learner = MetaLearner(
        family, policy, LearnerConfig(meta_batch_size=tasks, episodes_per_task=episodes), device="cuda"
    )
    metrics = [learner.iterate() for _ in range(iterations)]
    assert all(m["nonfinite_steps"] == 0 and m["line_search/accepted"] for m in metrics)
    assert all(value.is_cuda for value in learner.params.values())
    agent = learner.adapt(family.sample_tasks(1)[0], episodes=4)
    assert agent.act(torch.zeros(family.observation_dim)).shape == (family.action_dim,)


@pytest.mark.parametrize("name", [name for name, learner in LEARNERS.items() if learner.is_trained])
def test_every_learner_updates_on_the_device(name):
    family = envs.make("navigation-2d", observe_task=LEARNERS[name].observe_task)
    config = LearnerConfig(**{**LEARNERS[name].settings, "meta_batch_size": 4, "episodes_per_task": 2})
    policy = GaussianMLPPolicy(family.observation_dim, family.action_dim, (8,), context_dim=config.context_dim)
    learner = MetaLearner(family, policy, config, device="cuda")
    before = {n: v.cpu() for n, v in learner.params.items()}
    metrics = learner.iterate()
    assert metrics["nonfinite_steps"] == 0 and metrics["skipped_updates"] == 0
    assert all(value.is_cuda and torch.isfinite(value).all() for value in learner.params.values())
    assert any(not torch.equal(value.cpu(), before[n]) for n, value in learner.params.items())


@pytest.fixture
def tf32():
    """A switch for TF32 matrix products, as before again afterwards."""
    before = torch.backends.cuda.matmul.fp32_precision

    def switch(on):
        torch.backends.cuda.matmul.fp32_precision = "tf32" if on else "ieee"

    yield switch
    torch.backends.cuda.matmul.fp32_precision = before


def test_training_stays_out_of_tf32_whatever_the_environment_says(tf32):
    family = envs.make("navigation-2d")
    trained = []
    for on in (False, True):
        policy = GaussianMLPPolicy(
            family.observation_dim, family.action_dim, (8,), generator=torch.Generator().manual_seed(0)
        )
        learner = MetaLearner(family, policy, LearnerConfig(meta_batch_size=2, episodes_per_task=2), device="cuda")
        tf32(on)
        learner.iterate()
        trained.append({name: value.cpu() for name, value in learner.params.items()})
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value)


def test_conjugate_gradient_is_accurate_in_float32(tf32):
    """Residual and solution of the update's own system against float64. What TF32 would cost is printed."""
    family, env, policy, _ = set_up("halfcheetah-vel", "cpu", episodes=5)
    params = initial_params(policy)
    data = adapt_on_rollouts(
        env, policy_inner_loop(policy), params, num_steps=1, noise_key=(0, 0), settings=AdvantageSettings(),
    )  # fmt: skip
    config = LearnerConfig(meta_batch_size=TASKS, episodes_per_task=5)
    chunks = make_chunks(config, policy, family.horizon, "cuda", None)

    def solve(dtype, fast):
        tf32(fast)
        batch = move(MetaBatch.of(data, config), "cuda", dtype)
        there = {n: v.to("cuda", dtype) for n, v in params.items()}
        rhs, unflatten = flatten(meta_gradient(policy_inner_loop(policy), there, batch, config, chunks)[0])
        metric = LinearizedBatch(policy_inner_loop(policy), there, batch, config, chunks).fisher_product

        def product(x):
            return flatten(metric(unflatten(x)))[0] + config.cg_damping * x

        found = conjugate_gradient(product, rhs, config.cg_iters)
        return product(rhs).double(), found.solution.double(), found.relative_residual

    exact = solve(torch.float64, False)
    errors = {}
    for label, fast in (("float32", False), ("TF32", True)):
        image, solution, residual = solve(torch.float32, fast)
        errors[label] = float((image - exact[0]).norm() / exact[0].norm())
        direction = float(torch.nn.functional.cosine_similarity(solution, exact[1], dim=0))
        print(
            f"{label}: product off by {errors[label]:.1e}, direction's cosine {direction:.5f}, residual {residual:.3f}"
        )
    print(f"float64: residual {exact[2]:.3f}")
    assert errors["float32"] < 1e-4


class Reading:
    """A family whose reward asks the device a question, which no capture can hold."""

    def __init__(self):
        self._inner = envs.make("navigation-2d").problem

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def reward(self, before, after, action, task):
        return self._inner.reward(before, after, action, task) * (1.0 if float(action.sum()) > -1e9 else 0.0)


def test_what_cannot_be_captured_runs_step_by_step_with_one_warning():
    from envs.family import TaskFamily

    family = TaskFamily(Reading())
    env = family.batch(family.sample_tasks(TASKS), EPISODES, "cuda")
    _, plain, policy, params = set_up(FAMILIES[0], "cuda")
    noise = DeviceNoise((0, 1), TASKS, env.device)
    with pytest.warns(UserWarning, match="cannot be captured as a CUDA graph"):
        slow = collect(env, policy, params, noise)
    again, fast = collect(env, policy, params, noise), collect(plain, policy, params, noise)
    for other in (again, fast):
        torch.testing.assert_close(slow.rewards, other.rewards)


def test_warps_own_graphs_do_what_they_captured():
    simulator = envs.make("halfcheetah-vel").batch(torch.ones(1, 1), 4, "cuda").simulator
    before = simulator.state()["qpos"]
    simulator.step(torch.ones(4, 6, device="cuda"), None)
    after = simulator.state()["qpos"]
    assert not torch.equal(before, after)
    simulator._arrays["overflow"].fill_(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulator.reset({}, None)
    assert not simulator._arrays["overflow"].any() and not simulator.state()["qpos"].any()


def test_the_raw_physics_of_a_benchmark_holds_what_its_graph_works_on(monkeypatch):
    """A CUDA graph does not keep the arrays it was captured on; one of Warp's CPU device does, and hides it."""
    mjw = pytest.importorskip("mujoco_warp")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "scripts"))
    limits = importlib.import_module("_benchmark_limits")
    _, env, _, _ = set_up("halfcheetah-vel", "cuda", episodes=2)
    made, make_data = [], mjw.make_data

    def noted(*args, **kwargs):
        data = make_data(*args, **kwargs)
        made.append(weakref.ref(data))
        return data

    monkeypatch.setattr(mjw, "make_data", noted)
    step = limits.open_loop_stepper(env, 1)
    gc.collect()
    assert made[0]() is not None
    step(torch.zeros(2, TASKS * 2, 6, device="cuda"))


@pytest.mark.parametrize("budget", [None, 24])
def test_episodes_that_end_early_are_the_cpus(budget):
    """A wide goal ends some episodes before the horizon; what follows in a replayed graph is no step of theirs."""
    family = TaskFamily(Navigation2D(Navigation2DConfig(horizon=8, goal_tolerance=0.2)))
    policy, tasks = GaussianMLPPolicy(2, 2, (16,)), torch.tensor([[0.25, 0.0], [0.3, 0.3], [0.2, -0.25], [0.9, 0.9]])
    rollouts = []
    for device in ("cpu", "cuda"):
        params = {n: v.to(device) for n, v in expand_tasks(initial_params(policy), TASKS).items()}
        noise, env = TaskNoise((0, 5), TASKS), family.batch(tasks, EPISODES, device)
        rollouts.append(collect(env, policy, params, noise, steps_per_task=budget))
    cpu, gpu = rollouts[0], tree_map(lambda x: x.cpu(), rollouts[1])
    lengths = cpu.valid.sum(-1)
    assert ((lengths > 0) & (lengths < 8)).sum() > 5 and (lengths == 8).any()
    for name in ("valid", "terminated", "truncated"):
        assert torch.equal(getattr(cpu, name), getattr(gpu, name)), name
    for name in ("observations", "rewards", "log_prob"):
        ours, reference = getattr(gpu, name)[cpu.valid], getattr(cpu, name)[cpu.valid]
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    played = cpu.valid.any(-1)
    torch.testing.assert_close(gpu.final_observation[played], cpu.final_observation[played], rtol=1e-4, atol=1e-4)
    assert cpu.num_steps() == gpu.num_steps()


def test_waves_for_a_step_budget():
    family, env, policy, params = set_up("navigation-2d", "cuda", episodes=3)
    rollout = collect(env, policy, params, TaskNoise((0,), TASKS), steps_per_task=2 * family.horizon + 1)
    assert (rollout.valid.flatten(1).sum(-1) >= 2 * family.horizon + 1).all()
