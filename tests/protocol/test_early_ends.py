"""Episodes that end early, on every path that collects them: step by step, by a graph, in waves, in a vector env.

What is expected is worked out from the recorded actions alone: x' = x + 0.1 clip(a), over where both coordinates are
near the goal, or at the horizon.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from witness import navigation

from envs.family import TaskFamily
from envs.gym_adapter import FamilyEnv, FamilyVectorEnv
from envs.navigation import CornerNavigation, CornerNavigationConfig
from metarl import collect as collecting
from metarl.collect import collect
from metarl.noise import DeviceNoise, TaskNoise
from metarl.ops import gaussian
from metarl.policies import GaussianMLPPolicy
from metarl.types import Rollout

TASKS, EPISODES, TIME = 3, 6, 8
TOLERANCE = 0.2
# The origin is near the first goal as soon as x has moved up a little; the last is out of reach.
GOALS = torch.tensor([[0.25, 0.0], [0.3, 0.3], [0.9, -0.9]])


def set_up() -> tuple[Any, GaussianMLPPolicy, dict[str, torch.Tensor]]:
    family = navigation(horizon=TIME)
    policy = GaussianMLPPolicy(2, 2, (4,))
    generator = torch.Generator().manual_seed(0)
    params = {n: 0.3 * torch.randn(TASKS, *v.shape, generator=generator) for n, v in policy.named_parameters()}
    return family.batch(GOALS, EPISODES), policy, params


def episode_by_hand(actions: torch.Tensor, goal: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Positions `[length + 1, 2]` of an episode with these actions, and whether it reached its goal."""
    positions = [torch.zeros(2, dtype=torch.float64)]
    for action in actions.double():
        positions.append(positions[-1] + 0.1 * action.clamp(-1, 1))
        if bool(((positions[-1] - goal).abs() < TOLERANCE).all()):
            return torch.stack(positions), True
    return torch.stack(positions), False


def check(rollout: Rollout, min_short: int) -> list[int]:
    """Compares every episode with the one worked out by hand; returns their lengths, task after task."""
    lengths = []
    for task, goal in enumerate(GOALS.double()):
        for episode in range(rollout.valid.shape[1]):
            valid = rollout.valid[task, episode]
            n = int(valid.sum())
            if not n:
                assert not rollout.terminated[task, episode].any() and not rollout.truncated[task, episode].any()
                continue
            positions, reached = episode_by_hand(rollout.actions[task, episode], goal)
            assert n == len(positions) - 1 and valid[:n].all(), (task, episode)
            close = {"rtol": 0, "atol": 1e-6}
            torch.testing.assert_close(rollout.observations[task, episode, :n].double(), positions[:-1], **close)
            rewards = -(positions[1:] - goal).norm(dim=-1)
            torch.testing.assert_close(rollout.rewards[task, episode, :n].double(), rewards, **close)
            torch.testing.assert_close(rollout.final_observation[task, episode].double(), positions[-1], **close)
            ends = torch.zeros(TIME, dtype=torch.bool)
            ends[n - 1] = True
            assert torch.equal(rollout.terminated[task, episode], ends & reached)
            assert torch.equal(rollout.truncated[task, episode], ends & (not reached))
            lengths.append(n)
    assert sum(n < TIME for n in lengths) >= min_short and lengths.count(TIME) > 3, "episodes of both kinds"
    return lengths


