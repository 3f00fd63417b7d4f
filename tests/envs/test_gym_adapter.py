"""The Gymnasium faces: one environment, the vector environment, and how both are reached by id."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import envs
from envs import registry
from envs.gym_adapter import FamilyEnv, FamilyVectorEnv
from envs.presets import FAMILIES

ALL_VARIANTS = registry.names()
CHEETAH, NAVIGATION = "metarl/HalfCheetahVel-v0", "metarl/Navigation2D-v0"

# What `check_env` recommends, and says of Gymnasium's own MuJoCo environments too: bounded observations, and actions
# in [-1, 1], which a variant that divides its actions by 10 cannot have.
RECOMMENDATIONS = ("space minimum value is -infinity", "space maximum value is infinity", "symmetric and normalized")


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_check_env(name: str) -> None:
    family, variant = registry.resolve(name)
    env = gymnasium.make(FAMILIES[family].gym_id, variant=variant, task_seed=0)
    with warnings.catch_warnings():
        for recommendation in RECOMMENDATIONS:
            warnings.filterwarnings("ignore", message=f".*{recommendation}")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_spaces_and_horizon(name: str) -> None:
    family, variant = registry.resolve(name)
    env = gymnasium.make(FAMILIES[family].gym_id, variant=variant, task_seed=0)
    spec = envs.make(name).spec
    assert env.spec is not None
    assert env.spec.max_episode_steps == spec.horizon
    assert not isinstance(env, gymnasium.wrappers.TimeLimit), "the environment truncates itself"
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    assert (env.action_space.high == spec.action_scale).all()
    assert (env.action_space.low == -spec.action_scale).all()
    assert env.action_space.dtype == np.float32
    assert env.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (len(spec.observation_labels),), np.float64)
    assert env.unwrapped.metadata["render_fps"] == (round(1 / spec.dt) if spec.dt else 10)
    env.reset(seed=0)
    still = np.zeros(env.action_space.shape, np.float32)
    ends = [env.step(still)[2:4] for _ in range(spec.horizon)]
    assert ends[-1] == (False, True)
    assert set(ends[:-1]) == {(False, False)}


def test_one_environment_is_one_lane_of_the_batch() -> None:
    env = FamilyEnv("halfcheetah-vel", task=1.5)
    observation, _ = env.reset(seed=3)
    batch = env.family.batch(torch.from_numpy(env.task[None]), 1)
    state = env._world.state
    np.testing.assert_array_equal(batch.reset_to(state)[0, 0].numpy(), observation)
    env.action_space.seed(0)
    for _ in range(20):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, _ = env.step(action)
        step = batch.step(torch.from_numpy(action)[None, None])
        np.testing.assert_array_equal(step.observation[0, 0].numpy(), observation)
        assert reward == float(step.reward)
        assert (terminated, truncated) == (False, False)


def test_task_is_kept_until_it_is_set() -> None:
    env = gymnasium.make(CHEETAH, task=[1.0])
    env.reset(seed=0)
    env.reset(seed=1)
    assert env.unwrapped.task == 1.0
    seeded = [gymnasium.make(CHEETAH, task_seed=5).unwrapped.task for _ in range(2)]
    np.testing.assert_array_equal(seeded[0], seeded[1])
    np.testing.assert_array_equal(seeded[0], envs.make("halfcheetah-vel").sample_tasks(1, seed=5)[0])

    rewards = []
    for target in (0.5, [2.5]):
        env.unwrapped.set_task(target)
        with pytest.raises(RuntimeError, match="call reset"):
            env.unwrapped.step(np.zeros(6))
        env.reset(seed=0)
        rewards.append(env.step(np.zeros(6, np.float32))[1])
    # Both errors are measured from nearly zero velocity, on either side: they differ by the targets' difference.
    assert rewards[0] - rewards[1] == pytest.approx(2.0, abs=0.7)
    assert env.unwrapped.task == 2.5, "a task that was set stays, whatever the seed"


@pytest.mark.parametrize("task", [[1.0, 2.0], np.nan, 1e388, "fast", [[1.0]], None, {}])
def test_a_task_that_does_not_fit_is_refused(task: object) -> None:
    env = FamilyEnv("halfcheetah-vel", task=1.0)
    with pytest.raises(ValueError, match="is not a task of halfcheetah-vel@plain: a task is 1 finite number"):
        env.set_task(task)
    np.testing.assert_array_equal(env.task, [1.0])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean maml2017"):
        gymnasium.make(CHEETAH, variant="maml")
    with pytest.raises(ValueError, match="render_mode is 'ansi'"):
        FamilyEnv("navigation-2d", render_mode="ansi")
    with pytest.raises(ValueError, match="has its own"):
        FamilyEnv(envs.make("navigation-2d"), variant="maml2017")
    env = FamilyEnv("halfcheetah-vel")
    env.reset()
    with pytest.raises(ValueError, match="action has shape"):
        env.step(np.zeros(5))


def test_reset_follows_the_seed() -> None:
    env = gymnasium.make(CHEETAH, task=[1.0])
    first, _ = env.reset(seed=4)
    second, _ = env.reset()
    np.testing.assert_array_equal(env.reset(seed=4)[0], first)
    np.testing.assert_array_equal(env.reset()[0], second)
    assert not np.array_equal(first, second)


def test_record_episode_statistics_on_one_environment() -> None:
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(NAVIGATION, task=[0.5, 0.5]))
    env.reset(seed=0)
    total, finished = 0.0, False
    while not finished:
        _, reward, terminated, truncated, info = env.step(-np.ones(2, np.float32))
        total, finished = total + float(reward), terminated or truncated
    assert info["episode"]["l"] == 100
    assert info["episode"]["r"] == pytest.approx(total)


def make_vector(mode: AutoresetMode, num_envs: int = 4) -> gymnasium.vector.VectorEnv:
    tasks = [[0.1, 0.0], [0.4, -0.4]]
    return gymnasium.make_vec(NAVIGATION, num_envs=num_envs, env_tasks=tasks, autoreset_mode=mode)


def assert_same_infos(ours: dict, theirs: dict) -> None:
    """Gymnasium's vector infos, nested; the values of those without a mark are not compared."""
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        if isinstance(value, dict):
            assert_same_infos(ours[key], value)
        elif value.dtype == object:
            assert [None if v is None else v.tolist() for v in ours[key]] == [
                None if v is None else v.tolist() for v in value
            ]
        else:
            assert ours[key].dtype == value.dtype
            mask = slice(None) if key.startswith("_") else theirs[f"_{key}"]
            np.testing.assert_array_equal(ours[key][mask], value[mask], err_msg=key)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_env_is_a_vector_of_environments(mode: AutoresetMode) -> None:
    """Same seeds, same actions: what SyncVectorEnv does with four `FamilyEnv`s, through ends of both kinds."""
    vector = make_vector(mode)
    tasks = [[0.1, 0.0]] * 2 + [[0.4, -0.4]] * 2
    reference = SyncVectorEnv([lambda t=t: FamilyEnv("navigation-2d", task=t) for t in tasks], autoreset_mode=mode)
    assert vector.observation_space == reference.observation_space
    assert vector.action_space == reference.action_space
    assert vector.metadata["autoreset_mode"] is mode
    np.testing.assert_array_equal(vector.reset(seed=1)[0], reference.reset(seed=1)[0])
    # The first sub-environment comes within 0.01 of its goal at 9 * 0.0105; nobody else ever does.
    actions = np.array([[0.105, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]], np.float32)
    for k in range(250):
        a, b = vector.step(actions), reference.step(actions)
        for ours, theirs in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=f"step {k}")
        assert_same_infos(a[4], b[4])
        over = a[2] | a[3]
        if k == 8:
            assert a[2].tolist() == [True, False, False, False]
        if mode is AutoresetMode.DISABLED and over.any():
            options = {"reset_mask": over}
            ours, theirs = vector.reset(options=options), reference.reset(options=dict(options))
            np.testing.assert_array_equal(ours[0], theirs[0])
            assert_same_infos(ours[1], theirs[1])
    vector.close()


