"""What every family and variant promises its learners."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

import envs
from envs import registry
from envs.family import TaskFamily
from envs.navigation import Navigation2D, Navigation2DConfig

ALL_VARIANTS = registry.names()
PHYSICS = "halfcheetah-vel"
SPARSE = "navigation-2d-corners@promp"
"""Rewards nothing within a few random steps of the start."""
TASKS, EPISODES = 3, 2


WARP = [f"{name} on warp" for name in (f"{PHYSICS}@plain", f"{PHYSICS}@maml2017", f"{PHYSICS}@pearl")]
"""One variant of each kind of derived quantity; MuJoCo Warp's CPU device."""


def make_family(name: str, observe_task: bool = False) -> TaskFamily:
    """A family by a name such as "halfcheetah-vel@plain on warp": its `batch` then takes that backend."""
    name, _, backend = name.partition(" on ")
    family = envs.make(name, observe_task=observe_task)
    if backend:
        family.batch = functools.partial(family.batch, backend=backend)
    return family


@pytest.fixture(params=[*ALL_VARIANTS, *WARP])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def family(name: str) -> TaskFamily:
    return make_family(name)


def random_actions(family: TaskFamily, steps: int, seed: int = 0) -> torch.Tensor:
    """Actions `[time, task, episode, act_dim]` float32 over a bit more than the range, so that some are clipped."""
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, TASKS, EPISODES, family.action_dim)
    return family.spec.action_scale * 1.2 * (2 * torch.rand(shape, generator=generator) - 1)


def test_shapes_dtypes_and_metadata(family: TaskFamily) -> None:
    env = family.batch(family.sample_tasks(TASKS), EPISODES)
    observation = env.reset(0)
    assert observation.shape == (TASKS, EPISODES, family.observation_dim)
    step = env.step(random_actions(family, 1)[0])
    assert step.observation.shape == observation.shape
    assert step.observation.dtype == step.reward.dtype == observation.dtype == env.simulator.dtype
    for value in (step.reward, step.terminated, step.truncated):
        assert value.shape == (TASKS, EPISODES)
    assert step.terminated.dtype == step.truncated.dtype == torch.bool
    spec = family.spec
    assert len(spec.observation_labels) == family.observation_dim
    assert len(spec.action_labels) == len(spec.action_low) == len(spec.action_high) == family.action_dim
    assert len(spec.task_labels) == len(spec.task_units) == family.task_dim
    assert torch.isfinite(observation).all()
    assert torch.isfinite(step.reward).all()


def test_a_snapshot_survives_later_steps_and_resets(family: TaskFamily) -> None:
    env = family.batch(family.sample_tasks(TASKS), EPISODES)
    first = env.reset(0)
    state = env.state
    kept = {name: value.clone() for name, value in state.items()}
    first_copy = first.clone()
    step = env.step(random_actions(family, 1)[0])
    copies = [value.clone() for value in (step.observation, step.reward, step.terminated, step.truncated)]
    env.step(random_actions(family, 1, seed=1)[0])
    env.reset(1)
    assert all(value.is_contiguous() and torch.equal(value, kept[name]) for name, value in state.items())
    assert torch.equal(first, first_copy)
    for value, copy in zip((step.observation, step.reward, step.terminated, step.truncated), copies, strict=True):
        assert torch.equal(value, copy)


def test_flags_of_a_finished_episode_survive_its_reset(family: TaskFamily) -> None:
    env = family.batch(family.sample_tasks(TASKS), EPISODES)
    env.reset(0)
    actions = random_actions(family, family.horizon)
    actions[-1, 0, 0] = torch.nan  # one ends by itself, the others at the horizon
    for k in range(family.horizon):
        step = env.step(actions[k])
    expected = torch.zeros(TASKS, EPISODES, dtype=torch.bool)
    expected[0, 0] = True
    env.reset(1)
    assert torch.equal(step.terminated, expected)
    assert torch.equal(step.truncated, ~expected)


