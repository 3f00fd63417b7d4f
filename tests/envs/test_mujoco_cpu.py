"""One lane of the batched physics is plain MuJoCo, whatever happens in the other lanes."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

import envs
from envs.batched_env import BatchedEnv
from envs.family import TaskFamily
from envs.locomotion.half_cheetah import HalfCheetah, HalfCheetahConfig
from envs.physics.model import Derived, MujocoModel
from envs.physics.mujoco_cpu import MujocoCpuSimulator
from envs.presets import FAMILIES

STEPS = 1000
TASKS, EPISODES, LANE = 3, 2, 3  # the lane that is compared sits among others
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Loading the model with plain MuJoCo, as these tests do, leaves its log file in the working directory.
    monkeypatch.chdir(tmp_path)


def long_batch(variant: str) -> BatchedEnv:
    """A variant with episodes longer than the comparison, on two threads."""
    changes = FAMILIES["halfcheetah-vel"].variants[variant][1]
    config = HalfCheetahConfig(**{**changes, "variant": variant, "horizon": STEPS + 1})
    family = TaskFamily(HalfCheetah(config))
    env = family.batch(family.sample_tasks(TASKS), EPISODES, num_threads=2)
    env.reset(7)
    return env


def float32_actions(seed: int = 0) -> np.ndarray:
    """`[time, task, episode, 6]` float32 in [-1, 1], as a policy emits them."""
    return np.random.default_rng(seed).uniform(-1, 1, (STEPS, TASKS, EPISODES, 6)).astype(np.float32)


def lane_of(value: np.ndarray | torch.Tensor) -> np.ndarray:
    """The compared lane of `[task, episode, ...]`."""
    return np.asarray(value).reshape(TASKS * EPISODES, *value.shape[2:])[LANE]


def gymnasium_xml() -> str:
    return str(Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "half_cheetah.xml")


def test_a_lane_is_gymnasiums_half_cheetah_bit_for_bit() -> None:
    env = long_batch("plain")
    reference = gymnasium.make("HalfCheetah-v5", ctrl_cost_weight=0.05).unwrapped
    reference.reset(seed=0)
    reference.set_state(env.state["qpos"][LANE].numpy(), env.state["qvel"][LANE].numpy())
    target = float(env.tasks[LANE // EPISODES])
    for action in float32_actions():
        step = env.step(torch.from_numpy(action))
        observation, _, _, _, info = reference.step(lane_of(action).astype(np.float64))
        np.testing.assert_array_equal(env.state["qpos"][LANE].numpy(), reference.data.qpos)
        np.testing.assert_array_equal(env.state["qvel"][LANE].numpy(), reference.data.qvel)
        np.testing.assert_array_equal(lane_of(step.observation), observation)
        expected = -abs(info["x_velocity"] - target) + info["reward_ctrl"]
        assert abs(lane_of(step.reward) - expected) < 1e-12
    reference.close()


def com_at_the_new_state(model: mujoco.MjModel, data: mujoco.MjData, scratch: mujoco.MjData) -> dict[str, np.ndarray]:
    scratch.qpos[:], scratch.qvel[:] = data.qpos, data.qvel
    mujoco.mj_forward(model, scratch)
    mujoco.mj_subtreeVel(model, scratch)
    torso = model.body("torso").id
    return {"com": scratch.subtree_com[torso], "com_velocity": scratch.subtree_linvel[torso]}


def torso_as_the_last_substep_left_it(
    model: mujoco.MjModel, data: mujoco.MjData, scratch: mujoco.MjData
) -> dict[str, np.ndarray]:
    return {"torso_position": data.xpos[model.body("torso").id]}


def nothing(model: mujoco.MjModel, data: mujoco.MjData, scratch: mujoco.MjData) -> dict[str, np.ndarray]:
    return {}


@pytest.mark.parametrize(
    ("variant", "frame_skip", "derived"),
    [
        ("plain", 5, nothing),
        ("maml2017", 1, com_at_the_new_state),
        ("pearl", 5, torso_as_the_last_substep_left_it),
    ],
)
def test_a_lane_is_plain_mj_step_bit_for_bit(variant: str, frame_skip: int, derived: Callable) -> None:
    env = long_batch(variant)
    model = mujoco.MjModel.from_xml_path(gymnasium_xml())
    data, scratch = mujoco.MjData(model), mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = env.state["qpos"][LANE], env.state["qvel"][LANE]
    mujoco.mj_forward(model, data)
    for k, action in enumerate([None, *float32_actions()]):
        if action is not None:
            # Lanes around it come and go: what they do must not be felt.
            if k % 50 == 0:
                env.reset(k, torch.tensor([[True, False], [True, False], [False, True]]))
            if k % 77 == 0:
                action[0, 1] = np.nan
            env.step(torch.from_numpy(action))
            data.ctrl[:] = lane_of(action)
            mujoco.mj_step(model, data, frame_skip)
        expected = {"qpos": data.qpos, "qvel": data.qvel, **derived(model, data, scratch)}
        assert set(env.state) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(env.state[name][LANE].numpy(), value, err_msg=f"{name} at step {k}")


@pytest.mark.parametrize("variant", ["plain", "maml2017", "pearl"])
def test_reset_leaves_nothing_behind(variant: str) -> None:
    """After a reset, also from a diverged state, a lane goes on as one that was never used."""
    used, new = long_batch(variant), long_batch(variant)
    actions = torch.from_numpy(float32_actions())
    used.reset(1)
    for k in range(20):
        broken = actions[k].clone()
        broken[1, 1] = torch.nan if k == 10 else broken[1, 1]
        used.step(broken)
    torch.testing.assert_close(used.reset(7), new.reset(7), rtol=0, atol=0)
    for k in range(20, 60):
        a, b = used.step(actions[k]), new.step(actions[k])
        assert torch.equal(a.observation, b.observation)
        assert torch.equal(a.reward, b.reward)


def test_thread_count_changes_nothing() -> None:
    problem = HalfCheetah(HalfCheetahConfig())
    one, many = (MujocoCpuSimulator(problem.model, 7, threads) for threads in (1, 99))
    initial = problem.initial_state(7, torch.Generator().manual_seed(0))
    control = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (7, 6)))
    for simulator in (one, many):
        simulator.reset(initial, None)
        for _ in range(50):
            simulator.step(control, None)
    assert torch.equal(one.state()["qpos"], many.state()["qpos"])


@pytest.mark.parametrize("variant", ["plain", "maml2017"])
@pytest.mark.parametrize(
    ("entry", "value"), [("qpos", np.nan), ("qpos", np.inf), ("qvel", np.nan), ("qvel", 1e9), ("qvel", 1e12)]
)
def test_divergence_is_reported_and_isolated(
    variant: str, entry: str, value: float, capfd: pytest.CaptureFixture[str]
) -> None:
    env, healthy = long_batch(variant), long_batch(variant)
    state = {name: tensor.clone() for name, tensor in env.state.items()}
    state[entry][LANE, 3] = value
    env.reset_to(state)
    others = torch.arange(TASKS * EPISODES).reshape(TASKS, EPISODES) != LANE
    for action in torch.from_numpy(float32_actions()[:10]):
        a, b = env.step(action), healthy.step(action)
        assert torch.equal(a.observation[others], b.observation[others])
        assert torch.equal(a.terminated, ~others)
    assert env.simulator.failed().tolist() == (~others).flatten().tolist()
    env.reset(0)
    assert not env.simulator.failed().any()
    # MuJoCo puts the lane back and would tell the terminal and a log file; neither hears of it.
    assert capfd.readouterr() == ("", "")
    assert not Path("MUJOCO_LOG.TXT").exists()


def test_no_live_lane_is_no_work() -> None:
    problem = HalfCheetah(HalfCheetahConfig())
    simulator = MujocoCpuSimulator(problem.model, 3, 2)
    before = simulator.state()
    simulator.step(torch.ones(3, 6, dtype=torch.float64), torch.zeros(3, dtype=torch.bool))
    simulator.reset(problem.initial_state(3, torch.Generator()), torch.zeros(3, dtype=torch.bool))
    assert torch.equal(simulator.state()["qpos"], before["qpos"])


def test_derived_quantities_are_fresh_after_a_reset_and_stale_or_new_after_a_step() -> None:
    derived = (Derived("torso", "body_position", "torso"), Derived("com", "subtree_com", "torso"))
    stale = MujocoCpuSimulator(MujocoModel("half_cheetah.xml", 5, derived=derived), 1, 1)
    fresh = MujocoCpuSimulator(MujocoModel("half_cheetah.xml", 5, derived=derived, derived_at="new_state"), 1, 1)
    control = torch.full((1, 6), 0.5, dtype=torch.float64)
    for simulator in (stale, fresh):
        simulator.reset({"qpos": torch.full((1, 9), 0.1), "qvel": torch.ones(1, 9)}, None)
    assert torch.equal(stale.state()["torso"], fresh.state()["torso"])
    # The torso's frame stands 0.7 m over the origin of its slide joints, and they are its x and z.
    torch.testing.assert_close(fresh.state()["torso"], torch.tensor([[0.1, 0.0, 0.8]], dtype=torch.float64))
    for simulator in (stale, fresh):
        simulator.step(control, None)
    assert torch.equal(stale.state()["qpos"], fresh.state()["qpos"])
    qpos, qvel = fresh.state()["qpos"][0], fresh.state()["qvel"][0]
    torch.testing.assert_close(fresh.state()["torso"][0, 0], qpos[0], rtol=0, atol=1e-15)
    # One timestep behind: Euler moved x by the new velocity times 0.01 s.
    torch.testing.assert_close(stale.state()["torso"][0, 0], qpos[0] - 0.01 * qvel[0], rtol=0, atol=1e-15)


def in_a_forked_child(work: Callable[[], object]) -> object:
    """What `work` returns in a forked child, which then leaves as a script does; an alarm ends one that hangs."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 and later warn of forks beside threads
        child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(30)
        try:
            with os.fdopen(writing, "wb") as file:
                pickle.dump(work(), file)
            gc.collect()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        answer = file.read()
    assert os.waitpid(child, 0)[1] == 0
    return pickle.loads(answer)


