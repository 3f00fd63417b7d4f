"""The Gymnasium faces: what a seed determines, what a spec says, how copies go on; and one world against the batch."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

import envs
from envs import arrays, registry
from envs.family import Measured, TaskFamily
from envs.gym_adapter import FamilyEnv, FamilyVectorEnv
from envs.locomotion.half_cheetah import HalfCheetah, HalfCheetahConfig
from envs.navigation import Navigation2D, Navigation2DConfig
from envs.presets import FAMILIES
from envs.torch_simulator import TorchSimulator
from envs.world import World

ALL_VARIANTS = registry.names()
CHEETAH, NAVIGATION = "metarl/HalfCheetahVel-v0", "metarl/Navigation2D-v0"
TASKS = {"task": [0.4, -0.1], "tasks": [[0.1, 0.0], [0.4, -0.4]], "task_seed": 3}


def play(env: Any, steps: int, seed: int = 0) -> list:
    """What an environment, single or vector, returns for actions that have nothing to do with it."""
    generator = np.random.default_rng(seed)
    scale = env.action_space.high
    return [env.step((scale * generator.uniform(-1, 1, scale.shape)).astype(np.float32)) for _ in range(steps)]


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_a_seeded_reset_determines_task_and_episode(name: str) -> None:
    family, variant = registry.resolve(name)
    first, second = (gymnasium.make(FAMILIES[family].gym_id, variant=variant) for _ in range(2))
    second.reset()  # with another past
    for seed in (7, 8, 7):
        assert_same(first.reset(seed=seed), second.reset(seed=seed))
        expected = envs.make(name).sample_tasks(1, seed=seed)[0]
        np.testing.assert_array_equal(first.unwrapped.task, expected)
        assert_same(play(first, 3), play(second, 3))
        assert_same(first.reset(), second.reset())
        np.testing.assert_array_equal(first.unwrapped.task, expected)


def test_tasks_come_in_turn_with_consecutive_seeds_and_others_do_not_change() -> None:
    tasks = [[0.1, 0.0], [0.4, -0.4], [0.0, 0.2]]
    env = FamilyEnv("navigation-2d", tasks=tasks)
    for seed in range(5):
        assert env.reset(seed=seed)[1]["task"] == dict(zip(("goal x", "goal y"), tasks[seed % 3], strict=True))
    for arguments in ({"task": tasks[1]}, {"task_seed": 3}):
        env = FamilyEnv("navigation-2d", **arguments)
        task = env.task
        env.reset(seed=5)
        np.testing.assert_array_equal(env.task, task)
    vector = FamilyVectorEnv("navigation-2d", num_envs=6, tasks=tasks)
    np.testing.assert_array_equal(vector.tasks, tasks * 2)  # also before any seed
    for one, other in (("task", "tasks"), ("tasks", "task_seed")):
        with pytest.raises(ValueError, match=f"{one} and {other} were given"):
            FamilyEnv("navigation-2d", **{one: TASKS[one], other: TASKS[other]})


def test_an_unseeded_environment_keeps_the_task_it_shows() -> None:
    env, other = FamilyEnv("halfcheetah-vel"), FamilyEnv("halfcheetah-vel")
    task = env.task
    env.reset()
    env.reset()
    assert env.task == task and env.task != other.task
    env.np_random = np.random.default_rng(0)
    assert_same(env.reset()[1]["task"], {"target velocity": task[0]})


@pytest.mark.parametrize("arguments", [{}, *({name: value} for name, value in TASKS.items())], ids=str)
def test_every_vectorization_mode_gives_the_same_tasks_and_numbers(arguments: dict) -> None:
    single = [gymnasium.make(NAVIGATION, **arguments) for _ in range(3)]
    expected = [env.reset(seed=5 + i) for i, env in enumerate(single)]
    results = []
    for mode in ("vector_entry_point", "sync", "async"):
        vector = gymnasium.make_vec(NAVIGATION, num_envs=3, vectorization_mode=mode, **arguments)
        start = vector.reset(seed=5)
        for i, (observation, info) in enumerate(expected):
            np.testing.assert_array_equal(start[0][i], observation)
            assert {label: start[1]["task"][label][i] for label in info["task"]} == info["task"]
        results.append([start, play(vector, 4), vector.reset(), vector.reset(seed=[9, None, 2]), play(vector, 2)])
        vector.close()
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_a_masked_reset_gives_new_tasks_to_its_own_alone() -> None:
    vector = FamilyVectorEnv("halfcheetah-vel", num_envs=3, autoreset_mode="Disabled", num_threads=1)
    free = FamilyVectorEnv("halfcheetah-vel", num_envs=3, autoreset_mode="Disabled", num_threads=1)
    vector.reset(seed=1), free.reset(seed=1)
    assert_same(play(vector, 3), play(free, 3))
    before = vector.tasks
    _, info = vector.reset(seed=[7, 8, 9], options={"reset_mask": np.array([False, True, False])})
    assert info["_task"].tolist() == [False, True, False]
    expected = envs.make("halfcheetah-vel").sample_tasks(1, seed=8)[0]
    np.testing.assert_array_equal(vector.tasks, [before[0], expected, before[2]])
    for ours, theirs in zip(play(vector, 3), play(free, 3), strict=True):
        np.testing.assert_array_equal(ours[0][[0, 2]], theirs[0][[0, 2]])
        np.testing.assert_array_equal(ours[1][[0, 2]], theirs[1][[0, 2]])


def recovered(spec: EnvSpec | None) -> list[gymnasium.Env]:
    """Environments from a spec, and from what JSON keeps of it, as data sets of episodes store it."""
    assert spec is not None
    twin = EnvSpec.from_json(spec.to_json())
    assert twin == spec
    return [gymnasium.make(spec), gymnasium.make(twin)]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"task": np.array([1.25])}, {"task": torch.tensor([1.25])}, {"tasks": np.ones((2, 1))}, {"task_seed": 2}],
    ids=str,
)
def test_a_spec_makes_the_same_environment_again(arguments: dict) -> None:
    env = gymnasium.make(CHEETAH, variant="promp", **arguments)
    json.loads(env.spec.to_json())  # asked before there is a task: wrappers keep what they say now
    for seed in (3, 4):
        start = env.reset(seed=seed)
        for again in recovered(env.spec):
            np.testing.assert_array_equal(again.unwrapped.task, env.unwrapped.task)
            assert_same(again.reset(seed=seed), start)
            assert again.spec.max_episode_steps == 100
            again.reset(seed=11)
            np.testing.assert_array_equal(again.unwrapped.task, env.unwrapped.task)
    env.unwrapped.set_task(np.array([0.75]))
    assert env.spec.kwargs["task"] == [0.75]
    for again in recovered(env.spec):
        assert again.unwrapped.task == 0.75
        again.unwrapped.set_task(0.5)
    assert env.spec.kwargs["task"] == [0.75], "the spec of another environment is its own"
    assert_same(gymnasium.make(env.spec, task=[2.0]).unwrapped.task, [2.0])


def test_the_spec_of_a_vector_environment_makes_it_again() -> None:
    vector = gymnasium.make_vec(NAVIGATION, num_envs=4)
    vector.reset(seed=2)
    assert vector.spec is not None and vector.spec.max_episode_steps == 100
    again = gymnasium.make_vec(EnvSpec.from_json(vector.spec.to_json()))
    np.testing.assert_array_equal(again.unwrapped.tasks, vector.unwrapped.tasks)
    assert_same(again.reset(seed=2), vector.reset(seed=2))
    vector.unwrapped.set_tasks(np.array([[0.1, 0.2], [0.3, 0.4]]))
    np.testing.assert_array_equal(gymnasium.make_vec(vector.spec).unwrapped.tasks, vector.unwrapped.tasks)


def test_an_episode_may_be_cut_off_earlier_in_every_mode() -> None:
    for mode in ("vector_entry_point", "sync"):
        vector = gymnasium.make_vec(
            NAVIGATION, num_envs=2, task=[0.5, 0.5], max_episode_steps=4, vectorization_mode=mode
        )
        vector.reset(seed=0)
        assert [bool(step[3].all()) for step in play(vector, 5)] == [False, False, False, True, False]
    with pytest.raises(ValueError, match="max_episode_steps is 0"):
        FamilyVectorEnv("navigation-2d", max_episode_steps=0)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda env: pickle.loads(pickle.dumps(env))}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["navigation-2d", *(f"halfcheetah-vel@{v}" for v in ("plain", "maml2017", "pearl"))])
def test_a_copy_goes_on_bit_for_bit_and_alone(name: str, how: str) -> None:
    family, variant = registry.resolve(name)
    env = gymnasium.make(FAMILIES[family].gym_id, variant=variant)
    vector = FamilyVectorEnv(name, num_envs=3, num_threads=2)
    for original in (env, vector):
        original.reset(seed=1)
        play(original, 7)
        twin, untouched = COPIES[how](original), COPIES[how](original)
        expected = [play(original, 5, seed=1), original.reset()]
        assert_same([play(twin, 5, seed=1), twin.reset()], expected)
        assert_same([play(untouched, 5, seed=1), untouched.reset()], expected)
    twin = COPIES[how](env)
    task = env.unwrapped.task
    twin.unwrapped.set_task(0.3 * np.ones_like(task))
    np.testing.assert_array_equal(env.unwrapped.task, task)
    for wrapped in (env, env.unwrapped):
        assert wrapped.spec.kwargs["task"] == task.tolist()
    for wrapped in (twin, twin.unwrapped):
        assert wrapped.spec.kwargs["task"] == (0.3 * np.ones_like(task)).tolist()


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_spec_is_a_snapshot_and_wrappers_specs_are_not(how: str) -> None:
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(NAVIGATION))
    kept = []
    for seed in range(3):
        env.reset(seed=seed)
        kept.append((env.unwrapped.task, COPIES[how](env.spec)))
    assert env.spec.additional_wrappers[0].name == "RecordEpisodeStatistics"
    np.testing.assert_array_equal(env.spec.kwargs["task"], env.unwrapped.task)
    for task, spec in kept:
        spec.nondeterministic = True  # a snapshot may be written into
        env.reset(seed=7)
        np.testing.assert_array_equal(spec.kwargs["task"], task)
        np.testing.assert_array_equal(gymnasium.make(spec).unwrapped.task, task)


def test_copies_leave_pictures_behind_and_run_in_gymnasiums_vector_environments() -> None:
    env = FamilyEnv("navigation-2d", task=[0.4, 0.3], render_mode="rgb_array", width=60, height=60)
    env.reset(seed=0)
    frame = env.render()
    twin = pickle.loads(pickle.dumps(env))
    assert env._renderer is not None and twin._renderer is None
    np.testing.assert_array_equal(twin.render(), frame)
    frame[:] = 0  # the caller's own
    assert env.render().max() == 255
    start = env.reset(seed=4)[0]
    for kind in (SyncVectorEnv, AsyncVectorEnv):
        vector = kind([lambda: copy.deepcopy(env)] * 2)
        np.testing.assert_array_equal(vector.reset(seed=[4, 4])[0], [start, start])
        vector.close()


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_infos_hold_the_task_and_what_the_family_measures(name: str) -> None:
    env = FamilyEnv(name)
    labels, problem = env.family.spec.task_labels, env.family.problem
    _, info = env.reset(seed=0)
    assert info == {"task": dict(zip(labels, env.task.tolist(), strict=True))}
    info["task"][labels[0]] = 99.0
    before = env._world.state
    info = play(env, 1)[0][4]
    assert info.pop("task") == dict(zip(labels, env.task.tolist(), strict=True))
    measured = {}
    if hasattr(problem, "describe_step"):
        measured = problem.describe_step(before, env._world.state, torch.from_numpy(env.task[None]))
    assert info == {label: float(quantity.value) for label, quantity in measured.items()}
    assert ("velocity" in info) == name.startswith("halfcheetah")


@pytest.mark.parametrize("observe_task", [False, True])
@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_one_world_is_a_lane_of_the_batch_bit_for_bit(name: str, observe_task: bool) -> None:
    """Through an end by itself, by a NaN, and at the horizon; the resting steps after each included."""
    family = envs.make(name, observe_task=observe_task)
    world = World(family)
    task = torch.tensor([[0.25, 0.0]], dtype=torch.float64)[:, : family.task_dim]
    world.set_task(task)
    batch = family.batch(task, 1, num_threads=1)
    generator = np.random.default_rng(0)
    scale = family.spec.action_scale
    for episode in range(3):
        first = world.reset(torch.Generator().manual_seed(episode))
        np.testing.assert_array_equal(first, batch.reset_to(world.state)[0, 0].numpy())
        for k in range(12 if episode < 2 else family.horizon + 2):
            action = scale * 1.2 * generator.uniform(-1, 1, family.action_dim)
            if episode == 0 and family.spec.name == "navigation-2d":
                action = np.array([0.5, 0.0])  # there after five of these
            if episode == 1 and k == 4:
                action[0] = np.nan
            ours, theirs = world.step(action), batch.step(torch.from_numpy(action)[None, None])
            np.testing.assert_array_equal(ours.observation, theirs.observation[0, 0].numpy())
            np.testing.assert_array_equal(ours.reward, theirs.reward[0, 0].numpy())
            assert ours[2:4] == (bool(theirs.terminated), bool(theirs.truncated))
        assert ours[2:4] == (
            (False, True) if episode == 2 else (episode == 1 or name.startswith("navigation-2d@"), False)
        )


def test_an_end_by_itself_at_the_horizon_is_no_cut() -> None:
    family = TaskFamily(Navigation2D(Navigation2DConfig(horizon=5)))
    task, action = torch.tensor([[0.25, 0.0]], dtype=torch.float64), np.array([0.5, 0.0])
    world, batch = World(family), family.batch(task, 1)
    world.set_task(task)
    world.reset(torch.Generator().manual_seed(0)), batch.reset(0)
    for _ in range(5):
        ours, theirs = world.step(action), batch.step(torch.from_numpy(action)[None, None])
    assert ours[2:4] == (bool(theirs.terminated), bool(theirs.truncated)) == (True, False)


def test_diverged_physics_end_an_episode_also_where_mujoco_has_put_the_world_back() -> None:
    """Its numbers look healthy then."""
    problem = HalfCheetah(HalfCheetahConfig())
    initial = problem.initial_state
    problem.initial_state = lambda *arguments: {**initial(*arguments), "qvel": torch.full((1, 9), 1e11)}
    env = FamilyEnv(TaskFamily(problem), task=1.0)
    env.reset(seed=0)
    observation, reward, terminated, truncated, _ = env.step(np.zeros(6))
    assert float(env._world.state["qvel"].abs().max()) < 100
    assert np.isnan(observation).all() and np.isnan(reward) and (terminated, truncated) == (True, False)


def test_what_a_world_is_handed_and_hands_out_is_the_callers() -> None:
    world, other = (World(envs.make("navigation-2d")) for _ in range(2))
    task, action = torch.tensor([[0.3, 0.4]], dtype=torch.float64), np.array([0.5, 0.5])
    for each in (world, other):
        each.set_task(task)
        each.reset(torch.Generator().manual_seed(0))
    reference = [other.step(action) for _ in range(2)]
    task.fill_(9.0), world.task.fill_(9.0)
    for value in world.state.values():
        value.fill_(9.0)
    used = action.copy()
    first = world.step(used)
    used[:] = 9.0
    assert_same(first, reference[0])
    first.observation[:] = 9.0
    assert_same(world.step(action), reference[1])


@pytest.mark.parametrize("method", ["observe", "reward", "terminated"])
def test_what_an_author_returns_is_checked_in_the_first_step_of_one_world(method: str) -> None:
    problem = HalfCheetah(HalfCheetahConfig())
    setattr(problem, method, lambda *arguments: torch.zeros(1, 1))
    env = FamilyEnv(TaskFamily(problem), task=1.0)
    with pytest.raises(ValueError, match=rf"{method}\(\) of halfcheetah-vel@plain gave"):
        env.reset(seed=0), env.step(np.zeros(6))


@pytest.mark.parametrize("action_dim", range(1, 12))
def test_a_sum_of_squares_has_the_same_bits_in_every_layout(action_dim: int) -> None:
    values = np.random.default_rng(action_dim).standard_normal((801, action_dim))
    one_by_one = np.array([arrays.sum_of_squares(values[i : i + 1])[0] for i in range(len(values))])
    for layout in (values, torch.from_numpy(values), torch.from_numpy(values.T.copy()).T):
        np.testing.assert_array_equal(arrays.sum_of_squares(layout), one_by_one)
    np.testing.assert_allclose(one_by_one, (values**2).sum(-1), rtol=1e-14)


class LearnedDynamics:
    """2D navigation whose physics and reward are a network's."""

    takes_arrays = False

    def __init__(self) -> None:
        self._navigation = Navigation2D(Navigation2DConfig())
        self._network = torch.nn.Linear(2, 2).double()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._navigation, name)

    def make_simulator(self, num_lanes: int, device: torch.device, backend: Any, num_threads: int) -> TorchSimulator:
        return TorchSimulator(num_lanes, device, lambda s, action: {"position": s["position"] + self._network(action)})

    def initial_state(self, num_lanes: int, generator: torch.Generator) -> Any:
        return {"position": self._network(self._navigation.initial_state(num_lanes, generator)["position"])}

    def reward(self, before: Any, after: Any, action: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        return -(self._network(after["position"]) - task).norm(dim=-1)

    def describe_step(self, before: Any, after: Any, task: torch.Tensor) -> dict[str, Measured]:
        return {"speed": Measured(self._network(before["position"]).norm(dim=-1), "m/s")}


def test_physics_that_are_a_network_step_everywhere_and_keep_no_graph() -> None:
    family, task = TaskFamily(LearnedDynamics()), [0.1, 0.2]
    single, vector = FamilyEnv(family, task=task), FamilyVectorEnv(family, num_envs=1, task=task)
    batch = family.batch(torch.tensor([task], dtype=torch.float64), 1)
    single.reset(seed=0), vector.reset(seed=0), batch.reset(0)
    batch.reset_to(single._world.state)
    action = np.array([0.3, -0.2])
    ours, theirs = single.step(action), vector.step(action[None])
    step = batch.step(torch.from_numpy(action)[None, None])
    assert ours[1] == theirs[1][0] == float(step.reward)
    assert ours[4]["speed"] == theirs[4]["speed"][0] > 0
    assert not step.reward.requires_grad and not step.observation.requires_grad


@pytest.mark.parametrize(
    "change", [copy.copy, copy.deepcopy, lambda spec: dataclasses.replace(spec, order_enforce=True)]
)
def test_a_spec_may_be_copied_and_changed_in_any_way(change: Any) -> None:
    env = gymnasium.make(NAVIGATION)
    env.reset(seed=0)
    changed, task = change(env.spec), env.unwrapped.task
    env.reset(seed=1)
    for spec in (changed, copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        assert spec == changed and spec.kwargs["task"] == task.tolist()
        np.testing.assert_array_equal(gymnasium.make(spec).unwrapped.task, task)


def test_options_that_would_do_nothing_are_refused() -> None:
    single, vector = gymnasium.make(NAVIGATION), gymnasium.make_vec(NAVIGATION, num_envs=2)
    for env in (single, vector):
        env.reset(options={})
        with pytest.raises(ValueError, match="option 'task', which would do nothing"):
            env.reset(options={"task": [0.1, 0.1]})


@pytest.mark.parametrize("task", ["1.5", True, ["1.5"], None, [[1.5]], 1e39])
def test_what_is_no_number_is_no_task(task: Any) -> None:
    env = FamilyEnv("halfcheetah-vel")
    with pytest.raises(ValueError, match="is not a task of halfcheetah-vel@plain"):
        env.set_task(task)