def test_a_task_sees_nothing_of_the_others(family: TaskFamily) -> None:
    tasks, seeds, steps = family.sample_tasks(TASKS), [11, 12, 13], 30
    actions = random_actions(family, steps)
    together = family.batch(tasks, EPISODES, num_threads=2)
    alone = family.batch(tasks[1:2], EPISODES, num_threads=1)
    assert torch.equal(together.reset(seeds)[1], alone.reset(seeds[1:2])[0])
    for k in range(steps):
        a, b = together.step(actions[k]), alone.step(actions[k, 1:2])
        assert torch.equal(a.observation[1], b.observation[0])
        torch.testing.assert_close(a.reward[1], b.reward[0], rtol=0, atol=1e-12)
        assert torch.equal(a.terminated[1], b.terminated[0])


def test_permuting_tasks_permutes_results(family: TaskFamily) -> None:
    tasks, seeds, order = family.sample_tasks(TASKS), [21, 22, 23], [2, 0, 1]
    actions = random_actions(family, 20)
    straight, permuted = family.batch(tasks, EPISODES), family.batch(tasks[order], EPISODES)
    assert torch.equal(straight.reset(seeds)[order], permuted.reset([seeds[i] for i in order]))
    for k in range(20):
        a, b = straight.step(actions[k]), permuted.step(actions[k][order])
        assert torch.equal(a.observation[order], b.observation)
        assert torch.equal(a.reward[order], b.reward)


def test_reset_is_a_function_of_the_seed() -> None:
    family = envs.make(PHYSICS)
    env = family.batch(family.sample_tasks(TASKS), EPISODES)
    first = env.reset(5)
    env.step(random_actions(family, 1)[0])
    assert torch.equal(env.reset(5), first)
    assert not torch.equal(env.reset(6), first)
    # Every episode starts from its own draw.
    assert len(torch.unique(first.reshape(TASKS * EPISODES, -1), dim=0)) == TASKS * EPISODES
    with pytest.raises(ValueError, match="2 seeds were given for 3 tasks"):
        env.reset([1, 2])


def test_partial_reset_touches_only_its_lanes(family: TaskFamily) -> None:
    tasks, actions = family.sample_tasks(TASKS), random_actions(family, 12)
    touched, untouched = family.batch(tasks, EPISODES), family.batch(tasks, EPISODES)
    touched.reset(1)
    untouched.reset(1)
    for k in range(6):
        before = touched.step(actions[k]).observation
        untouched.step(actions[k])
    lanes = torch.tensor([[False, True], [False, False], [True, False]])
    observation = touched.reset(2, lanes)
    fresh = family.batch(tasks, EPISODES)
    assert torch.equal(observation[lanes], fresh.reset(2)[lanes])
    assert torch.equal(observation[~lanes], before[~lanes])
    for k in range(6, 12):
        a, b, c = (env.step(actions[k]) for env in (touched, untouched, fresh))
        assert torch.equal(a.observation[~lanes], b.observation[~lanes])
        assert torch.equal(a.reward[~lanes], b.reward[~lanes])
        assert torch.equal(a.observation[lanes], c.observation[lanes])
        assert torch.equal(a.reward[lanes], c.reward[lanes])


def test_truncation_at_the_horizon_exactly(family: TaskFamily) -> None:
    tasks = family.sample_tasks(TASKS)
    env = family.batch(tasks, EPISODES)
    env.reset(0)
    late = torch.tensor([[True, False]] * TASKS)
    still = torch.zeros(TASKS, EPISODES, family.action_dim)
    for k in range(1, family.horizon + 1):
        step = env.step(still)
        assert bool((step.truncated == (k >= family.horizon)).all()), k
        assert not step.terminated.any()
    env.reset(1, late)
    step = env.step(still)
    assert torch.equal(step.truncated, ~late)


