"""Every preset is pinned: horizon, control dt, task law, observation, action scaling, cost weights, termination."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch

import envs
from envs.family import State, TaskFamily
from envs.locomotion.half_cheetah import HalfCheetah, HalfCheetahConfig
from envs.physics.mujoco_cpu import MujocoCpuSimulator

CHEETAHS = {
    # variant: (horizon, dt, largest target velocity, observations, action scale)
    "plain": (200, 0.05, 3.0, 17, 1.0),
    "maml2017": (200, 0.01, 2.0, 20, 1.0),
    "promp": (100, 0.05, 3.0, 17, 10.0),
    "pearl": (200, 0.05, 3.0, 20, 1.0),
    "varibad": (200, 0.05, 3.0, 20, 1.0),
}


def cheetah(variant: str) -> tuple[TaskFamily, HalfCheetah]:
    family = envs.make(f"halfcheetah-vel@{variant}")
    assert isinstance(family.problem, HalfCheetah)
    return family, family.problem


def states(seed: int) -> State:
    """Two random states with every derived quantity a variant may read."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"qpos": 9, "qvel": 9, "com": 3, "com_velocity": 3, "torso_position": 3}
    return {k: torch.randn(2, size, generator=generator, dtype=torch.float64) for k, size in shapes.items()}


def test_plain_names() -> None:
    assert envs.make("halfcheetah-vel").spec.variant == "plain"
    assert envs.make("navigation-2d").spec.variant == "maml2017"


@pytest.mark.parametrize("variant", CHEETAHS)
def test_cheetah_timing_and_sizes(variant: str) -> None:
    family, problem = cheetah(variant)
    horizon, dt, _, observations, scale = CHEETAHS[variant]
    assert family.horizon == horizon
    assert family.spec.dt == pytest.approx(dt, rel=1e-15)
    assert family.observation_dim == observations
    assert family.spec.action_scale == scale
    assert (family.action_dim, family.task_dim) == (6, 1)
    # The control step really lasts that long in the physics.
    simulator = problem.make_simulator(2, torch.device("cpu"), "auto", 1)
    assert isinstance(simulator, MujocoCpuSimulator)
    assert simulator.model.opt.timestep * problem.model.frame_skip == pytest.approx(dt, rel=1e-15)
    assert simulator.model.opt.timestep == 0.01
    assert simulator.model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
    assert simulator.model.body_mass.sum() == pytest.approx(14.0)
    assert list(simulator.model.actuator_gear[:, 0]) == [120, 90, 60, 120, 60, 30]
    # The initial state is drawn around the model's own, which is zero.
    assert not simulator.model.qpos0.any()


@pytest.mark.parametrize("variant", ["plain", "maml2017", "promp", "varibad"])
def test_cheetah_task_law_is_uniform(variant: str) -> None:
    family, _ = cheetah(variant)
    high = CHEETAHS[variant][2]
    for split in ("train", "test"):
        tasks = family.sample_tasks(4000, split, seed=1).numpy()[:, 0]
        assert tasks.min() >= 0
        assert tasks.max() <= high
        # Standard error of the mean: high / sqrt(12 n); 4 of them. Deciles: binomial, 5 standard deviations.
        assert abs(tasks.mean() - high / 2) < 4 * high / np.sqrt(12 * 4000)
        counts, _ = np.histogram(tasks, bins=10, range=(0, high))
        assert np.abs(counts - 400).max() < 5 * np.sqrt(4000 * 0.1 * 0.9)


def test_cheetah_published_tasks() -> None:
    expected = np.random.RandomState(1).uniform(0, 2, (40, 1))
    published = cheetah("maml2017")[0].published_tasks()
    assert published is not None
    np.testing.assert_array_equal(published.numpy(), expected)
    for variant in ("plain", "promp", "varibad"):
        assert cheetah(variant)[0].published_tasks() is None