@pytest.fixture(params=["step by step", "by a graph"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by a graph":
        monkeypatch.setattr(collecting, "_uses_graph", lambda env: True)
    return request.param


def test_an_episode_is_over_where_its_goal_is_reached(path: str) -> None:
    env, policy, params = set_up()
    for key in range(2):
        rollout = collect(env, policy, params, TaskNoise((0, key), TASKS))
        lengths = check(rollout, min_short=5)
        assert rollout.num_steps() == sum(lengths) and rollout.valid.any(-1).all()
        expected = [sum(lengths[i : i + EPISODES]) for i in range(0, len(lengths), EPISODES)]
        assert rollout.valid.flatten(1).sum(-1).tolist() == expected


def test_a_budget_makes_up_for_episodes_that_ended_early(path: str) -> None:
    env, policy, params = set_up()
    rollout = collect(env, policy, params, TaskNoise((0, 3), TASKS), steps_per_task=EPISODES * TIME)
    check(rollout, min_short=5)
    steps = rollout.valid.flatten(1).sum(-1)
    assert ((steps >= EPISODES * TIME) & (steps < EPISODES * TIME + TIME)).all()
    episodes = rollout.valid.any(-1).sum(-1)
    assert episodes[0] > episodes[2] == EPISODES


def test_both_paths_record_the_same_steps_of_a_wave_in_which_some_worlds_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    env, policy, params = set_up()
    noise, budget = TaskNoise((0, 4), TASKS), EPISODES * TIME
    plain = collect(env, policy, params, noise, steps_per_task=budget)
    monkeypatch.setattr(collecting, "_uses_graph", lambda env: True)
    graph = collect(env, policy, params, noise, steps_per_task=budget)
    assert torch.equal(plain.valid, graph.valid)
    for name in ("observations", "actions", "rewards", "log_prob"):
        assert torch.equal(getattr(plain, name)[plain.valid], getattr(graph, name)[plain.valid]), name
    assert torch.equal(plain.terminated, graph.terminated) and torch.equal(plain.truncated, graph.truncated)


def test_waves_and_tasks_of_noise_drawn_on_a_device_differ() -> None:
    noise = DeviceNoise((0, 7), TASKS, torch.device("cpu"))
    first, second = (noise.action_noise(wave, 4, 5, gaussian, 2) for wave in (0, 1))
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    assert len({*noise.reset_seeds(0), *noise.reset_seeds(1)}) == 2 * TASKS
    other = DeviceNoise((0, 8), TASKS, torch.device("cpu"))
    assert not torch.equal(other.action_noise(1, 4, 5, gaussian, 2), second)
    flat = torch.cat([noise.action_noise(wave, 50, 20, gaussian, 2).flatten(1) for wave in (0, 1)])
    assert float((torch.corrcoef(flat) - torch.eye(2 * TASKS)).abs().max()) < 5 / 2000**0.5


# Gymnasium's face.


class Walled:
    """Navigation from a random start that is over as soon as x has come to 0.25."""

    def __init__(self) -> None:
        self._inside = CornerNavigation(CornerNavigationConfig(horizon=12, action_scale=1.0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    def terminated(self, after: Any, task: torch.Tensor) -> torch.Tensor:
        return after["position"][:, 0] >= 0.25


CORNERS = [[2.0, 2.0], [-2.0, 2.0]]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_of_random_starts_and_early_ends_is_that_of_single_environments(mode: AutoresetMode) -> None:
    family = TaskFamily(Walled())
    vector = FamilyVectorEnv(family, num_envs=4, env_tasks=CORNERS, autoreset_mode=mode)
    single = SyncVectorEnv([lambda i=i: FamilyEnv(family, task=CORNERS[i // 2]) for i in range(4)], autoreset_mode=mode)
    starts = vector.reset(seed=11)[0]
    np.testing.assert_array_equal(starts, single.reset(seed=11)[0])
    assert len(np.unique(starts[:, 0])) == 4, "every lane has a start of its own"
    actions = np.array([[0.4, 0.0], [0.1, 0.1], [0.2, -0.3], [-0.5, 0.2]], np.float32)
    ends = np.zeros(2, dtype=int)
    for step in range(40):
        ours, theirs = vector.step(actions), single.step(actions)
        for a, b in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"step {step}")
        ends += ours[2].sum(), ours[3].sum()
        over = ours[2] | ours[3]
        if mode is AutoresetMode.DISABLED and over.any():
            again = [env.reset(options={"reset_mask": over.copy()})[0] for env in (vector, single)]
            np.testing.assert_array_equal(*again)
    assert (ends > 2).all(), "of both kinds, again and again"


def test_a_lane_that_is_over_starts_anew_also_where_another_was_started_by_hand() -> None:
    vector = FamilyVectorEnv(TaskFamily(Walled()), num_envs=2, tasks=CORNERS[:1])
    # A step to the right ends both.
    next(seed for seed in range(100) if (vector.reset(seed=seed)[0][:, 0] > 0.06).all())
    assert vector.step(np.array([[1.0, 0.0], [1.0, 0.0]], np.float32))[2].all()
    vector.reset(options={"reset_mask": np.array([True, False])})
    observations, rewards, terminated, truncated, _ = vector.step(np.zeros((2, 2), np.float32))
    assert not terminated.any() and not truncated.any() and rewards[1] == 0
    assert np.abs(observations[1]).max() <= 0.2, "where episodes start"


def test_one_seed_gives_every_lane_a_stream_of_its_own() -> None:
    vector = FamilyVectorEnv("navigation-2d-corners", num_envs=3, tasks=CORNERS[:1])
    first, second = vector.reset(seed=5)[0], vector.reset()[0]
    for lane in range(3):
        single = FamilyEnv("navigation-2d-corners", task=CORNERS[0])
        np.testing.assert_array_equal(single.reset(seed=5 + lane)[0], first[lane])
        np.testing.assert_array_equal(single.reset()[0], second[lane])
    assert len(np.unique(np.concatenate([first, second])[:, 0])) == 6
    np.testing.assert_array_equal(vector.reset(seed=[7, 5, 7])[0][1], first[0])


def test_an_environment_without_a_task_draws_a_training_task() -> None:
    family = gymnasium.make("metarl/Navigation2D-v0", task_seed=3).unwrapped.family
    env = FamilyEnv(family, task_seed=3)
    np.testing.assert_array_equal(env.task, family.sample_tasks(1, "train", 3)[0])
    vector = FamilyVectorEnv(family, num_envs=2, task_seed=3)
    np.testing.assert_array_equal(vector.tasks, family.sample_tasks(1, "train", 3).expand(2, -1))