def test_a_finished_lane_rests(family: TaskFamily) -> None:
    env = family.batch(family.sample_tasks(TASKS), EPISODES)
    env.reset(0)
    for actions in random_actions(family, family.horizon):
        last = env.step(actions)
    env.reset(1, torch.tensor([[True, False], [False, False], [False, False]]))
    running = torch.zeros(TASKS, EPISODES, dtype=torch.bool)
    running[0, 0] = True
    # Whatever is sent to a finished lane, padding of NaN included, changes nothing.
    actions = random_actions(family, 1)[0]
    actions[~running] = torch.nan
    state = env.state
    step = env.step(actions)
    assert torch.equal(step.observation[~running], last.observation[~running])
    assert bool((step.reward[~running] == 0).all())
    assert family.spec.id == SPARSE or bool((step.reward[running] != 0).all())
    assert torch.equal((step.terminated | step.truncated), ~running)
    for name, value in env.state.items():
        assert torch.equal(value[1:], state[name][1:])


def test_a_nan_action_is_reported_and_isolated(family: TaskFamily) -> None:
    tasks, actions = family.sample_tasks(TASKS), random_actions(family, 10)
    env, healthy = family.batch(tasks, EPISODES, num_threads=2), family.batch(tasks, EPISODES, num_threads=2)
    env.reset(3)
    healthy.reset(3)
    others = torch.ones(TASKS, EPISODES, dtype=torch.bool)
    others[1, 0] = False
    for k in range(10):
        broken = actions[k].clone()
        if k == 4:
            broken[1, 0, 0] = torch.nan
        a, b = env.step(broken), healthy.step(actions[k])
        assert torch.equal(a.observation[others], b.observation[others])
        assert torch.equal(a.reward[others], b.reward[others])
        assert bool(a.terminated[1, 0]) == (k >= 4)
        assert math.isnan(a.reward[1, 0]) == (k == 4)
        assert bool(torch.isnan(a.observation[1, 0]).all()) == (k >= 4)
    observation = env.reset(4, ~others)
    assert bool(torch.isfinite(observation).all())
    step = env.step(actions[0])
    assert bool(torch.isfinite(step.reward).all())
    assert not step.terminated.any()


def test_tasks_depend_on_nothing_but_their_index(family: TaskFamily) -> None:
    for split in ("train", "test"):
        tasks = family.sample_tasks(20, split, seed=3)
        assert torch.equal(tasks[:5], family.sample_tasks(5, split, seed=3))
        assert torch.equal(tasks[7:12], family.sample_tasks(5, split, seed=3, start=7))
        assert tasks.dtype == torch.float64
        assert not torch.equal(tasks, family.sample_tasks(20, split, seed=4))
    assert not torch.equal(family.sample_tasks(20, "train"), family.sample_tasks(20, "test"))
    with pytest.raises(ValueError, match="split is 'valid'"):
        family.sample_tasks(1, "valid")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="it must be an integer, at least 0"):
        family.sample_tasks(1, seed=-1)


def test_the_task_is_observed_only_on_request(name: str, family: TaskFamily) -> None:
    oracle = make_family(name, observe_task=True)
    assert oracle.observation_dim == family.observation_dim + family.task_dim
    tasks = family.sample_tasks(TASKS)
    seen, unseen = oracle.batch(tasks, EPISODES), family.batch(tasks, EPISODES)
    other = family.batch(family.sample_tasks(TASKS, seed=9), EPISODES)
    observation = unseen.reset(0)
    assert torch.equal(other.reset(0), observation)
    expected = torch.cat([observation, tasks[:, None].expand(-1, EPISODES, -1).to(observation)], dim=-1)
    assert torch.equal(seen.reset(0), expected)
    actions = random_actions(family, 1)[0]
    assert torch.equal(unseen.step(actions).observation, other.step(actions).observation)