@pytest.mark.parametrize("variant", ["plain", "maml2017", "pearl"])
def test_a_forked_child_steps_on_with_the_same_numbers(variant: str) -> None:
    env, same = long_batch(variant), long_batch(variant)
    actions = torch.from_numpy(float32_actions())
    actions[2, 1, 1] = torch.nan
    resting = torch.tensor([[True, True], [True, False], [True, True]])

    def go_on(env: BatchedEnv) -> list[np.ndarray]:
        """The diverged lane rests first: what it shows is from before the fork. Then it starts anew."""
        seen = []
        for k in range(3, 9):
            step = env.step(actions[k])
            if k == 6:
                env.reset(9, ~resting)
            seen += [value.numpy() for value in (step.observation, step.reward, step.terminated, *env.state.values())]
        seen.append(env.simulator.failed().numpy())
        return seen

    for k in range(3):
        env.step(actions[k])
        same.step(actions[k])

    def in_child() -> list[np.ndarray]:
        nonlocal env
        numbers = go_on(env)
        del env
        return numbers

    from_child = in_a_forked_child(in_child)
    for mine, theirs in zip(go_on(same), from_child, strict=True):  # pyright: ignore[reportArgumentType]
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(go_on(env), from_child, strict=True):  # pyright: ignore[reportArgumentType]
        np.testing.assert_array_equal(mine, theirs)


