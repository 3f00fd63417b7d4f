"""2D navigation: a point must find a goal it cannot see; anywhere in a square, or one of four corners.

`navigation-2d` (Finn, Abbeel and Levine 2017, section 5.3). Dynamics: x' = x + a, a in [-0.1, 0.1]^2 per step, start
at the origin. Reward: -||x' - g||_2 after the move (the paper says squared distance; its code, and its published
returns, use the distance). Task: goal g ~ U(-0.5, 0.5)^2. Terminates when both coordinates are within 0.01 of the goal.
Observation: x alone. Horizon: 100 steps. Optimal return: -0.51 on average over goals (-0.54 on the 40 published ones),
with every coordinate going at its goal by 0.1 per step: each step then leaves the smallest distance possible.

Matches the original implementation (`@maml2017`, also the plain name): its action wrapper maps [-1, 1] onto
[-0.1, 0.1] and clips.

`navigation-2d-corners` (Rothfuss et al. 2019, ProMP, figure 4 and its code). The same dynamics with a in [-0.2, 0.2]^2
(policy actions are divided by 10 before they are mapped onto that), start ~ U(-0.2, 0.2)^2, goal g one of (+-2, +-2),
equally likely. Never terminates, 100 steps. `@promp` has the paper's sparse reward: 0 while ||x'||_1 < 0.5; beyond,
the progress ||x - g||_2 - ||x' - g||_2 where g is the corner nearest to x', else 0. So the start shows nothing and a
task must be explored for. `@promp-dense`: -||x' - g||_2. Going straight at the goal earns 2.5 to 2.8 in the sparse one:
the distance left where the L1 norm passes 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

import numpy as np
import torch
from torch import Tensor

from envs import arrays
from envs.family import Backend, FamilySpec, Split, State
from envs.presets import PublishedCurve
from envs.torch_simulator import TorchSimulator

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

_SOURCE = "Finn, Abbeel and Levine 2017, figure 4; per-task returns of the authors' repository (icml_point)"


@dataclass(frozen=True)
class Navigation2DConfig:
    """A variant of 2D navigation.

    Attributes:
        variant: Preset name.
        goal_range: Goals are uniform in the square of this half-width.
        max_step: Largest displacement per coordinate and step.
        goal_tolerance: Both coordinates within this of the goal end the episode.
        horizon: Steps.
        published_seed: NumPy RandomState seed of the published test goals, or None.
        num_published_tasks: How many of them.
        published: Published adaptation curves.
    """

    variant: str = "maml2017"
    goal_range: float = 0.5
    max_step: float = 0.1
    goal_tolerance: float = 0.01
    horizon: int = 100
    published_seed: int | None = 1
    num_published_tasks: int = 40
    published: tuple[PublishedCurve, ...] = (
        PublishedCurve("MAML", (-40.41, -11.68, -3.33, -3.23), _SOURCE),
        PublishedCurve("pretrained", (-40.81, -19.73, -11.72, -8.47), _SOURCE),
        PublishedCurve("random", (-82.66, -57.96, -53.84, -46.81), _SOURCE),
        PublishedCurve("oracle", (-2.29,), _SOURCE),
    )


@final
class Navigation2D:
    """The `Problem` of 2D navigation. State: `position [lane, 2]`; task: goal `[lane, 2]`."""

    takes_arrays = True

    def __init__(self, config: Navigation2DConfig) -> None:
        self.config = config
        self.spec = FamilySpec(
            name="navigation-2d",
            variant=config.variant,
            observation_labels=("x", "y"),
            action_labels=("dx", "dy"),
            action_low=(-config.max_step,) * 2,
            action_high=(config.max_step,) * 2,
            task_labels=("goal x", "goal y"),
            task_units=("", ""),
            horizon=config.horizon,
            dt=0.0,
            published=config.published,
        )

    def sample_task(self, split: Split, generator: np.random.Generator) -> np.ndarray:
        return generator.uniform(-self.config.goal_range, self.config.goal_range, size=2)

    def published_tasks(self) -> np.ndarray | None:
        if self.config.published_seed is None:
            return None
        r = self.config.goal_range
        return np.random.RandomState(self.config.published_seed).uniform(-r, r, (self.config.num_published_tasks, 2))

    def make_simulator(
        self, num_lanes: int, device: torch.device, backend: Backend, num_threads: int
    ) -> TorchSimulator:
        return _make_simulator(self.spec, num_lanes, device, backend)

    def initial_state(self, num_lanes: int, generator: torch.Generator) -> State:
        return {"position": torch.zeros(num_lanes, 2, dtype=torch.float64, device=generator.device)}

    def observe(self, state: State) -> Tensor:
        return state["position"]

    def reward(self, before: State, after: State, action: Tensor, task: Tensor) -> Tensor:
        return -arrays.norm(after["position"] - task)

    def terminated(self, after: State, task: Tensor) -> Tensor:
        return (abs(after["position"] - task) < self.config.goal_tolerance).all(-1)

    def make_renderer(self, width: int, height: int) -> NavigationRenderer:
        return NavigationRenderer(self.config.goal_range, width, height)


@dataclass(frozen=True)
class CornerNavigationConfig:
    """A variant of navigation to one of four corners.

    Attributes:
        variant: Preset name.
        reward: "sparse" or "dense".
        corner: Corners are at (+-this, +-this).
        start_range: The start is uniform in the square of this half-width.
        sparse_radius: L1 distance from the origin below which the sparse reward is 0.
        max_step: Largest displacement per coordinate and step.
        action_scale: The policy's action is divided by this before it is mapped.
        horizon: Steps.
    """

    variant: str = "promp"
    reward: Literal["sparse", "dense"] = "sparse"
    corner: float = 2.0
    start_range: float = 0.2
    sparse_radius: float = 0.5
    max_step: float = 0.2
    action_scale: float = 10.0
    horizon: int = 100


@final
class CornerNavigation:
    """The `Problem` of navigation to a corner. State: `position [lane, 2]`; task: goal `[lane, 2]`."""

    takes_arrays = True

    def __init__(self, config: CornerNavigationConfig) -> None:
        self.config = config
        self.spec = FamilySpec(
            name="navigation-2d-corners",
            variant=config.variant,
            observation_labels=("x", "y"),
            action_labels=("dx", "dy"),
            action_low=(-config.max_step,) * 2,
            action_high=(config.max_step,) * 2,
            action_scale=config.action_scale,
            task_labels=("goal x", "goal y"),
            task_units=("", ""),
            horizon=config.horizon,
            dt=0.0,
        )

    def sample_task(self, split: Split, generator: np.random.Generator) -> np.ndarray:
        return generator.choice([-self.config.corner, self.config.corner], size=2)

    def published_tasks(self) -> np.ndarray:
        """All four tasks there are."""
        c = self.config.corner
        return np.array([[-c, -c], [c, -c], [-c, c], [c, c]])

    def make_simulator(
        self, num_lanes: int, device: torch.device, backend: Backend, num_threads: int
    ) -> TorchSimulator:
        return _make_simulator(self.spec, num_lanes, device, backend)

    def initial_state(self, num_lanes: int, generator: torch.Generator) -> State:
        draw = torch.rand(num_lanes, 2, generator=generator, dtype=torch.float64, device=generator.device)
        return {"position": self.config.start_range * (2 * draw - 1)}

    def observe(self, state: State) -> Tensor:
        return state["position"]

    def reward(self, before: State, after: State, action: Tensor, task: Tensor) -> Tensor:
        distance = arrays.norm(after["position"] - task)
        if self.config.reward == "dense":
            return -distance
        position = after["position"]
        # The nearest corner is the one in the position's own quadrant: in each coordinate the goal is on its side.
        nearest = (position * task >= 0).all(-1)
        away = abs(position).sum(-1) >= self.config.sparse_radius
        progress = arrays.norm(before["position"] - task) - distance
        return arrays.where(nearest & away, progress, 0.0)

    def terminated(self, after: State, task: Tensor) -> Tensor:
        return arrays.never(task)

    def make_renderer(self, width: int, height: int) -> NavigationRenderer:
        return NavigationRenderer(self.config.corner, width, height)


def _make_simulator(spec: FamilySpec, num_lanes: int, device: torch.device, backend: Backend) -> TorchSimulator:
    """Worlds in which the action is the displacement."""
    if backend not in ("auto", "torch"):
        raise ValueError(f"{spec.id} is written in torch; backend must be 'auto' or 'torch', not {backend!r}.")
    return TorchSimulator(num_lanes, device, _displaced)


def _displaced(state: State, control: Tensor) -> State:
    return {"position": state["position"] + control}


@final
class NavigationRenderer:
    """Draws the arena from above: start, goal and the point."""

    def __init__(self, goal_range: float, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._half_view = 1.4 * goal_range

    def render(self, state: State, lane: int, task: Tensor) -> np.ndarray:
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (self._width, self._height), (255, 255, 255))
        draw = ImageDraw.Draw(image)
        self._disc(draw, torch.zeros(2), 4, (160, 160, 160))
        self._disc(draw, task, 8, (220, 50, 47))
        self._disc(draw, state["position"][lane], 6, (38, 90, 190))
        return np.array(image)

    def close(self) -> None:
        """Nothing is held open."""

    def _pixel(self, point: Tensor) -> tuple[float, float]:
        scale = min(self._width, self._height) / (2 * self._half_view)
        x, y = (float(c) for c in point)
        return self._width / 2 + scale * x, self._height / 2 - scale * y

    def _disc(self, draw: ImageDraw, point: Tensor, radius: int, colour: tuple[int, int, int]) -> None:
        x, y = self._pixel(point)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