def test_bad_input_is_refused_in_one_sentence(family: TaskFamily) -> None:
    tasks = family.sample_tasks(TASKS)
    with pytest.raises(ValueError, match="tasks has shape"):
        family.batch(tasks[0], EPISODES)
    with pytest.raises(ValueError, match="tasks has shape"):
        family.batch(tasks[:0], EPISODES)
    with pytest.raises(ValueError, match="not finite"):
        family.batch(tasks * np.nan, EPISODES)
    with pytest.raises(ValueError, match="episodes_per_task is 0"):
        family.batch(tasks, 0)
    with pytest.raises(ValueError, match="backend"):
        family.batch(tasks, 1, backend="nonsense")
    if family.spec.name == PHYSICS:
        with pytest.raises(ValueError, match="device is 'meta'"):
            family.batch(tasks, 1, device="meta")
    env = family.batch(tasks, EPISODES)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(random_actions(family, 1)[0])
    env.reset(0)
    with pytest.raises(ValueError, match="actions has shape"):
        env.step(random_actions(family, 1)[0].transpose(0, 1))
    env.set_tasks(tasks + 0.5)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(random_actions(family, 1)[0])
    some, everything = (torch.full((TASKS, EPISODES), True) for _ in range(2))
    some[0, 0] = False
    for unstarted in (env, family.batch(tasks, EPISODES)):
        with pytest.raises(ValueError, match="needs one of all first"):
            unstarted.reset(0, some)
        unstarted.reset(0, everything)
        unstarted.reset(0, some)
        unstarted.step(random_actions(family, 1)[0])
    with pytest.raises(ValueError, match="tasks has shape"):
        env.set_tasks(tasks[:2])


def test_new_tasks_change_the_reward(family: TaskFamily) -> None:
    tasks, actions = family.sample_tasks(TASKS), random_actions(family, 1)[0]
    changed, built = family.batch(tasks, EPISODES), family.batch(tasks + 0.5, EPISODES)
    changed.reset(0)
    old = changed.step(actions)
    changed.set_tasks(tasks + 0.5)
    changed.reset(0)
    built.reset(0)
    new, expected = changed.step(actions), built.step(actions)
    assert torch.equal(new.observation, old.observation)
    assert torch.equal(new.reward, expected.reward)
    assert family.spec.id == SPARSE or not torch.equal(new.reward, old.reward)


def test_policy_actions_span_the_range_of_the_environment_also_where_it_is_lopsided() -> None:
    problem = Navigation2D(Navigation2DConfig())
    problem.spec = dataclasses.replace(problem.spec, action_low=(-0.1, 0.0), action_high=(0.3, 0.5), action_scale=2.0)
    env = TaskFamily(problem).batch(torch.zeros(1, 2), 1)
    actions = torch.tensor([[-2.0, -2.0], [2.0, 2.0], [0.0, 0.0], [1.0, -1.0], [9.0, -9.0]])
    expected = torch.tensor([[-0.1, 0.0], [0.3, 0.5], [0.1, 0.25], [0.2, 0.125], [0.3, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(env.applied_action(actions), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_a_finished_lane_stays_finished_while_another_starts_anew(end: str) -> None:
    family = TaskFamily(Navigation2D(Navigation2DConfig(horizon=2, goal_tolerance=0.06)))
    goal = [[0.1, 0.0]] if end == "terminated" else [[0.5, 0.5]]
    env = family.batch(torch.tensor(goal), 2)
    env.reset(0)
    right = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    for _ in range(1 if end == "terminated" else 2):
        step = env.step(right)
    assert getattr(step, end).all()
    env.reset(0, torch.tensor([[True, False]]))
    step = env.step(0.1 * right)
    assert getattr(step, end).tolist() == [[False, True]]
    assert float(step.reward[0, 0]) < 0 and float(step.reward[0, 1]) == 0
    x = 0.1 if end == "terminated" else 0.2
    assert step.observation[0, :, 0].tolist() == pytest.approx([0.01, x])


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean halfcheetah-vel"):
        envs.make("halfcheeta-vel")
    with pytest.raises(ValueError, match="did you mean maml2017"):
        envs.make("navigation-2d@maml")
