"""A task family, written once: the contract between a family's author and everything that runs it.

An author writes a `Problem`: pure torch functions of batched state (observation, reward, termination,
initial state) and a task law. `TaskFamily` turns it into tasks, batched environments and metadata;
`envs.gym_adapter` shows the same object to Gymnasium. A `Simulator` advances many independent worlds at
once behind one small interface, whether its dynamics are torch code, MuJoCo on CPU threads or MuJoCo on a
GPU: no family ever touches a MuJoCo object.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Protocol, final

import numpy as np
import torch
from torch import Tensor

from envs.batched_env import BatchedEnv
from envs.checks import check_count, check_sampled_task, check_spec, to_tuple
from envs.presets import PublishedCurve

Split = Literal["train", "test"]
Backend = Literal["auto", "torch", "mujoco", "warp"]
"""What advances the worlds: torch code, MuJoCo on CPU threads, or MuJoCo Warp on a GPU (or, for tests, on the CPU)."""

State = Mapping[str, Tensor]
"""Batched state of many worlds: name -> `[lane, ...]`, in the simulator's precision."""


@dataclass(frozen=True)
class FamilySpec:
    """What is known of a family before any task is drawn. Lists and arrays are kept as tuples.

    Attributes:
        name: Family name, e.g. "halfcheetah-vel".
        variant: Preset name, e.g. "maml2017"; "plain" is the recommended modern variant.
        observation_labels: One label (with its unit) per observation dimension, without the task.
        action_labels: One label per action dimension.
        action_low: Lower end of the environment's own action range, per dimension.
        action_high: Upper end of it.
        action_scale: The policy's action is divided by this before it is mapped; 1 for most variants.
        task_labels: One label per task dimension.
        task_units: Unit of each task dimension.
        horizon: Episode length limit in control steps.
        dt: Seconds of simulated time per control step; 0 where time has no unit.
        published: Published adaptation curves for exactly this variant.

    Raises:
        ValueError: Naming the family and the field that is not what it says here.
    """

    name: str
    variant: str
    observation_labels: tuple[str, ...]
    action_labels: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    task_labels: tuple[str, ...]
    task_units: tuple[str, ...]
    horizon: int
    dt: float
    action_scale: float = 1.0
    published: tuple[PublishedCurve, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, to_tuple(getattr(self, field.name)))
        check_spec(self)

    @property
    def id(self) -> str:
        """`family@variant`, the name every script takes."""
        return f"{self.name}@{self.variant}"