def test_pearl_tasks() -> None:
    family, _ = cheetah("pearl")
    fixed = np.random.RandomState(1337).uniform(0.0, 3.0, size=(130,))
    published = family.published_tasks()
    assert published is not None
    np.testing.assert_array_equal(published.numpy()[:, 0], fixed[100:])
    # Each split draws from its own part, and a thousand draws find all of it (missing one: 100 * 0.99^1000 = 0.4 %).
    assert set(family.sample_tasks(1000, "train").numpy()[:, 0]) == set(fixed[:100])
    assert set(family.sample_tasks(1000, "test").numpy()[:, 0]) == set(fixed[100:])


@pytest.mark.parametrize("variant", CHEETAHS)
def test_cheetah_reward_by_hand(variant: str) -> None:
    _, problem = cheetah(variant)
    before, after = states(0), states(1)
    action = torch.tensor([[1.0, -1.0, 0.5, 0.0, 0.0, 0.0], [0.0] * 6], dtype=torch.float64)
    task = torch.tensor([[1.25], [0.5]], dtype=torch.float64)
    if variant == "maml2017":
        velocity = after["com_velocity"][:, 0]
    else:
        velocity = (after["qpos"][:, 0] - before["qpos"][:, 0]) / 0.05
    # 1 + 1 + 0.25 = 2.25 in the first lane, nothing in the second.
    expected = -(velocity - task[:, 0]).abs() - torch.tensor([0.05 * 2.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(problem.reward(before, after, action, task), expected, rtol=0, atol=1e-12)
    assert not problem.terminated(after, task).any()


@pytest.mark.parametrize("variant", CHEETAHS)
def test_cheetah_observation(variant: str) -> None:
    _, problem = cheetah(variant)
    state = states(0)
    parts = [state["qpos"][:, 1:], state["qvel"]]
    extra = {"maml2017": "com", "pearl": "torso_position", "varibad": "torso_position"}.get(variant)
    if extra is not None:
        parts.append(state[extra])
    assert torch.equal(problem.observe(state), torch.cat(parts, dim=-1))


@pytest.mark.parametrize("variant", CHEETAHS)
def test_cheetah_action_scaling(variant: str) -> None:
    family, _ = cheetah(variant)
    env = family.batch(family.sample_tasks(1), 1)
    scale = CHEETAHS[variant][4]
    policy = torch.tensor([[[0.0, 0.5, -1.0, 1.0, 10.0, -20.0]]])
    expected = (policy.double() / scale).clamp(-1, 1)
    torch.testing.assert_close(env.applied_action(policy), expected, rtol=0, atol=1e-15)
    # The applied action, not the policy's, is what the cost sees and the motors get.
    env.reset(0)
    before = env.state
    step = env.step(policy)
    cost = 0.05 * expected.square().sum()
    error = (family.problem.velocity(before, env.state) - env.tasks[0, 0]).abs()  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(step.reward[0, 0], -error[0] - cost, rtol=0, atol=1e-12)
    assert torch.equal(torch.from_numpy(env.simulator._control[0].copy()), expected[0, 0])  # pyright: ignore


@pytest.mark.parametrize("variant", CHEETAHS)
def test_cheetah_reset_noise(variant: str) -> None:
    _, problem = cheetah(variant)
    state = problem.initial_state(4000, torch.Generator().manual_seed(0))
    count = 4000 * 9
    qpos, qvel = state["qpos"].flatten(), state["qvel"].flatten()
    # Relative error of a standard deviation: 1 / sqrt(2 n) for a normal one, less for a uniform one; 5 of them.
    tolerance = 5 / np.sqrt(2 * count)
    if variant == "maml2017":
        assert float(qpos.std()) == pytest.approx(0.01, rel=tolerance)
        assert float(qpos.abs().max()) > 0.03  # a normal draw has tails
    else:
        assert float(qpos.std()) == pytest.approx(0.1 / np.sqrt(3), rel=tolerance)
        assert 0.099 < float(qpos.abs().max()) <= 0.1
    assert float(qvel.std()) == pytest.approx(0.1, rel=tolerance)
    assert float(qvel.abs().max()) > 0.3


def test_published_curves() -> None:
    curves = {curve.label: curve.returns for curve in cheetah("maml2017")[0].spec.published}
    assert curves["MAML"] == (-129.53, -78.57, -66.62, -60.78)
    assert set(curves) == {"MAML", "pretrained", "random", "oracle"}
    for variant in ("plain", "promp", "pearl", "varibad"):
        assert cheetah(variant)[0].spec.published == ()


def test_quantities_of_two_instants_are_refused() -> None:
    with pytest.raises(ValueError, match="one instant"):
        HalfCheetah(HalfCheetahConfig(velocity="com", observe="torso"))


def test_navigation_by_hand() -> None:
    family = envs.make("navigation-2d")
    assert (family.horizon, family.spec.dt, family.observation_dim, family.spec.action_scale) == (100, 0.0, 2, 1.0)
    published = family.published_tasks()
    assert published is not None
    np.testing.assert_array_equal(published.numpy(), np.random.RandomState(1).uniform(-0.5, 0.5, (40, 2)))
    tasks = family.sample_tasks(4000).numpy()
    assert np.abs(tasks).max() <= 0.5
    assert np.abs(tasks.mean(0)).max() < 4 / np.sqrt(12 * 4000)
    env = family.batch(torch.tensor([[0.3, 0.4], [-0.1, 0.055]], dtype=torch.float64), 1)
    assert not env.reset(0).any()
    # [-1, 1] is mapped onto [-0.1, 0.1] and clipped there; the reward is the distance after the move.
    step = env.step(torch.tensor([[[0.5, 7.0]], [[-1.0, 0.5]]]))
    expected = torch.tensor([[[0.05, 0.1]], [[-0.1, 0.05]]], dtype=torch.float64)
    torch.testing.assert_close(step.observation, expected, rtol=0, atol=1e-15)
    distances = torch.tensor([[-np.hypot(0.25, 0.3)], [-0.005]], dtype=torch.float64)
    torch.testing.assert_close(step.reward, distances, rtol=0, atol=1e-12)
    # Both coordinates within 0.01 of the goal end the episode; its last reward counts.
    assert step.terminated.tolist() == [[False], [True]]
    assert not step.truncated.any()


def test_navigation_needs_both_coordinates_to_terminate() -> None:
    family = envs.make("navigation-2d")
    goals = torch.tensor([[0.1, 0.0099], [0.1, 0.0101], [0.1099, 0.0], [0.1101, 0.0]], dtype=torch.float64)
    env = family.batch(goals, 1)
    env.reset(0)
    step = env.step(torch.tensor([1.0, 0.0]).expand(4, 1, 2))
    assert step.terminated[:, 0].tolist() == [True, False, True, False]


def test_navigation_optimal_return() -> None:
    """The figures of the module's docstring, from the environment itself: each coordinate goes at its goal."""
    family = envs.make("navigation-2d")
    published = family.published_tasks()
    assert published is not None
    for goals, expected in ((family.sample_tasks(20000), -0.51), (published, -0.54)):
        env = family.batch(goals, 1)
        position, total = env.reset(0), torch.zeros(len(goals), 1, dtype=torch.float64)
        for _ in range(6):  # 0.5 is five steps away; the sixth takes what rounding has left
            step = env.step((goals[:, None] - position) / 0.1)
            position, total = step.observation, total + step.reward
        assert step.terminated.all()
        # Standard error of the mean over 20000 goals: 0.0024.
        assert float(total.mean()) == pytest.approx(expected, abs=0.01)


DIRECTIONS = [("plain", 200, 1.0), ("maml2017", 200, 1.0), ("promp", 100, 10.0)]


@pytest.mark.parametrize(("variant", "horizon", "scale"), DIRECTIONS)
def test_cheetah_direction(variant: str, horizon: int, scale: float) -> None:
    """The velocity variant of the same name but for the goal."""
    family, (velocity, _) = envs.make(f"halfcheetah-dir@{variant}"), cheetah(variant)
    assert isinstance(family.problem, HalfCheetah)
    assert (family.horizon, family.spec.action_scale) == (horizon, scale)
    assert family.spec.dt == velocity.spec.dt and family.observation_dim == velocity.observation_dim
    assert (family.spec.name, family.spec.task_labels) == ("halfcheetah-dir", ("direction",))
    tasks = family.sample_tasks(1000)
    assert set(tasks[:, 0].tolist()) == {-1.0, 1.0} and abs(float(tasks.mean())) < 4 / np.sqrt(1000)
    before, after = states(0), states(1)
    action = torch.tensor([[1.0, -1.0, 0.5, 0.0, 0.0, 0.0], [0.0] * 6], dtype=torch.float64)
    task = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    forward = family.problem.velocity(before, after)
    expected = task[:, 0] * forward - torch.tensor([0.05 * 2.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(family.problem.reward(before, after, action, task), expected, rtol=0, atol=1e-12)


def test_cheetah_direction_published_tasks() -> None:
    family = envs.make("halfcheetah-dir@maml2017")
    published = family.published_tasks()
    assert published is not None
    drawn = np.random.RandomState(1).uniform(0, 2, 40)
    assert published[:, 0].tolist() == [-1.0 if number < 1 else 1.0 for number in drawn]
    assert {curve.label: curve.returns[-1] for curve in family.spec.published}["MAML"] == 315.65
    plain = envs.make("halfcheetah-dir").published_tasks()
    assert plain is not None and plain.tolist() == [[1.0], [-1.0]], "each direction counts the same in evaluation"


def test_corner_navigation_by_hand() -> None:
    family = envs.make("navigation-2d-corners")
    assert (family.spec.id, family.horizon, family.spec.action_scale) == ("navigation-2d-corners@promp", 100, 10.0)
    assert {tuple(task) for task in family.sample_tasks(100).tolist()} == {(x, y) for x in (-2, 2) for y in (-2, 2)}
    env = family.batch(torch.tensor([[2.0, 2.0], [-2.0, 2.0]], dtype=torch.float64), 2)
    start = env.reset(0)
    assert 0 < float(start.abs().max()) <= 0.2
    starts = family.batch(family.sample_tasks(1), 4000).reset(0)
    assert starts.min() < -0.199 and starts.max() > 0.199 and float(starts.mean().abs()) < 0.01
    position = torch.tensor([[0.1, 0.1], [0.3, 0.15], [0.3, 0.3], [-0.4, 0.2]], dtype=torch.float64)
    env.reset_to({"position": position})
    # Policy action 5 is half of the scale: half of the largest step, 0.1.
    step = env.step(torch.tensor([[[5.0, 0.0], [5.0, 0.0]], [[-5.0, 0.0], [-5.0, 99.0]]]))
    moved = position + torch.tensor([[0.1, 0.0], [0.1, 0.0], [-0.1, 0.0], [-0.1, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(step.observation.flatten(0, 1), moved, rtol=0, atol=1e-12)
    # In turn: still near the start; progress towards the goal; nearest to another corner; progress.
    goals = torch.tensor([[2.0, 2.0], [2.0, 2.0], [-2.0, 2.0], [-2.0, 2.0]], dtype=torch.float64)
    progress = (position - goals).norm(dim=1) - (moved - goals).norm(dim=1)
    expected = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64) * progress
    torch.testing.assert_close(step.reward.flatten(), expected, rtol=0, atol=1e-12)
    dense = envs.make("navigation-2d-corners@promp-dense")
    before, after = {"position": position}, {"position": moved}
    reward = dense.problem.reward(before, after, torch.zeros(4, 2), goals)
    torch.testing.assert_close(reward, -(moved - goals).norm(dim=1), rtol=0, atol=1e-12)


def test_corner_navigation_optimal_return() -> None:
    """The figure of the module's docstring: straight at the goal."""
    family = envs.make("navigation-2d-corners")
    goals = family.published_tasks()
    assert goals is not None
    env = family.batch(goals, 50)
    position, total = env.reset(0), torch.zeros(4, 50, dtype=torch.float64)
    for _ in range(family.horizon):
        direction = goals[:, None] - position
        step = env.step(50 * 0.2 * direction / direction.abs().amax(-1, keepdim=True).clamp(min=0.2))
        position, total = step.observation, total + step.reward
    assert float(total.min()) > 2.4 and float(total.max()) < 2.8
    assert not step.terminated.any() and step.truncated.all()
