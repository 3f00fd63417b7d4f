# ruff: noqa: E501 (the table of variants is wider than a line)
"""HalfCheetah with a goal it is not told: a planar runner must find out how fast, or which way, to run.

Dynamics: Gymnasium's `half_cheetah.xml` (total mass 14 kg, 6 torque motors, Euler), `frame_skip` substeps per control
step. Never terminates. With v the forward velocity and a the applied action in [-1, 1]^6:

| goal      | family            | task                                  | reward                       |
|-----------|-------------------|---------------------------------------|------------------------------|
| velocity  | `halfcheetah-vel` | v* ~ U(0, `max_velocity`), m/s        | -|v - v*| - 0.05 sum(a^2)    |
| direction | `halfcheetah-dir` | d = 1 (forward) or -1, equally likely | d v - 0.05 sum(a^2)          |

The optimal returns are not known; always running at v* at no cost would give 0, and a direction's return has no bound.

Two ways to measure the forward velocity v, and what each variant of the observation adds to qpos[1:] and qvel:

| variant    | dt   | v                                            | observation adds                | reset noise (qpos; qvel)  |
|------------|------|----------------------------------------------|---------------------------------|---------------------------|
| `plain`    | 0.05 | finite difference of qpos[0]                 | nothing                         | U(-0.1, 0.1); N(0, 0.1)   |
| `maml2017` | 0.01 | x-velocity of the robot's centre of mass, at | centre of mass (3), at the new  | N(0, 0.01); N(0, 0.1)     |
|            |      | the new state                                | state                           |                           |
| `promp`    | 0.05 | finite difference of qpos[0]                 | nothing                         | U(-0.1, 0.1); N(0, 0.1)   |
| `pearl`,   | 0.05 | finite difference of qpos[0]                 | torso frame position (3) as the | U(-0.1, 0.1); N(0, 0.1)   |
| `varibad`  |      |                                              | last substep left it            |                           |

`plain` is Gymnasium's HalfCheetah-v5 with the reward above, bit for bit. (Direction has the first three variants.) The
others reproduce task law, timing, observation, scaling and costs of the published code on today's MuJoCo: the contact
solver of the MuJoCo versions they ran on was another one, and PEARL and VariBAD round observations to float32, which
here is left to the rollout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from envs import arrays
from envs.family import Backend, FamilySpec, Measured, Renderer, Simulator, Split, State
from envs.physics.model import Derived, MujocoModel
from envs.presets import PublishedCurve

_JOINTS = ("rootx", "rootz", "rooty", "bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
_UNITS = ("m", "m", "rad", "rad", "rad", "rad", "rad", "rad", "rad")
_COM, _COM_VELOCITY, _TORSO = "com", "com_velocity", "torso_position"
_ASSET = "half_cheetah.xml"


@dataclass(frozen=True)
class HalfCheetahConfig:
    """A variant of HalfCheetah-velocity or HalfCheetah-direction.

    Attributes:
        variant: Preset name.
        goal: "velocity" or "direction": what the task is.
        max_velocity: Target velocities are uniform in [0, this], m/s. A fixed task of the direction family is forward
            where a number drawn from the same law reaches half of it.
        horizon: Control steps per episode.
        frame_skip: Physics substeps per control step.
        timestep: Seconds per substep.
        velocity: "finite_difference" of qpos[0] over the control step, or "com": the x-velocity of the robot's centre
            of mass at the new state.
        observe: What the observation holds beside qpos[1:] and qvel: nothing, the centre of mass at the new state
            ("com"), or the torso frame's position as the last substep left it ("torso").
        action_scale: The policy's action is divided by this before it becomes a torque.
        control_cost: Weight of the sum of squared actions.
        position_noise: "uniform" in +-scale or "normal" with that standard deviation.
        position_noise_scale: Scale of the noise on the initial qpos.
        velocity_noise_scale: Standard deviation of the noise on the initial qvel.
        fixed_tasks_seed: NumPy RandomState seed of the variant's own tasks, or None where it has none.
        num_fixed_tasks: How many numbers to draw from it.
        num_train_tasks: The first so many of them are the training tasks and the rest the published test tasks.
            0: training draws from the continuous law instead and all of them are test tasks.
        published: Published adaptation curves.
    """

    variant: str = "plain"
    goal: Literal["velocity", "direction"] = "velocity"
    max_velocity: float = 3.0
    horizon: int = 200
    frame_skip: int = 5
    timestep: float = 0.01
    velocity: Literal["finite_difference", "com"] = "finite_difference"
    observe: Literal["nothing", "com", "torso"] = "nothing"
    action_scale: float = 1.0
    control_cost: float = 0.05
    position_noise: Literal["uniform", "normal"] = "uniform"
    position_noise_scale: float = 0.1
    velocity_noise_scale: float = 0.1
    fixed_tasks_seed: int | None = None
    num_fixed_tasks: int = 0
    num_train_tasks: int = 0
    published: tuple[PublishedCurve, ...] = ()


@final
class HalfCheetah:
    """The `Problem` of both families. State: `qpos [lane, 9]`, `qvel [lane, 9]` and what the variant derives.

    Args:
        config: The variant.
    """

    takes_arrays = True

    def __init__(self, config: HalfCheetahConfig) -> None:
        self.config = config
        self.model = _describe_model(config)
        self._dt = config.frame_skip * config.timestep
        self._observed = {"nothing": None, "com": _COM, "torso": _TORSO}[config.observe]
        fixed = np.empty((0, 1))
        if config.fixed_tasks_seed is not None:
            generator = np.random.RandomState(config.fixed_tasks_seed)
            fixed = generator.uniform(0.0, config.max_velocity, (config.num_fixed_tasks, 1))
        if config.goal == "direction":
            fixed = np.where(fixed < config.max_velocity / 2, -1.0, 1.0)
        self._train_tasks, self._test_tasks = fixed[: config.num_train_tasks], fixed[config.num_train_tasks :]
        extra = tuple(f"{self._observed} {axis} (m)" for axis in "xyz") if self._observed else ()
        self.spec = FamilySpec(
            name="halfcheetah-vel" if config.goal == "velocity" else "halfcheetah-dir",
            variant=config.variant,
            observation_labels=(
                *(f"{joint} ({unit})" for joint, unit in zip(_JOINTS[1:], _UNITS[1:], strict=True)),
                *(f"{joint} velocity ({unit}/s)" for joint, unit in zip(_JOINTS, _UNITS, strict=True)),
                *extra,
            ),
            action_labels=tuple(f"{joint} torque" for joint in _JOINTS[3:]),
            action_low=(-1.0,) * 6,
            action_high=(1.0,) * 6,
            action_scale=config.action_scale,
            task_labels=("target velocity" if config.goal == "velocity" else "direction",),
            task_units=("m/s" if config.goal == "velocity" else "",),
            horizon=config.horizon,
            dt=self._dt,
            published=config.published,
        )

    def sample_task(self, split: Split, generator: np.random.Generator) -> np.ndarray:
        # A variant whose published training set is finite draws from it, and its test split from its test tasks.
        if len(self._train_tasks):
            fixed = self._train_tasks if split == "train" else self._test_tasks
            return fixed[generator.integers(len(fixed))]
        if self.config.goal == "direction":
            return generator.choice([-1.0, 1.0], size=1)
        return generator.uniform(0.0, self.config.max_velocity, size=1)

    def published_tasks(self) -> np.ndarray | None:
        if self.config.goal == "direction" and not len(self._test_tasks):
            return np.array([[1.0], [-1.0]])  # all there are
        return self._test_tasks if len(self._test_tasks) else None

    def make_simulator(self, num_lanes: int, device: torch.device, backend: Backend, num_threads: int) -> Simulator:
        from envs.physics import make_simulator  # MuJoCo is loaded only when something is simulated

        return make_simulator(self.model, num_lanes, device, backend, num_threads)

    def initial_state(self, num_lanes: int, generator: torch.Generator) -> State:
        # The model's own initial position and velocity are all zeros: standing at x = 0, torso 0.7 m high.
        options = {"generator": generator, "device": generator.device, "dtype": torch.float64}
        config = self.config
        shape = (num_lanes, len(_JOINTS))
        if config.position_noise == "uniform":
            qpos = config.position_noise_scale * (2.0 * torch.rand(shape, **options) - 1.0)
        else:
            qpos = config.position_noise_scale * torch.randn(shape, **options)
        return {"qpos": qpos, "qvel": config.velocity_noise_scale * torch.randn(shape, **options)}

    def observe(self, state: State) -> Tensor:
        parts = [state["qpos"][:, 1:], state["qvel"]]
        if self._observed is not None:
            parts.append(state[self._observed])
        return arrays.concatenate(parts)

    def velocity(self, before: State, after: State) -> Tensor:
        """Forward velocity `[lane]` (m/s) over the control step from `before` to `after`, as the reward measures it."""
        if self.config.velocity == "com":
            return after[_COM_VELOCITY][:, 0]
        return (after["qpos"][:, 0] - before["qpos"][:, 0]) / self._dt

    def reward(self, before: State, after: State, action: Tensor, task: Tensor) -> Tensor:
        velocity, cost = self.velocity(before, after), self.config.control_cost * arrays.sum_of_squares(action)
        if self.config.goal == "direction":
            return task[:, 0] * velocity - cost
        return -abs(velocity - task[:, 0]) - cost

    def terminated(self, after: State, task: Tensor) -> Tensor:
        return arrays.never(task)

    def describe_step(self, before: State, after: State, task: Tensor) -> dict[str, Measured]:
        return {"velocity": Measured(self.velocity(before, after), "m/s")}

    def make_renderer(self, width: int, height: int) -> Renderer:
        from envs.physics.renderer import MujocoRenderer

        return MujocoRenderer(self.model, camera="track", width=width, height=height)


def _describe_model(config: HalfCheetahConfig) -> MujocoModel:
    """The MuJoCo model a variant needs: its timing, and only the derived quantities that it reads."""
    derived = []
    if config.observe == "com":
        derived.append(Derived(_COM, "subtree_com", "torso"))
    if config.velocity == "com":
        derived.append(Derived(_COM_VELOCITY, "subtree_velocity", "torso"))
    if config.observe == "torso":
        derived.append(Derived(_TORSO, "body_position", "torso"))
    uses_com = "com" in (config.observe, config.velocity)
    if uses_com and config.observe == "torso":
        raise ValueError(
            "observe='torso' belongs to the last substep and velocity='com' to the new state; a model has one instant, "
            "so use observe='com' or velocity='finite_difference'."
        )
    return MujocoModel(
        asset=_ASSET,
        frame_skip=config.frame_skip,
        timestep=config.timestep,
        derived=tuple(derived),
        derived_at="new_state" if uses_com else "last_substep",
        # Random episodes were seen to need 6 contacts and 24 rows.
        contacts_per_world=16,
        constraints_per_world=48,
    )