def test_physics_vector_env_draws_each_start_from_its_own_seed() -> None:
    seeds = [5, 9, 5, 7]
    vector = gymnasium.make_vec(CHEETAH, num_envs=4, env_tasks=[[1.0], [2.0]], variant="promp")
    observations, _ = vector.reset(seed=seeds)
    for i, seed in enumerate(seeds):
        env = gymnasium.make(CHEETAH, task=[1.0 + i // 2], variant="promp")
        np.testing.assert_array_equal(env.reset(seed=seed)[0], observations[i])
        vector.action_space.seed(0)
    actions = vector.action_space.sample()
    _, rewards, *_ = vector.step(actions)
    env.step(actions[3])
    assert rewards.dtype == np.float64
    assert float(env.unwrapped._world.state["qpos"][0, 0]) == float(vector.unwrapped._batch.state["qpos"][3, 0])


def test_vector_tasks() -> None:
    with pytest.raises(ValueError, match="3 tasks were given for num_envs=4"):
        FamilyVectorEnv("halfcheetah-vel", num_envs=4, env_tasks=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="is not a list of tasks of navigation-2d"):
        FamilyVectorEnv("navigation-2d", num_envs=2, tasks=[1.0, 2.0])
    env = FamilyVectorEnv("halfcheetah-vel", num_envs=3, env_tasks=[1.5])
    np.testing.assert_array_equal(env.tasks, [[1.5]] * 3)
    env.set_tasks([0.0, 1.0, 2.0])
    env.reset(seed=1)
    np.testing.assert_array_equal(env.tasks, [[0.0], [1.0], [2.0]])
    with pytest.raises(ValueError, match="2 tasks were given for num_envs=3"):
        env.set_tasks([0.0, 1.0])
    with pytest.raises(ValueError, match="2 seeds were given for num_envs=3"):
        env.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": [1, 0, 0]})


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_record_episode_statistics_on_the_vector_env(mode: AutoresetMode) -> None:
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(make_vector(mode))
    env.reset(seed=0)
    lengths = []
    for _ in range(110):
        *_, infos = env.step(np.full((4, 2), 0.01, np.float32))
        if "episode" in infos:
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
    assert lengths == [100] * 4


def test_returned_arrays_belong_to_the_caller() -> None:
    env = make_vector(AutoresetMode.DISABLED)
    first, _ = env.reset(seed=0)
    first += 1000
    observations = env.step(np.zeros((4, 2), np.float32))[0]
    observations -= 1000
    assert np.abs(env.step(np.zeros((4, 2), np.float32))[0]).max() < 1
