"""MuJoCo Warp on its CPU device against MuJoCo itself: the same worlds to single precision, and every hazard of it.

Tolerances. A float32 state rounds at 6e-8 relative. One control step of HalfCheetah (5 substeps, contacts) turns that
into a few 1e-6 in positions and, through stiff contacts, a few 1e-4 in velocities; longer trajectories diverge as two
runs of MuJoCo itself do from states 6e-8 apart (contacts are chaotic: order 1 after 200 steps), so they are held to
what MuJoCo does to such a pair, and whole episodes to the distribution of their returns.
"""

import subprocess
import sys
import warnings

import mujoco
import numpy as np
import pytest
import torch

pytest.importorskip("mujoco_warp")

import envs
from envs.batched_env import BatchedEnv
from envs.family import TaskFamily
from envs.locomotion.half_cheetah import HalfCheetah, HalfCheetahConfig
from envs.physics.compile import build_model
from envs.physics.model import MujocoModel
from envs.physics.mujoco_warp import MujocoWarpSimulator

CPU = torch.device("cpu")
VARIANTS = [f"halfcheetah-vel@{variant}" for variant in ("plain", "maml2017", "promp", "pearl", "varibad")]
VARIANTS += [f"halfcheetah-dir@{variant}" for variant in ("plain", "maml2017", "promp")]
CHEETAH = "half_cheetah.xml"
TASKS, EPISODES = 5, 10


