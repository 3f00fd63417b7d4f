"""`metarl` and `envs` meet by structure alone: what either expects of the other is held here, name by name.

Both write the same things down: `metarl.types` and `metarl.visualize` what learners and figures ask of environments,
`envs.family` what an author of a family writes. A member that is missing, or a parameter of another name, place or
default, would otherwise show only when it is used. Types are compared by basedpyright, which reads this file.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typing_extensions import get_protocol_members

import envs
import metarl
import metarl.types as wanted
from envs import registry
from envs.batched_env import BatchedEnv, Step
from envs.family import (
    Backend,
    Capturable,
    DescribesSteps,
    FamilySpec,
    Measured,
    Problem,
    Renderer,
    Simulator,
    TaskFamily,
)
from envs.gym_adapter import FamilyEnv
from envs.navigation import NavigationRenderer
from envs.presets import PublishedCurve
from envs.torch_simulator import TorchSimulator
from metarl.ops import categorical, gaussian
from metarl.policies import CategoricalMLPPolicy, GaussianMLPPolicy
from metarl.visualize import recorder, video


@pytest.fixture(params=registry.names())
def family(request: pytest.FixtureRequest) -> TaskFamily:
    return envs.make(request.param)


def misfits(protocol: type, subject: Any) -> list[str]:
    """What of a Protocol an object (or, for methods alone, a class or module) does not have as the Protocol says it."""
    found = []
    for name in sorted(get_protocol_members(protocol)):
        declared = inspect.getattr_static(protocol, name, None)
        if not hasattr(subject, name):
            found.append(f"{name} is missing")
        elif inspect.isfunction(declared):
            ask = list(inspect.signature(declared).parameters.values())[1:]
            offer = list(inspect.signature(getattr(subject, name)).parameters.values())
            offer = offer[1:] if inspect.isclass(subject) else offer
            found += [f"{name}(): {problem}" for problem in _misfits_of_call(ask, offer)]
    return found


def _misfits_of_call(ask: list[inspect.Parameter], offer: list[inspect.Parameter]) -> list[str]:
    """Why a call in the asked-for form would not do the same with what is offered."""
    found, by_name = [], {parameter.name: (place, parameter) for place, parameter in enumerate(offer)}
    for place, parameter in enumerate(ask):
        if parameter.name not in by_name:
            found.append(f"no parameter {parameter.name}")
            continue
        actual_place, actual = by_name.pop(parameter.name)
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            if actual.kind is not parameter.kind or actual_place != place:
                found.append(f"{parameter.name} is not parameter number {place}")
        elif actual.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            found.append(f"{parameter.name} cannot be named")
        if parameter.default is not parameter.empty and actual.default != parameter.default:
            found.append(f"{parameter.name} is {actual.default!r} by default, not {parameter.default!r}")
    found += [
        f"{name} is needed" for name, (_, p) in by_name.items() if p.default is p.empty and p.kind < p.VAR_KEYWORD
    ]
    return found


def test_families_are_what_learners_and_figures_ask_for(family: TaskFamily) -> None:
    assert misfits(wanted.TaskFamily, family) == []
    assert misfits(wanted.FamilySpec, family.spec) == []
    assert misfits(video.VisualFamily, family) == []
    for curve in family.spec.published:
        assert misfits(wanted.PublishedCurve, curve) == []


def test_batches_are_what_learners_and_figures_ask_for(family: TaskFamily) -> None:
    env = family.batch(family.sample_tasks(2), 1, num_threads=1)
    env.reset(0)
    assert misfits(wanted.BatchedEnv, env) == []
    assert misfits(recorder.RecordableEnv, env) == []
    assert misfits(wanted.EnvStep, env.step(torch.zeros(2, 1, family.action_dim))) == []


def test_families_are_what_their_authors_were_asked_for(family: TaskFamily) -> None:
    problem = family.problem
    assert misfits(Problem, problem) == []
    assert misfits(Simulator, problem.make_simulator(2, torch.device("cpu"), "auto", 1)) == []
    if hasattr(problem, "describe_step"):
        assert misfits(DescribesSteps, problem) == []


@pytest.mark.parametrize(("name", "backend"), [("navigation-2d", "auto"), ("halfcheetah-vel", "warp")])
def test_what_runs_on_cuda_can_be_captured(name: str, backend: Backend) -> None:
    if backend == "warp":
        pytest.importorskip("mujoco_warp")
    family = envs.make(name)
    env = family.batch(family.sample_tasks(2), 1, backend=backend)
    assert misfits(wanted.CapturableEnv, env) == []
    assert misfits(Capturable, env.simulator) == []


def test_renderers() -> None:
    from envs.physics.renderer import MujocoRenderer

    for renderer in (NavigationRenderer, MujocoRenderer):
        assert misfits(Renderer, renderer) == []
        assert misfits(video.Renderer, renderer) == []
    assert misfits(recorder.Measured, Measured(torch.zeros(1), "m/s")) == []


@pytest.mark.parametrize("distribution", [gaussian, categorical])
def test_distributions(distribution: ModuleType) -> None:
    assert misfits(wanted.Distribution, distribution) == []


@pytest.mark.parametrize("policy", [GaussianMLPPolicy(2, 1), CategoricalMLPPolicy(2, 3)])
def test_policies(policy: wanted.Policy) -> None:
    # nn.Module's own __call__ takes anything and hands it to forward.
    found = misfits(wanted.Policy, policy)
    assert [misfit for misfit in found if not misfit.startswith(("__call__", "named_parameters"))] == []
    assert list(inspect.signature(policy.forward).parameters) == ["observations"]  # pyright: ignore


def test_a_misfit_is_found() -> None:
    class Other:
        num_tasks = episodes_per_task = horizon = 1

        def set_tasks(self, tasks: Any) -> None: ...
        def reset(self, lanes: Any = None, seed: int = 0) -> None: ...
        def step(self, actions: Any, masks: Any) -> None: ...

    assert misfits(wanted.BatchedEnv, Other()) == [
        "device is missing",
        "reset(): seed is not parameter number 0",
        "reset(): lanes is not parameter number 1",
        "step(): masks is needed",
    ]


def for_the_type_checker(
    family: TaskFamily, spec: FamilySpec, curve: PublishedCurve, env: BatchedEnv, step: Step, torch_sim: TorchSimulator
) -> tuple[
    wanted.TaskFamily, wanted.FamilySpec, wanted.PublishedCurve, wanted.BatchedEnv, wanted.EnvStep, video.VisualFamily,
    recorder.RecordableEnv, Simulator,
]:  # fmt: skip
    return family, spec, curve, env, step, family, env, torch_sim


@pytest.mark.parametrize("name", ["navigation-2d", "navigation-2d-corners"])
def test_an_agent_acts_within_the_action_space_of_its_environment(name):
    family = envs.make(name)
    learner = metarl.MetaLearner.for_family(family, meta_batch_size=2, episodes_per_task=2)
    agent = learner.adapt(family.sample_tasks(1)[0], episodes=2)
    agent.params["log_std"] = agent.params["log_std"] + 3.0
    space = FamilyEnv(family).action_space
    generator = torch.Generator().manual_seed(0)
    actions = [agent.act(np.zeros(family.observation_dim), generator) for _ in range(200)]
    assert all(space.contains(action) for action in actions)
    assert {float(abs(action).max()) for action in actions} & {family.spec.action_scale}, "some are clipped"
