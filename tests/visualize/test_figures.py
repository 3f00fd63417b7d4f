"""Figures: valid, not blank, the same bytes every time; and the numbers that decide what is in them."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import envs
from metarl.evaluation import AdaptationCurve, evaluate_adaptation
from metarl.functional import initial_params
from metarl.ops.gaussian import Gaussian
from metarl.policies import GaussianMLPPolicy
from metarl.policy_gradient import policy_inner_loop
from metarl.rollout_adaptation import AdvantageSettings, RolloutAdaptation
from metarl.types import Rollout
from metarl.visualize.curves import draw_adaptation_curve, draw_training_curve
from metarl.visualize.figure import describe_run, drawing, number, step_colours, step_label
from metarl.visualize.paths import draw_paths, is_planar, planar_paths, view_half_width
from metarl.visualize.selection import spread_tasks


@pytest.fixture(scope="module")
def adapted() -> tuple[torch.Tensor, AdaptationCurve, RolloutAdaptation]:
    family = envs.make("navigation-2d")
    tasks = family.sample_tasks(5, "test", 0)
    policy = GaussianMLPPolicy(2, 2, hidden_sizes=(8,))
    curve, data = evaluate_adaptation(
        family, policy_inner_loop(policy), initial_params(policy), tasks, num_steps=2,
        noise_key=(2, 0), settings=AdvantageSettings(), episodes_per_task=3, keep_rollouts=True,
    )  # fmt: skip
    return tasks, curve, data


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        return np.asarray(image.convert("RGB"))


def assert_picture(path: Path, width: int) -> None:
    picture = pixels(path)
    assert picture.shape[1] == width
    assert picture.std() > 10, "a blank picture"


@pytest.mark.parametrize("panels", [[2], [0, 1, 2, 3], [0, 1, 2, 3, 4]])
def test_paths_are_drawn(adapted: tuple, tmp_path: Path, panels: list[int]) -> None:
    tasks, curve, data = adapted
    path = draw_paths(tmp_path / "paths.png", data.rollouts, tasks, curve.returns, panels, detail="a run")
    # Twice 900 pixels of a web page, whatever the number of panels.
    assert_picture(path, 1800)
    assert list(tmp_path.iterdir()) == [path]


def test_a_figure_is_deterministic_and_leaves_no_state(adapted: tuple, tmp_path: Path) -> None:
    tasks, curve, data = adapted
    before = dict(matplotlib.rcParams)
    first = draw_paths(tmp_path / "1.png", data.rollouts, tasks, curve.returns, [0, 1], detail="a run").read_bytes()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red"}):
        again = draw_paths(tmp_path / "2.png", data.rollouts, tasks, curve.returns, [0, 1], detail="a run").read_bytes()
    assert first == again


def test_a_figure_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), drawing(path, 1, 1):
        _ = 1 / 0
    assert path.read_bytes() == b"old"


def make_rollout(positions: torch.Tensor, valid: torch.Tensor, final: torch.Tensor) -> Rollout:
    flags = torch.zeros_like(valid)
    zeros = torch.zeros(valid.shape)
    parameters = Gaussian(torch.zeros_like(positions), torch.zeros_like(positions))
    return Rollout(positions, positions, zeros, flags, flags, valid, final, zeros, parameters)


def test_a_path_stays_where_its_episode_ended() -> None:
    positions = torch.tensor([[0.0, 0.0, 9.0], [1.0, 1.0, 9.0], [torch.nan] * 3]).expand(1, 3, 3, 3).clone()
    valid = torch.tensor([[[True, True, False], [True, True, True], [False, False, False]]])
    positions[0, 1, 2] = torch.tensor([2.0, 2.0, 9.0])
    final = torch.tensor([[[1.5, 1.5, 9.0], [3.0, 3.0, 9.0], [torch.nan] * 3]])
    paths = planar_paths(make_rollout(positions, valid, final), 0)
    # The third episode is padding of a budget; what follows x and y is not a position.
    np.testing.assert_array_equal(paths[..., 0], [[0, 1, 1.5, 1.5], [0, 1, 2, 3]])
    np.testing.assert_array_equal(paths[..., 0], paths[..., 1])


def test_the_view_holds_goals_and_overshoots_but_no_runaway() -> None:
    goals = np.array([[0.4, -0.5]])
    near, over, away = (np.array([[[0.0, 0.0], [x, 0.0]]]) for x in (0.1, 0.7, 50.0))
    assert view_half_width(goals, [near]) == pytest.approx(1.08 * 0.5)
    assert view_half_width(goals, [near, over]) == pytest.approx(1.08 * 0.7)
    assert view_half_width(goals, [near, over, away]) == pytest.approx(1.08 * 0.85)
    assert view_half_width(goals, [np.full((1, 2, 2), np.nan)]) == pytest.approx(1.08 * 0.5)
    assert view_half_width(np.zeros((1, 2)), [np.zeros((1, 2, 2))]) > 0


def test_planar_families() -> None:
    assert is_planar(envs.make("navigation-2d").spec)
    assert not is_planar(envs.make("halfcheetah-vel").spec)


def test_shown_tasks_are_spread() -> None:
    speeds = torch.tensor([[1.4], [0.2], [2.9], [0.1], [2.8]])
    assert spread_tasks(speeds, 1) == [2]
    assert spread_tasks(speeds, 2) == [3, 2]
    assert spread_tasks(speeds, 3) == [3, 0, 2]
    assert sorted(spread_tasks(speeds, 9)) == [0, 1, 2, 3, 4]
    corners = torch.tensor([[0.0, 0.0], [1.0, 9.0], [0.1, 0.5], [1.0, 0.0], [0.0, 9.0], [0.5, 4.0]])
    assert sorted(spread_tasks(corners, 4)) == [0, 1, 3, 4]
    assert sorted(spread_tasks(torch.ones(3, 2), 2))[0] >= 0


@pytest.mark.parametrize("num_tasks", [1, 40])
def test_adaptation_curve_is_drawn(num_tasks: int, tmp_path: Path) -> None:
    returns = torch.linspace(-50, -1, num_tasks * 4, dtype=torch.float64).reshape(num_tasks, 4)
    returns[0, 2] = -1e6 if num_tasks > 1 else -3.0
    published = envs.make("navigation-2d").spec.published
    assert_picture(
        draw_adaptation_curve(tmp_path / "c.png", AdaptationCurve(returns, 1), published, detail="a run"), 1800
    )


def test_curves_of_a_diverged_run_are_drawn(tmp_path: Path) -> None:
    curve = AdaptationCurve(torch.full((3, 2), torch.nan, dtype=torch.float64), 1)
    assert_picture(draw_adaptation_curve(tmp_path / "a.png", curve, detail="a run"), 1800)
    rows = [{"iteration": i + 1, "return/step_0": None, "return/step_1": None} for i in range(3)]
    assert_picture(draw_training_curve(tmp_path / "b.png", rows, detail="a run"), 1800)


def test_training_curve_is_drawn(tmp_path: Path) -> None:
    rows = [{"iteration": i + 1, "return/step_0": -50.0 + i, "return/step_1": -20.0 + i} for i in range(30)]
    plain = pixels(draw_training_curve(tmp_path / "a.png", rows, detail="a run"))
    rows[9]["validation/score"] = -25.0
    rows[20]["return/step_1"] = None  # pyright: ignore[reportArgumentType]
    scored = pixels(draw_training_curve(tmp_path / "b.png", rows, detail="a run"))
    assert plain.std() > 10 and (plain != scored).any()


def test_words_and_colours() -> None:
    assert [step_label(k) for k in (0, 1, 2)] == ["before adaptation", "after 1 step", "after 2 steps"]
    assert number(-40.24) == "\N{MINUS SIGN}40.2" and number(3.0) == "3.0"
    assert describe_run("f@v", "maml-trpo", 7) == "f@v · maml-trpo · iteration 7"
    for steps in range(8):
        assert len(set(step_colours(steps))) == steps + 1


def test_png_holds_no_software_version(tmp_path: Path) -> None:
    with drawing(tmp_path / "f.png", 1, 1):
        pass
    assert "Software" not in Image.open(io.BytesIO((tmp_path / "f.png").read_bytes())).info
