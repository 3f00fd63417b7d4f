"""What authors and users hand over is checked where it comes in, and what the environments hand out is the caller's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import envs
from envs.batched_env import BatchedEnv
from envs.family import FamilySpec, TaskFamily
from envs.physics import make_simulator
from envs.physics.model import MujocoModel
from envs.presets import PublishedCurve
from envs.torch_simulator import TorchSimulator

GOOD: dict[str, Any] = {
    "name": "slide",
    "variant": "plain",
    "observation_labels": ("x", "goal distance"),
    "action_labels": ("push", "pull"),
    "action_low": (-1.0, -2.0),
    "action_high": (1.0, 2.0),
    "task_labels": ("goal",),
    "task_units": ("m",),
    "horizon": 3,
    "dt": 0.1,
}
INF, NAN = float("inf"), float("nan")
TASKS, EPISODES, LANES = 2, 3, 6


class Slide:
    """x' = x + push - pull under a reward that is a view of the state; any method can be replaced by a broken one."""

    def __init__(self, **broken: Callable) -> None:
        self.spec = FamilySpec(**GOOD)
        self.goals = np.array([[0.5], [1.0]])
        for name, method in broken.items():
            setattr(self, name, method)

    def sample_task(self, split, generator):
        return generator.uniform(0.0, 1.0, size=1)

    def published_tasks(self):
        return self.goals

    def make_simulator(self, num_lanes, device, backend, num_threads):
        return TorchSimulator(num_lanes, device, lambda state, control: self.move(state, control))

    def move(self, state, control):
        return {"x": state["x"] + (control[:, :1] - control[:, 1:]), "previous": state["x"]}

    def initial_state(self, num_lanes, generator):
        start = torch.rand(num_lanes, 1, generator=generator, dtype=torch.float64)
        return {"x": start, "previous": start}

    def observe(self, state):
        return torch.cat([state["x"], state["previous"]], dim=-1)

    def reward(self, before, after, action, task):
        return after["x"][:, 0]

    def terminated(self, after, task):
        return torch.zeros(len(task), dtype=torch.bool)

    def make_renderer(self, width, height):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", value) for value in ("", "  ", "a@b", None, 3)),
        *(("variant", value) for value in ("", "x@y")),
        *(
            (f"{kind}_labels", value)
            for kind in ("observation", "action", "task")
            for value in ((), "xy", None, (1, 2))
        ),
        *(("action_labels", value) for value in (("one",), ("a", "b", "c"))),
        *(("task_units", value) for value in ((), ("m", "m"), "m")),
        *(("action_low", (value, -2.0)) for value in (-INF, NAN, -1e39, -1e388, 1.0, 2.0, "0", None, True)),
        *(("action_high", (1.0, value)) for value in (INF, NAN, 1e39, -2.0, -3.0)),
        *(("action_low", value) for value in ((-1.0,), (-1.0, -1.0, -1.0), -1.0, ())),
        *(("action_scale", value) for value in (0.0, -1.0, NAN, INF, 1e-60, 1e60, 1e-39, "1", True)),
        *(("horizon", value) for value in (0, -1, 1.5, 200.0, "200", True, 2**31, None)),
        *(("dt", value) for value in (-0.1, NAN, INF, "0.1", None)),
        *(("published", value) for value in (PublishedCurve("MAML", (1.0,), "a paper"), (("MAML", (1.0,)),), "MAML")),
    ],
)
def test_a_spec_names_the_field_that_is_wrong(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^FamilySpec of .*; it must be .*\.$") as caught:
        FamilySpec(**{**GOOD, field: value})
    assert "\n" not in str(caught.value)
    assert f": {field} is " in str(caught.value) or "action_" in str(caught.value)
    assert field == "name" or "'slide'" in str(caught.value)


def test_a_spec_keeps_tuples_of_its_own() -> None:
    low, labels = np.array([-1.0, -2.0]), ["push", "pull"]
    spec = FamilySpec(**{**GOOD, "action_low": low, "action_labels": labels})
    low[0], labels[0] = 9.0, "no"
    assert spec == FamilySpec(**GOOD)
    assert dataclasses.replace(spec, horizon=np.int64(7)).horizon == 7
    with pytest.raises(ValueError, match="must be a FamilySpec"):
        TaskFamily(type("Problem", (), {"spec": None})())


@pytest.mark.parametrize(
    "changed", [{"label": ""}, {"source": None}, *({"returns": r} for r in ((), 1.0, (NAN,), "1"))]
)
def test_a_published_curve_names_the_field_that_is_wrong(changed: dict[str, Any]) -> None:
    (field,) = changed
    with pytest.raises(ValueError, match=f"{field} is"):
        PublishedCurve(**{"label": "MAML", "returns": (1.0, None), "source": "a paper", **changed})


@pytest.mark.parametrize("bad", [1e388, 1e39, -1e39, INF, NAN])
@pytest.mark.parametrize("name", ["navigation-2d", "halfcheetah-vel"])
def test_a_task_must_be_finite_also_in_float32(name: str, bad: float) -> None:
    family = envs.make(name)
    tasks = family.sample_tasks(2)
    env = family.batch(tasks, 1, num_threads=1)
    tasks[1, 0] = bad
    for take in (env.set_tasks, lambda wrong: family.batch(wrong, 1)):
        with pytest.raises(ValueError, match="not finite"):
            take(tasks)
    for wrong in (tasks.tolist(), tasks.numpy(), tasks.to(torch.complex64), tasks.to_sparse(), None):
        with pytest.raises(ValueError, match="takes a tensor of real numbers"):
            env.set_tasks(wrong)  # pyright: ignore[reportArgumentType]


def start(**broken: Callable) -> BatchedEnv:
    env = TaskFamily(Slide(**broken)).batch(torch.ones(TASKS, 1), EPISODES)
    env.reset(0)
    return env


ZERO, ONES = torch.zeros(TASKS, EPISODES, 2), torch.ones(LANES, dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "value", "words"),
    [
        ("observe", torch.zeros(LANES, 1), r"observe\(\) of slide@plain gave torch.float32 \[6, 1\]"),
        ("observe", torch.zeros(1, 2), r"floating tensor \[6, 2\]"),
        ("observe", torch.zeros(LANES, 2, dtype=torch.int64), "floating"),
        ("observe", np.zeros((LANES, 2)), "a ndarray"),
        ("reward", ONES[:, None], r"reward\(\) of slide@plain gave torch.float64 \[6, 1\]"),
        ("reward", ONES.sum(), r"tensor \[6\]"),
        ("reward", ONES > 0, "floating"),
        ("reward", 0.0, "a float"),
        ("terminated", ONES, r"terminated\(\) .* must give a boolean tensor \[6\]"),
        ("terminated", ONES[:, None] > 2, "boolean"),
        ("terminated", False, "a bool"),
        ("initial_state", {"x": torch.zeros(1, 1)}, r"'x' in initial_state\(\) .* it must be \[3, 1\]"),
        ("initial_state", {"x": torch.full((3, 1), NAN)}, "an episode cannot start so"),
        ("initial_state", torch.zeros(3, 1), "must map names to tensors"),
        ("initial_state", {"x": [0.0, 0.0, 0.0]}, "must map names to tensors"),
        ("move", {"x": torch.zeros(1, 1), "previous": torch.zeros(LANES, 1)}, "after a step has"),
        ("move", {"x": torch.zeros(LANES, 1)}, "after a step has"),
    ],
)
def test_what_a_problem_returns_is_checked(method: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        start(**{method: lambda *_: value}).step(ZERO)


@pytest.mark.parametrize("value", [[0.5, 0.5], [[0.5]], 0.5, [NAN], [1e39], ["x"], None, []])
def test_the_task_law_is_checked(value: Any) -> None:
    family = TaskFamily(
        Slide(sample_task=lambda *_: value, published_tasks=lambda: None if value is None else [value, value])
    )
    with pytest.raises(ValueError, match=r"sample_task\(\) of slide@plain gave .* of shape \[1\] \(goal\)"):
        family.sample_tasks(2)
    if value is not None:
        with pytest.raises(ValueError, match=r"published_tasks\(\) of slide@plain gave"):
            family.published_tasks()


def test_a_reward_of_another_precision_is_taken_as_it_is() -> None:
    step = start(reward=lambda *_: ONES.float()).step(ZERO)
    assert step.reward.dtype == torch.float64 and bool((step.reward == 1).all())


class Heavy(Slide):
    """Tasks that change gravity, on MuJoCo."""

    backend = "auto"

    def __init__(self, model_fields: Callable, motors: int = 6) -> None:
        super().__init__()
        labels = tuple(f"motor {i}" for i in range(motors))
        low, high = (-1.0,) * motors, (1.0,) * motors
        self.spec = dataclasses.replace(self.spec, action_labels=labels, action_low=low, action_high=high)
        self.model_fields = model_fields

    def make_simulator(self, num_lanes, device, backend, num_threads):
        model = MujocoModel("half_cheetah.xml", 1, varied=("opt.gravity",))
        return make_simulator(model, num_lanes, device, self.backend, num_threads)

    def initial_state(self, num_lanes, generator):
        return {"qpos": torch.zeros(num_lanes, 9, dtype=torch.float64)}

    def observe(self, state):
        return state["qvel"][:, :2]

    def reward(self, before, after, action, task):
        return after["qvel"][:, 0]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, r"gave nothing; it must give opt.gravity"),
        (None, "gave a NoneType"),
        ({"opt.gravity": torch.zeros(3)}, r"is torch.float32 \[3\] on cpu; it must be finite, of shape \[6, 3\]"),
        ({"opt.gravity": torch.zeros(LANES, 1)}, r"of shape \[6, 3\]"),
        ({"opt.gravity": torch.full((LANES, 3), NAN)}, "it must be finite"),
        ({"opt.gravity": torch.zeros(LANES, 3), "body_mass": torch.zeros(LANES, 8)}, "must give opt.gravity"),
    ],
)
def test_model_fields_are_checked(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TaskFamily(Heavy(lambda task, nominal: value)).batch(torch.ones(TASKS, 1), EPISODES)


@pytest.mark.parametrize("backend", ["mujoco", "warp"])
@pytest.mark.parametrize("motors", [1, 5])
def test_one_label_for_six_motors_is_refused(backend: str, motors: int) -> None:
    problem = Heavy(lambda task, nominal: {name: value.expand(LANES, -1) for name, value in nominal.items()}, motors)
    problem.backend = backend
    env = TaskFamily(problem).batch(torch.ones(TASKS, 1), EPISODES)
    env.reset(0)
    with pytest.raises(ValueError, match=rf"control has shape \[6, {motors}\]; half_cheetah.xml has 6 motors"):
        env.step(torch.zeros(TASKS, EPISODES, motors))


def test_the_nominal_fields_are_lent_to_nobody() -> None:
    def halve(task: torch.Tensor, nominal: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nominal["opt.gravity"].mul_(0.5)
        return {"opt.gravity": nominal["opt.gravity"].expand(LANES, 3)}

    env = TaskFamily(Heavy(halve)).batch(torch.ones(TASKS, 1), EPISODES)
    env.set_tasks(env.tasks)
    assert env.simulator.nominal_fields["opt.gravity"].tolist() == [0.0, 0.0, -9.81]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_mask_and_a_start_that_do_not_fit_are_refused() -> None:
    env = start()
    for lanes in (torch.ones(TASKS, EPISODES), torch.ones(5) > 0, torch.ones(EPISODES, TASKS) > 0, [True]):
        with pytest.raises(ValueError, match=r"must be a boolean tensor \[task, episode\] = \[2, 3\]"):
            env.reset(0, lanes)  # pyright: ignore[reportArgumentType]
    column = torch.zeros(LANES, 1)
    for wrong in ({"y": column}, {"x": column[:1]}, {"x": column, "previous": column[:, 0]}, {"x": column}):
        with pytest.raises(ValueError, match="state"):
            env.reset_to(wrong)
    for actions in (ZERO.numpy(), ZERO[0], None):
        with pytest.raises(ValueError, match=r"must be a tensor \[task, episode, action\] = \[2, 3, 2\]"):
            env.step(actions)  # pyright: ignore[reportArgumentType]


def families() -> list[TaskFamily]:
    heavy = TaskFamily(Heavy(lambda task, nominal: {"opt.gravity": -9.81 * task.new_ones(len(task), 3)}))
    names = ("navigation-2d", "halfcheetah-vel", "halfcheetah-vel@maml2017")
    return [TaskFamily(Slide()), heavy, *(envs.make(name) for name in names), envs.make(names[0], observe_task=True)]


@pytest.mark.parametrize("family", families(), ids=repr)
def test_writing_into_what_was_handed_out_or_in_moves_no_world(family: TaskFamily) -> None:
    """Two environments do the same; of one, everything that goes in or comes out is overwritten at once."""

    def spoil(*values: torch.Tensor) -> None:
        for value in values:
            value.fill_(1) if value.dtype == torch.bool else value.fill_(7.0)

    tasks = torch.linspace(0.1, 0.9, TASKS * family.task_dim, dtype=torch.float64).reshape(TASKS, -1)
    clean, spoiled = (family.batch(tasks.clone(), EPISODES, num_threads=1) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    spoil(spoiled.tasks)
    given = tasks.clone()
    spoiled.set_tasks(given)
    spoil(given)
    assert torch.equal(clean.tasks, spoiled.tasks)
    first, again = clean.reset(1), spoiled.reset(1)
    assert torch.equal(first, again)
    spoil(again, *spoiled.state.values())
    initial = {name: value.clone() for name, value in clean.state.items()}
    clean.reset_to(initial)
    mine = {name: value.clone() for name, value in initial.items()}
    spoil(spoiled.reset_to(mine), *mine.values())
    for k in range(3):
        if k == 2:  # some are over: their last observation is what the environment keeps
            lanes = torch.ones(TASKS, EPISODES, dtype=torch.bool)
            lanes[0, 0] = False
            mask = lanes.clone()
            again = spoiled.reset(5, mask)
            torch.testing.assert_close(again, clean.reset(5, lanes), rtol=0, atol=0, equal_nan=True)
            spoil(again, mask)
        actions = family.spec.action_scale * (
            2 * torch.rand(TASKS, EPISODES, family.action_dim, generator=generator) - 1
        )
        if k == 1:
            actions[0, 0] = NAN
        mine = actions.double()
        a, b = clean.step(actions.double()), spoiled.step(mine)
        for field in dataclasses.fields(a):
            torch.testing.assert_close(getattr(b, field.name), getattr(a, field.name), rtol=0, atol=0, equal_nan=True)
        spoil(mine, b.observation, b.reward, b.terminated, b.truncated, *spoiled.state.values(), spoiled.tasks)
        for name, value in clean.state.items():
            torch.testing.assert_close(spoiled.state[name], value, rtol=0, atol=0, equal_nan=True)


def test_a_transition_may_hand_on_the_state_it_was_given() -> None:
    """`previous` is where x was, whether all worlds move or one of them rests."""
    env = start()
    x = env.state["x"]
    push = ZERO.clone()
    push[..., 0] = 0.25
    env.step(push)
    assert torch.equal(env.state["previous"], x)
    x = env.state["x"]
    env.simulator.step(torch.ones(LANES, 2, dtype=torch.float64), torch.arange(LANES) > 0)
    assert torch.equal(env.simulator.state()["previous"][1:], x[1:])


def test_published_tasks_are_a_copy() -> None:
    for family in (TaskFamily(Slide()), envs.make("halfcheetah-vel@maml2017"), envs.make("navigation-2d")):
        tasks = family.published_tasks()
        assert tasks is not None
        kept = tasks.clone()
        tasks.zero_()
        assert torch.equal(family.published_tasks(), kept)  # pyright: ignore[reportArgumentType]


def test_no_graph_of_the_callers_is_kept() -> None:
    tasks = torch.ones(TASKS, 1, requires_grad=True)
    for family in (TaskFamily(Slide()), envs.make("halfcheetah-vel")):
        env = family.batch(tasks, EPISODES, num_threads=1)
        env.reset(0)
        step = env.step(torch.zeros(TASKS, EPISODES, family.action_dim, requires_grad=True))
        assert not any(value.requires_grad for value in (step.observation, step.reward, *env.state.values()))