class Simulator(Protocol):
    """`num_lanes` independent worlds advanced together, their state shared as batched torch tensors."""

    @property
    def num_lanes(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the state: float64 on the CPU, float32 on a GPU and in MuJoCo Warp."""
        ...

    def state(self) -> State:
        """A snapshot `[lane, ...]` of every world: later calls leave it as it is."""
        ...

    def reset(self, initial: State, lanes: Tensor | None) -> None:
        """Puts worlds into `initial` (every entry `[lane, ...]`); the others keep their state.

        Args:
            initial: State entries to set, for all lanes (rows of unmasked lanes are ignored).
            lanes: Boolean mask `[lane]`, or None for all.
        """
        ...

    def step(self, control: Tensor, lanes: Tensor | None) -> None:
        """Advances worlds by one control step.

        Args:
            control: `[lane, control_dim]` in the environment's own range.
            lanes: Boolean mask `[lane]` of worlds to advance, or None for all. On the CPU the others cost
                nothing.
        """
        ...

    def failed(self) -> Tensor:
        """Boolean `[lane]`: worlds whose physics has diverged, or did not fit its memory, since their last reset."""
        ...


class Capturable(Protocol):
    """What a `Simulator` that runs on CUDA offers beside, so that a step of it can be part of a CUDA graph.

    Its state then stays in one place in memory.
    """

    @property
    def memory_generation(self) -> int:
        """Changes when the state has moved to other memory all the same: a graph captured before is void."""
        ...

    def capturing(self) -> AbstractContextManager[None]:
        """Put around the body of a `torch.cuda.graph` in which worlds are stepped."""
        ...


class VariesFields(Protocol):
    """What a `Simulator` offers beside, where the model it runs has fields that differ from world to world."""

    @property
    def nominal_fields(self) -> Mapping[str, Tensor]:
        """The model's own values of those fields, one world's each."""
        ...

    def set_fields(self, fields: Mapping[str, Tensor]) -> None:
        """Gives every world its own values, `[lane, ...]` each. Reset the worlds before the next step."""
        ...


class SharesArrays(Protocol):
    """What a `Simulator` on the CPU offers beside, so that a single world steps without tensors.

    Each tensor costs microseconds. The three do what `state`, `step` of all worlds, and `failed` do.
    """

    def state_arrays(self) -> Mapping[str, np.ndarray]: ...

    def step_arrays(self, control: np.ndarray) -> None: ...

    def failed_array(self) -> np.ndarray: ...


class Renderer(Protocol):
    """Draws one world of a family."""

    def render(self, state: State, lane: int, task: Tensor) -> np.ndarray:
        """Returns an RGB image `[height, width, 3]` uint8 of world `lane` under `task [task_dim]`."""
        ...

    def close(self) -> None: ...


class Problem(Protocol):
    """What the author of a family writes. `lane` is the flattened (task, episode) axis; all is batched."""

    @property
    def spec(self) -> FamilySpec: ...

    def sample_task(self, split: Split, generator: np.random.Generator) -> np.ndarray:
        """One task `[task_dim]` from the family's law."""
        ...

    def published_tasks(self) -> np.ndarray | None:
        """The variant's own fixed test tasks `[task, task_dim]`, where it has them."""
        ...

    def make_simulator(self, num_lanes: int, device: torch.device, backend: Backend, num_threads: int) -> Simulator: ...

    def initial_state(self, num_lanes: int, generator: torch.Generator) -> State:
        """Draws `num_lanes` initial states on the generator's device, in float64."""
        ...

    def observe(self, state: State) -> Tensor:
        """Observation `[lane, obs_dim]`, without the task."""
        ...

    def reward(self, before: State, after: State, action: Tensor, task: Tensor) -> Tensor:
        """Reward `[lane]` for applied (mapped and clipped) `action [lane, act_dim]` under `task [lane, task_dim]`."""
        ...

    def terminated(self, after: State, task: Tensor) -> Tensor:
        """Boolean `[lane]`: the episode ended in a state of the task itself (never at the horizon)."""
        ...

    def make_renderer(self, width: int, height: int) -> Renderer: ...


class Measured(NamedTuple):
    """A quantity of every world over one control step, for the eyes of a viewer.

    Attributes:
        value: `[lane]`.
        unit: Its unit, "" for none. A quantity that shares a task dimension's unit is shown against it.
    """

    value: Tensor
    unit: str


class DescribesSteps(Protocol):
    """An optional part of a `Problem`: what a video of it writes beside the picture."""

    def describe_step(self, before: State, after: State, task: Tensor) -> Mapping[str, Measured]:
        """Label -> quantity achieved over the control step, under `task [lane, task_dim]`; most important first."""
        ...


class TakesArrays(Protocol):
    """An optional part of a `Problem`: its functions are not torch's alone. A Gymnasium environment steps faster then.

    `observe`, `reward`, `terminated` and `describe_step` then also take NumPy arrays in the place of tensors, and give
    arrays with the same bits. Operators and indices do; `envs.arrays` has what NumPy and torch spell differently.
    """

    takes_arrays: bool


class VariesDynamics(Protocol):
    """An optional part of a `Problem`: tasks that change the physics itself, such as masses or friction."""

    def model_fields(self, task: Tensor, nominal: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Model field -> values of every world `[lane, ...]`, for `task [lane, task_dim]`.

        Args:
            task: Of every world.
            nominal: The model's own values, without a lane axis, of the fields that `MujocoModel.varied` names.
        """
        ...


@final
class TaskFamily:
    """A `Problem` with its tasks, its batched environments and its metadata.

    Args:
        problem: The family as its author wrote it.
        observe_task: Append the task to every observation: the oracle. Families never leak it otherwise.
    """

    def __init__(self, problem: Problem, observe_task: bool = False) -> None:
        if not isinstance(problem.spec, FamilySpec):
            raise ValueError(f"spec of {type(problem).__name__} is {problem.spec!r}; it must be a FamilySpec.")
        self.problem = problem
        self.observe_task = observe_task
        self.spec = problem.spec
        self.horizon = self.spec.horizon
        self.task_dim = len(self.spec.task_labels)
        self.action_dim = len(self.spec.action_labels)
        self.observation_dim = len(self.spec.observation_labels) + (self.task_dim if observe_task else 0)

    def __repr__(self) -> str:
        return f"TaskFamily({self.spec.id!r}, observe_task={self.observe_task})"

    def sample_tasks(self, num_tasks: int, split: Split = "train", seed: int = 0, start: int = 0) -> Tensor:
        """Draws tasks `[num_tasks, task_dim]` float64; row i depends on (family, split, seed, start + i) alone.

        Args:
            num_tasks: How many.
            split: "train" for meta-training, "test" for held-out evaluation.
            seed: Task seed, apart from every noise seed.
            start: Index of the first task, so that workers can each draw their own part.

        Raises:
            ValueError: For an unknown split or a negative number, or if the family's law gives what is no task.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; it must be 'train' or 'test'.")
        for name, value in (("num_tasks", num_tasks), ("seed", seed), ("start", start)):
            check_count(name, value, 0)
        # crc32 rather than hash(): the same on every machine and in every process.
        family_key = zlib.crc32(self.spec.name.encode())
        split_key = ("train", "test").index(split)
        rows = np.empty((num_tasks, self.task_dim))
        for i in range(num_tasks):
            generator = np.random.default_rng(np.random.SeedSequence((family_key, split_key, seed, start + i)))
            task = self.problem.sample_task(split, generator)
            rows[i] = check_sampled_task(self.spec, "sample_task()", task, (self.task_dim,))
        return torch.from_numpy(rows)

    def published_tasks(self) -> Tensor | None:
        """The variant's own fixed test tasks `[task, task_dim]` float64, or None where it has none."""
        tasks = self.problem.published_tasks()
        if tasks is None:
            return None
        return torch.from_numpy(check_sampled_task(self.spec, "published_tasks()", tasks, (None, self.task_dim)))

    def batch(
        self,
        tasks: Tensor,
        episodes_per_task: int,
        device: str | torch.device = "cpu",
        backend: Backend = "auto",
        num_threads: int | None = None,
    ) -> BatchedEnv:
        """Builds `tasks x episodes_per_task` worlds that step together.

        Args:
            tasks: `[task, task_dim]`.
            episodes_per_task: Worlds per task.
            device: Where observations and rewards live.
            backend: "auto" picks the family's own for the device.
            num_threads: Physics threads on the CPU; None takes the cores this process may use.

        Raises:
            ValueError: If `tasks` has the wrong shape or holds a number that is not finite in float32.
        """
        return BatchedEnv(self, tasks, episodes_per_task, torch.device(device), backend, num_threads)