def test_a_forked_child_keeps_the_models_fields_and_may_leave_without_a_step() -> None:
    varied = ("body_mass", "opt.gravity")
    description = MujocoModel("half_cheetah.xml", 2, derived=(Derived("c", "subtree_com", "torso"),), varied=varied)
    simulator = MujocoCpuSimulator(description, 3, 2)
    lighter = {name: value.expand(3, *value.shape) * 0.5 for name, value in simulator.nominal_fields.items()}
    simulator.set_fields(lighter)
    simulator.reset({"qpos": torch.full((3, 9), 0.1)}, None)

    def step() -> list[np.ndarray]:
        simulator.step(torch.full((3, 6), 0.5, dtype=torch.float64), None)
        return [value.numpy() for value in simulator.state().values()]

    from_grandchild = in_a_forked_child(lambda: in_a_forked_child(step))

    def leave() -> None:
        nonlocal simulator
        del simulator

    assert in_a_forked_child(leave) is None
    for mine, theirs in zip(step(), from_grandchild, strict=True):  # pyright: ignore[reportArgumentType]
        np.testing.assert_array_equal(mine, theirs)


def test_the_process_keeps_its_own_warning_handler() -> None:
    seen: list[str] = []
    mujoco.set_mju_user_warning(seen.append)
    try:
        long_batch("plain").step(torch.full((TASKS, EPISODES, 6), torch.nan))
        assert seen == []
        model = mujoco.MjModel.from_xml_path(gymnasium_xml())
        data = mujoco.MjData(model)
        data.qpos[0] = np.nan
        mujoco.mj_step(model, data)
        assert any("QPOS" in message for message in seen)
    finally:
        mujoco.set_mju_user_warning(None)


@pytest.mark.parametrize("backend", ["mujoco", "warp"])
def test_an_old_mujoco_is_refused_in_one_sentence(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mujoco_cpu", "mujoco_warp"):
        monkeypatch.delitem(sys.modules, f"envs.physics.{module}", raising=False)
    # What import finds below MuJoCo 4.0, and what MuJoCo Warp meets there.
    monkeypatch.setitem(sys.modules, "mujoco.batch", None)
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    monkeypatch.setattr(mujoco, "__version__", "3.3.0")
    family = envs.make("halfcheetah-vel")
    with pytest.raises(ImportError, match=r"^envs.physics needs MuJoCo 4.0 or later .* has 3.3.0: run .*\.$"):
        family.batch(family.sample_tasks(1), 1, backend=backend)  # pyright: ignore[reportArgumentType]
    navigation = envs.make("navigation-2d")
    navigation.batch(navigation.sample_tasks(1), 1).reset(0)