def controls(steps: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(steps, *shape, 6, generator=torch.Generator().manual_seed(seed)) - 1


def sampled_states(family: TaskFamily, steps: int = 30) -> dict[str, torch.Tensor]:
    """States that random episodes pass through, contacts and all, rounded to float32: `[lane, ...]` float64."""
    env = family.batch(family.sample_tasks(TASKS), EPISODES)
    env.reset(1)
    for action in controls(steps, TASKS, EPISODES, seed=1):
        env.step(family.spec.action_scale * action.double())
    return {name: value.float().double() for name, value in env.state.items()}


@pytest.fixture(params=VARIANTS)
def pair(request: pytest.FixtureRequest) -> tuple[BatchedEnv, BatchedEnv, dict[str, torch.Tensor]]:
    """A family's worlds on MuJoCo and on Warp, and 50 states to start from."""
    family = envs.make(request.param)
    tasks = family.sample_tasks(TASKS)
    return family.batch(tasks, EPISODES), family.batch(tasks, EPISODES, backend="warp"), sampled_states(family)


def start(env: BatchedEnv, state: dict[str, torch.Tensor]) -> torch.Tensor:
    return env.reset_to({name: value.to(env.simulator.dtype) for name, value in state.items()})


def test_one_control_step_from_50_sampled_states(pair) -> None:
    cpu, warp, state = pair
    scale = cpu.family.spec.action_scale
    assert (start(cpu, state) - start(warp, state)).abs().max() < 2e-6
    (action,) = controls(1, TASKS, EPISODES)
    ours, reference = warp.step(scale * action), cpu.step(scale * action)
    assert ours.observation.dtype == ours.reward.dtype == torch.float32
    for name, tolerance in (("qpos", 5e-6), ("qvel", 5e-4)):
        assert (warp.state[name] - cpu.state[name]).abs().max() < tolerance
    assert (ours.observation - reference.observation).abs().max() < 5e-4
    # Rewards hold a velocity: a finite difference of positions over dt, or the centre of mass's.
    assert (ours.reward - reference.reward).abs().max() < 5e-5
    assert torch.equal(ours.terminated, reference.terminated) and torch.equal(ours.truncated, reference.truncated)


def test_trajectories_of_ten_steps_drift_apart_no_faster_than_mujoco_from_itself(pair) -> None:
    cpu, warp, state = pair
    family = cpu.family
    nearby = family.batch(family.sample_tasks(TASKS), EPISODES)
    generator = torch.Generator().manual_seed(2)
    rounding = {n: 1 + 6e-8 * (2 * torch.rand(v.shape, generator=generator) - 1) for n, v in state.items()}
    start(cpu, state), start(warp, state), start(nearby, {n: v * rounding[n] for n, v in state.items()})
    for action in family.spec.action_scale * controls(10, TASKS, EPISODES):
        for env in (cpu, warp, nearby):
            env.step(action)
    drift = (warp.state["qpos"] - cpu.state["qpos"]).abs().amax(-1)
    own = (nearby.state["qpos"] - cpu.state["qpos"]).abs().amax(-1)
    assert drift.median() < 1e-5
    # 5 substeps round every one of a few hundred intermediate results, the pair once.
    assert drift.quantile(0.9) < max(1e-4, 100 * float(own.quantile(0.9)))
    assert drift.max() < 0.05  # the odd world in the middle of an impact


def test_episodes_have_the_same_distribution_of_returns() -> None:
    """Same tasks, same noise, 200 steps: paths differ, the mean return over 150 episodes does so by its own noise."""
    family = envs.make("halfcheetah-vel")
    tasks, episodes = family.sample_tasks(3), 50
    returns = []
    for backend in ("mujoco", "warp"):
        env = family.batch(tasks, episodes, backend=backend)
        env.reset(0)
        total = torch.zeros(3, episodes, dtype=torch.float64)
        for action in controls(200, 3, episodes):
            total += env.step(action).reward
        returns.append(total)
    reference, ours = returns
    standard_error = (reference.var(1) / episodes + ours.var(1) / episodes).sqrt()
    assert ((ours.mean(1) - reference.mean(1)).abs() < 4 * standard_error).all()
    assert ((ours.std(1) / reference.std(1)).log().abs() < 0.5).all()


def test_steps_repeat_bit_for_bit_and_graph_equals_eager() -> None:
    """The captured graph is what the Python calls it was captured from would have done."""
    simulator = MujocoWarpSimulator(MujocoModel(CHEETAH, 5), 4, CPU)
    results = []
    for advance in (simulator._advance, simulator._advance, simulator._substeps):
        simulator.reset({"qvel": torch.full((4, 9), 0.1)}, None)
        simulator._arrays["ctrl"].copy_(controls(1, 4)[0])
        for _ in range(5):
            advance()
        results.append(simulator.state())
    for other in results[1:]:
        assert all(torch.equal(other[name], value) for name, value in results[0].items())


def test_finished_worlds_rest_and_go_on_where_they_were() -> None:
    simulator, free = (MujocoWarpSimulator(MujocoModel(CHEETAH, 5), 2, CPU) for _ in range(2))
    action = controls(12, 2)
    for t in range(4):
        simulator.step(action[t], None), free.step(action[t], None)
    before = simulator.state()
    for t in range(4, 8):
        simulator.step(action[t], torch.tensor([False, True]))
        free.step(action[t], None)
    after = simulator.state()
    assert all(torch.equal(after[name][0], value[0]) for name, value in before.items())
    assert all(torch.equal(after[name][1], value[1]) for name, value in free.state().items())


def test_a_diverged_world_is_reported_alone_and_healed_by_its_reset() -> None:
    simulator = MujocoWarpSimulator(MujocoModel(CHEETAH, 5), 3, CPU)
    action = controls(1, 3)[0]
    action[1] = torch.nan
    simulator.step(action, None)
    assert simulator.failed().tolist() == [False, True, False]
    simulator.reset({}, torch.tensor([False, True, False]))
    simulator.step(controls(1, 3)[0], None)
    assert not simulator.failed().any() and all(torch.isfinite(value).all() for value in simulator.state().values())


def test_contacts_that_find_no_room_void_the_episode_are_reported_and_get_room() -> None:
    cramped = MujocoModel(CHEETAH, 5, contacts_per_world=1, constraints_per_world=2)
    simulator = MujocoWarpSimulator(cramped, 2, CPU)
    low = {"qpos": torch.zeros(2, 9), "qvel": torch.zeros(2, 9)}
    low["qpos"][:, 1] = -0.3
    for _ in range(8):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            simulator.reset(low, None)
        for _ in range(3):
            simulator.step(torch.zeros(2, 6), None)
        if not simulator.failed().any():
            break
        assert bool(simulator.failed().all())
    assert not simulator.failed().any(), "room is doubled until all contacts fit"
    assert any("had no room for all contacts" in str(warning.message) for warning in caught)
    assert simulator.memory_generation > 1
    roomy = MujocoWarpSimulator(MujocoModel(CHEETAH, 5), 2, CPU)
    roomy.reset(low, None)
    for _ in range(3):
        roomy.step(torch.zeros(2, 6), None)
    torch.testing.assert_close(simulator.state()["qpos"], roomy.state()["qpos"], rtol=1e-4, atol=1e-5)


def test_a_world_without_room_is_not_hidden_by_one_with_another_complaint() -> None:
    simulator = MujocoWarpSimulator(MujocoModel(CHEETAH, 5), 2, CPU)
    simulator._arrays["overflow"].copy_(torch.tensor([1, 512]))
    assert simulator.failed().all()
    with pytest.warns(UserWarning, match="had no room for all contacts .NEFC.ITERATIONS"):
        simulator.reset({}, None)
    simulator._arrays["overflow"].copy_(torch.tensor([0, 512]))
    with pytest.warns(UserWarning, match="reports ITERATIONS"):
        simulator.reset({}, None)
    assert not simulator.failed().any()


def test_worlds_keep_their_state_when_room_is_made_at_a_partial_reset() -> None:
    simulator = MujocoWarpSimulator(MujocoModel(CHEETAH, 5, contacts_per_world=1, constraints_per_world=2), 2, CPU)
    low = {"qpos": torch.zeros(2, 9), "qvel": torch.zeros(2, 9)}
    low["qpos"][0, 1] = -0.3
    simulator.reset(low, None)
    simulator.step(torch.zeros(2, 6), None)
    kept = simulator.state()
    with pytest.warns(UserWarning, match="had no room"):
        simulator.reset(low, torch.tensor([True, False]))
    assert all(torch.equal(value[1], kept[name][1]) for name, value in simulator.state().items())


class HeavyCheetah:
    """HalfCheetah whose task scales mass, friction, damping, motor strength and gravity: one number for all of them."""

    def __init__(self) -> None:
        self._inner = HalfCheetah(HalfCheetahConfig())
        self.model = MujocoModel(
            CHEETAH,
            5,
            varied=("body_mass", "body_inertia", "geom_friction", "dof_damping", "actuator_gainprm", "opt.gravity"),
        )

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def make_simulator(self, num_lanes, device, backend, num_threads):
        from envs.physics import make_simulator

        return make_simulator(self.model, num_lanes, device, backend, num_threads)

    def model_fields(self, task: torch.Tensor, nominal: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scale = task[:, 0]
        return {name: scale.reshape(-1, *[1] * value.ndim) * value for name, value in nominal.items()}


def scaled_models(scales: list[float]) -> list[mujoco.MjModel]:
    """The same by hand: one compiled model per task, edited and `mj_setConst`."""
    models = []
    for scale in scales:
        model = build_model(MujocoModel(CHEETAH, 5))
        for name in ("body_mass", "body_inertia", "geom_friction", "dof_damping", "actuator_gainprm"):
            getattr(model, name)[:] *= scale
        model.opt.gravity[:] *= scale
        mujoco.mj_setConst(model, mujoco.MjData(model))
        models.append(model)
    return models


@pytest.mark.parametrize(("backend", "tolerance"), [("mujoco", 0.0), ("warp", 1e-4)])
def test_tasks_may_change_the_dynamics(backend: str, tolerance: float) -> None:
    scales = [0.5, 0.8, 1.0, 1.3, 1.7]
    family = TaskFamily(HeavyCheetah())
    env = family.batch(torch.full((5, 1), 1.1), 1, backend=backend)
    env.reset(0)
    env.step(controls(1, 5, 1)[0])
    env.set_tasks(torch.tensor(scales).reshape(5, 1))
    dtype = env.simulator.dtype
    env.reset_to({"qpos": torch.zeros(5, 9, dtype=dtype), "qvel": torch.zeros(5, 9, dtype=dtype)})
    actions = controls(10, 5, 1)
    for action in actions:
        env.step(action)
    for i, model in enumerate(scaled_models([float(np.float32(scale)) for scale in scales])):
        data = mujoco.MjData(model)
        for action in actions:
            data.ctrl[:] = action[i, 0].double().numpy()
            mujoco.mj_step(model, data, 5)
        error = np.abs(env.state["qpos"][i].double().numpy() - data.qpos).max()
        # The task reaches the CPU engine in float64 as it stands, so that its products round alike.
        assert error <= tolerance, f"scale {scales[i]}: {error}"


def test_a_missing_package_is_said_in_one_sentence() -> None:
    code = (
        "import sys; sys.modules['mujoco_warp'] = None\n"
        "import envs\n"
        "family = envs.make('halfcheetah-vel')\n"
        "try: family.batch(family.sample_tasks(1), 1, backend='warp')\n"
        "except ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "GPU physics needs MuJoCo Warp" in result.stdout and ".[gpu]" in result.stdout
