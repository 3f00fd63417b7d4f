"""The vector face of a task family for Gymnasium: `envs.gym_adapter` says what it shares with the single one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, final

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.batched_env import BatchedEnv
from envs.family import DescribesSteps, Renderer, State, TaskFamily
from envs.gym_arguments import (
    TaskChoice,
    check_actions,
    check_options,
    check_render_mode,
    episode_generator,
    find_family,
    frames_per_second,
    own_spec,
    spaces,
    task_list,
    tell,
)


@final
class FamilyVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` environments of a task family stepped together; equal to a SyncVectorEnv of `FamilyEnv`s.

    Args:
        family: Family name, `family@variant`, or a `TaskFamily`.
        num_envs: Number of sub-environments.
        variant: Variant, where `family` is a plain name; None takes the family's default.
        task: `[task_dim]`: the task of all, whatever the seeds.
        tasks: `[task, task_dim]`: a sub-environment reset with seed s takes `tasks[s % len(tasks)]`. `reset(seed=0)`
            gives them out in turn.
        task_seed: The task of all is the first training task under this task seed.
        env_tasks: `[task, task_dim]`, a number that divides `num_envs`: sub-environment i is under task
            `i // (num_envs // len(env_tasks))`, whatever the seeds. This environment alone can know its i's.
        observe_task: Append the task to the observation (the oracle).
        autoreset_mode: When a finished sub-environment starts its next episode. With DISABLED it stays at its last
            observation, earning 0, until `reset(options={"reset_mask": mask})`.
        max_episode_steps: Cuts episodes off before the variant's horizon does; as `gymnasium.make`'s, -1 does not.
        num_threads: Physics threads; None takes the cores this process may use.
        render_mode: None or "rgb_array".
        width: Of a frame, pixels.
        height: Of a frame, pixels.

    Raises:
        ValueError: For an unknown name or mode, or tasks that do not fit the family or `num_envs`.
    """

    _spec: EnvSpec | None = None

    def __init__(
        self,
        family: str | TaskFamily,
        num_envs: int = 1,
        variant: str | None = None,
        task: Any = None,
        tasks: Any = None,
        task_seed: int | None = None,
        env_tasks: Any = None,
        observe_task: bool = False,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        num_threads: int | None = None,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 360,
    ) -> None:
        self.family = find_family(family, variant, observe_task)
        check_render_mode(render_mode, ["rgb_array"])
        self.render_mode = render_mode
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs is {num_envs!r}; it must be a whole number, at least 1.")
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": frames_per_second(self.family),
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space, self.single_action_space = spaces(self.family)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._choice = TaskChoice(self.family, task, tasks, task_seed)
        # Without seeds the sub-environments have consecutive ones too, from a first one that nobody chose.
        first = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        self._seeds = [first - first % num_envs + i for i in range(num_envs)]
        self._generators = [seeding.np_random(seed)[0] for seed in self._seeds]
        self._seen = self._choice.fixed is not None  # whether anybody knows the tasks: until then no spec tells them
        self._batch: BatchedEnv = self.family.batch(self._drawn(), 1, num_threads=num_threads)
        self._batch.horizon = _horizon(self.family, max_episode_steps)
        self._finished = np.zeros(num_envs, dtype=bool)
        self._size = (width, height)
        self._renderer: Renderer | None = None
        if env_tasks is not None:
            if task is not None or tasks is not None or task_seed is not None:
                raise ValueError("env_tasks was given beside another task argument; give one of them.")
            self.set_tasks(env_tasks)

    @property
    def spec(self) -> EnvSpec | None:
        """How to make this environment again, under the tasks it has now; None if it was not made by id."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._spec = own_spec(spec, self._batch.horizon)
        if self._seen:
            tell(self._spec, "env_tasks", self._batch.tasks)

    @property
    def tasks(self) -> np.ndarray:
        """The current task of each sub-environment `[num_envs, task_dim]`."""
        self._show_tasks()
        return self._batch.tasks.numpy()

    def set_tasks(self, tasks: Any) -> None:
        """Changes the tasks for good: call `reset` before the next `step`; seeds do not change them.

        Args:
            tasks: `[task, task_dim]`, a number that divides `num_envs`: neighbours share one.

        Raises:
            ValueError: If they do not fit the family or `num_envs`.
        """
        tensor = task_list(self.family, tasks)
        if self.num_envs % len(tensor):
            raise ValueError(f"{len(tensor)} tasks were given for num_envs={self.num_envs}; the number must divide it.")
        self._choice.fixed = tensor.repeat_interleave(self.num_envs // len(tensor), dim=0)
        self._batch.set_tasks(self._choice.fixed)
        self._show_tasks()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts new episodes.

        Args:
            seed: One seed per sub-environment; one integer stands for seed, seed + 1, ... (as in SyncVectorEnv); None
                continues each sub-environment's stream.
            options: `{"reset_mask": bool [num_envs]}` starts only those anew.
        """
        check_options(options, "reset_mask")
        mask = np.ones(self.num_envs, dtype=bool)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
                raise ValueError(
                    f"options['reset_mask'] must be a boolean array of shape ({self.num_envs},) with a True in it."
                )
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds were given for num_envs={self.num_envs}; give one for each.")
        seeded = np.array([mask[i] and seeds[i] is not None for i in range(self.num_envs)])
        for i in np.flatnonzero(seeded):
            self._generators[i], self._seeds[i] = seeding.np_random(seeds[i])
        if seeded.any() and self._choice.fixed is None:
            self._batch.set_tasks(self._drawn(), None if mask.all() else torch.from_numpy(seeded))
        self._show_tasks()
        self._finished[mask] = False
        return self._start(mask), self._infos(mask, {}, np.zeros_like(mask))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        tensor = torch.from_numpy(check_actions(actions, self.action_space))
        before = self._batch.state
        step = self._batch.step(tensor[:, None])
        measures = self._measures(before)
        observations, rewards, terminated, truncated = (
            _to_numpy(value.flatten(0, 1)) for value in (step.observation, step.reward, step.terminated, step.truncated)
        )
        starting, everybody = self._finished, np.ones(self.num_envs, dtype=bool)
        self._finished = terminated | truncated
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and starting.any():
            # These were over before this call: it starts their next episode, whatever their action was.
            observations = self._start(starting)
            for flags in (terminated, truncated, self._finished):
                flags[starting] = False
            return observations, rewards, terminated, truncated, self._infos(everybody, measures, ~starting)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._finished.any():
            over = self._finished
            infos = self._infos(everybody, measures, ~over)
            last = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(over):
                last[i] = observations[i].copy()
            infos |= {"final_obs": last, "_final_obs": over.copy()}
            infos |= {"final_info": self._infos(over, measures, over), "_final_info": over.copy()}
            return self._start(over), rewards, terminated, truncated, infos
        return observations, rewards, terminated, truncated, self._infos(everybody, measures, everybody)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One frame `[height, width, 3]` per sub-environment."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = self.family.problem.make_renderer(*self._size)
        state, tasks = self._batch.state, self._batch.tasks
        return tuple(self._renderer.render(state, lane, tasks[lane]) for lane in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renderer": None}

    def _drawn(self) -> Tensor:
        """The tasks `[num_envs, task_dim]` that go with the sub-environments' seeds."""
        if self._choice.fixed is not None:
            return self._choice.fixed.expand(self.num_envs, -1)
        return torch.cat([self._choice.draw(seed) for seed in self._seeds])

    def _show_tasks(self) -> None:
        self._seen = True
        tell(self._spec, "env_tasks", self._batch.tasks)

    @torch.no_grad()
    def _measures(self, before: State) -> Mapping[str, np.ndarray]:
        """Label -> quantity `[num_envs]` of the step that led from `before` to the present state."""
        problem, batch = self.family.problem, self._batch
        if not hasattr(problem, "describe_step"):
            return {}
        measured = cast(DescribesSteps, problem).describe_step(before, batch.state, batch.tasks)
        return {label: quantity.value.numpy().astype(np.float64) for label, quantity in measured.items()}

    def _infos(self, mask: np.ndarray, measures: Mapping[str, np.ndarray], measured: np.ndarray) -> dict[str, Any]:
        """Gymnasium's vector infos: the tasks of those in `mask`, and the measures of those in `measured`."""

        def put(infos: dict[str, Any], key: str, values: np.ndarray, mask: np.ndarray) -> None:
            infos[key], infos[f"_{key}"] = np.where(mask, values, 0.0), mask.copy()

        task: dict[str, Any] = {}
        for label, values in zip(self.family.spec.task_labels, self._batch.tasks.numpy().T, strict=True):
            put(task, label, values, mask)
        infos: dict[str, Any] = {"task": task, "_task": mask.copy()}
        for label, values in measures.items():
            if measured.any():
                put(infos, label, values, measured)
        return infos

    def _start(self, mask: np.ndarray) -> np.ndarray:
        """Starts the next episode of the sub-environments in `mask`; returns the observations of all."""
        initial: dict[str, Tensor] = {}
        for lane in np.flatnonzero(mask):
            generator = episode_generator(self._generators[lane])
            for name, value in self.family.problem.initial_state(1, generator).items():
                rows = initial.setdefault(name, torch.zeros(self.num_envs, *value.shape[1:], dtype=value.dtype))
                rows[lane] = value[0]
        lanes = None if mask.all() else torch.from_numpy(mask)
        return _to_numpy(self._batch.reset_to(initial, lanes).flatten(0, 1))


def _horizon(family: TaskFamily, max_episode_steps: int | None) -> int:
    if max_episode_steps is None or max_episode_steps == -1:
        return family.horizon
    if not isinstance(max_episode_steps, int | np.integer) or max_episode_steps < 1:
        raise ValueError(f"max_episode_steps is {max_episode_steps!r}; it must be a whole number, at least 1, or -1.")
    return min(int(max_episode_steps), family.horizon)


def _to_numpy(value: Tensor) -> np.ndarray:
    """The caller's own array."""
    return value.cpu().numpy()
