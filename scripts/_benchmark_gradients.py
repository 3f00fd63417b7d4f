"""How good meta-gradients are: bias and spread of every estimator of the inner step's curvature.

All estimators take the same inner step, so each draw of rollouts serves them all, and they differ in nothing but the
derivative through that step. The reference is a long run of DiCE, whose curvature is unbiased, on `REFERENCE_EPISODES`
times the episodes, where the product of two noisy averages (curvature and gradient) has little bias left either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.meta_learner import make_chunks
from metarl.algorithms.objective import MetaBatch, meta_gradient
from metarl.experiment.progress import status
from metarl.experiment.run_directory import metrics_of
from metarl.noise import MEASUREMENT
from metarl.ops.tree import flatten
from metarl.policy_gradient import ESTIMATORS
from metarl.rollout_adaptation import adapt_on_rollouts
from metarl.types import Params, Policy, TaskFamily

REFERENCE_EPISODES = 10
FIRST_ORDER = "first order"
_NOT_OF_THE_ESTIMATOR = {
    *("exploration_credit", "inner_kl_penalty", "first_order", "inner_estimator"),
    *("outer_optimizer", "outer_lr", "outer_epochs", "clip_range", "fvp_fraction"),
}
"""Settings that take their defaults here: measured is the gradient of the plain meta-objective."""


@dataclass(frozen=True)
class GradientRow:
    """Quality of one estimator's meta-gradient. Sampling noise in the means is taken off all squared norms.

    Attributes:
        name: `gradients/<estimator>`.
        relative_bias: Distance of its mean from the reference, as a share of the reference's norm.
        noise: Root mean square of the sampling noise that was taken off that distance, likewise as a share: a bias well
            below it is not resolved.
        relative_sd: Root of its total variance, as a share of the norm of its mean (Rothfuss et al. 2019, section 7.2).
        cosine: Mean cosine of a single gradient to the mean of the reference.
        norm: Of its mean.

    A share is NaN where noise leaves nothing of the norm it is a share of: more draws are needed.
    """

    name: str
    relative_bias: float
    noise: float
    relative_sd: float
    cosine: float
    norm: float


def gradient_row(name: str, drawn: Tensor, reference: Tensor) -> GradientRow:
    """The row of `drawn` gradients `[draw, n]` against those of a reference, `[draw, n]`."""

    def norm(squared: float) -> float:
        return math.sqrt(squared) if squared > 0 else math.nan

    error, target_error = (float(g.var(0).sum()) / len(g) for g in (drawn, reference))
    mean, target = drawn.mean(0), reference.mean(0)
    own = norm(float(mean.square().sum()) - error)
    wanted = norm(float(target.square().sum()) - target_error)
    distance = float((mean - target).square().sum()) - error - target_error
    cosines = torch.nn.functional.cosine_similarity(drawn, target.unsqueeze(0), dim=1)
    return GradientRow(
        name,
        math.sqrt(max(distance, 0.0)) / wanted,
        math.sqrt(error + target_error) / wanted,
        math.sqrt(error * len(drawn)) / own,
        float(cosines.mean()),
        own,
    )


@dataclass(frozen=True)
class GradientCase:
    """Where gradients are measured: a policy on fixed training tasks."""

    family: TaskFamily
    policy: Policy
    params: Params
    config: LearnerConfig
    num_threads: int | None

    def gradients(
        self, estimators: Sequence[str], draws: int, episodes_factor: int, key: int
    ) -> Iterator[list[Tensor]]:
        """For every draw of rollouts one flat float64 gradient per estimator."""
        config = dataclasses.replace(
            self.config,
            steps_per_task=self.config.steps_per_task * episodes_factor,
            episodes_per_task=self.config.episodes_per_task * episodes_factor,
        )
        tasks, worlds = self.family.sample_tasks(config.meta_batch_size), config.worlds_per_task(self.family.horizon)
        env = self.family.batch(tasks, worlds, num_threads=self.num_threads)
        chunks = make_chunks(config, self.policy, self.family.horizon, "cpu", self.num_threads)
        for draw in range(draws):
            data = adapt_on_rollouts(
                env,
                config.inner_loop(self.policy),
                self.params,
                num_steps=config.num_inner_steps,
                noise_key=(MEASUREMENT, key, draw),
                settings=config.advantage_settings(),
                steps_per_task=config.steps_per_task or None,
                chunks=chunks,
            )
            batch = MetaBatch.of(data, config)
            found = []
            for name in estimators:
                changes = {"first_order": True} if name == FIRST_ORDER else {"inner_estimator": name}
                inner = dataclasses.replace(config, **changes).inner_loop(self.policy)
                gradient, _ = meta_gradient(inner, self.params, batch, config, chunks)
                found.append(flatten(gradient)[0].double())
            yield found


def measure_gradients(case: GradientCase, draws: int) -> tuple[list[GradientRow], Tensor]:
    """A row per estimator, and the cosines between the estimators' means, `[estimator, estimator]`."""
    names = [*ESTIMATORS, FIRST_ORDER]
    with status("drawing gradients ..."):
        samples = torch.stack([torch.stack(found) for found in case.gradients(names, draws, 1, key=0)], dim=1)
        reference_draws = [
            found[0] for found in case.gradients(["dice"], max(draws // 2, 2), REFERENCE_EPISODES, key=1)
        ]
    reference = torch.stack(reference_draws)
    rows = [gradient_row(f"gradients/{name}", drawn, reference) for name, drawn in zip(names, samples, strict=True)]
    means = torch.nn.functional.normalize(samples.mean(1), dim=1)
    return rows, means @ means.T


def print_gradients(rows: Sequence[GradientRow], cosines: Tensor) -> None:
    """The rows, and below them the cosines between the estimators' mean gradients."""
    print(f"{'':<24}{'rel. bias':>10}{'(noise)':>9}{'rel. sd':>9}{'cosine':>8}{'norm':>9}   cosines between means")
    for row, others in zip(rows, cosines.tolist(), strict=True):
        between = "".join(f"{value:>8.3f}" for value in others)
        print(
            f"{row.name:<24}{row.relative_bias:>10.3f}{row.noise:>9.3f}{row.relative_sd:>9.2f}{row.cosine:>8.3f}"
            f"{row.norm:>9.4f}   {between}"
        )
    if any(math.isnan(value) for row in rows for value in (row.relative_bias, row.relative_sd)):
        print("nan: the noise of so few draws leaves nothing of a norm; give a larger --repeats")
    print("rel. bias: what is left after the noise beside it was taken off; far below the noise it is not resolved")
    sd = {row.name.removeprefix("gradients/"): row.relative_sd for row in rows}
    print(f"relative standard deviation of DiCE over LVC: {sd['dice'] / sd['lvc']:.2f} (published: about 2)")


def line_search_summary(path: Path) -> dict[str, Any] | None:
    """Over a run: how often the line search accepted, and what its steps gained of what they promised.

    None where the run has no such metrics (another outer optimiser).
    """
    read = ("line_search/accepted", "line_search/fraction", "expected_gain", "actual_gain")
    rows = [row for row in metrics_of(path) if all(row.get(name) is not None for name in read)]
    if not rows:
        return None
    accepted = [row for row in rows if row["line_search/accepted"]]
    expected = sum(row["expected_gain"] for row in accepted)
    return {
        "name": "gradients/line_search",
        "iterations": len(rows),
        "acceptance_rate": len(accepted) / len(rows),
        "mean_fraction": sum(row["line_search/fraction"] for row in accepted) / max(len(accepted), 1),
        "gain_actual_over_expected": sum(row["actual_gain"] for row in accepted) / expected if expected else math.nan,
    }


def run_gradients(case: GradientCase, draws: int, run: Path | None) -> list[dict[str, Any]]:
    """Measures, prints, and returns the rows as JSON."""
    config = dataclasses.replace(
        case.config,
        **{f.name: f.default for f in dataclasses.fields(LearnerConfig) if f.name in _NOT_OF_THE_ESTIMATOR},
    )
    rows, cosines = measure_gradients(dataclasses.replace(case, config=config), draws)
    print_gradients(rows, cosines)
    found = [dataclasses.asdict(row) | {"cosines": c} for row, c in zip(rows, cosines.tolist(), strict=True)]
    # JSON has no word for NaN.
    found = [{k: None if v != v else v for k, v in row.items()} for row in found]
    searched = line_search_summary(run) if run else None
    if searched:
        print(
            f"{run}: the line search accepted {searched['acceptance_rate']:.0%} of {searched['iterations']} steps, at "
            f"{searched['mean_fraction']:.2f} of their length on average, and gained "
            f"{searched['gain_actual_over_expected']:.2f} of what the gradient promised"
        )
        found.append(searched)
    return found
