"""The evaluation protocol on a loaded run: which tasks, which budget, which table comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metarl.algorithms.meta_learner import make_chunks
from metarl.evaluation import AdaptationCurve, evaluate_adaptation
from metarl.experiment.loading import LoadedRun
from metarl.experiment.progress import status
from metarl.noise import EVALUATION
from metarl.rollout_adaptation import RolloutAdaptation

DEFAULT_NUM_TASKS, DEFAULT_STEPS = 40, 3


def default_steps(run: LoadedRun) -> int:
    """Inner steps to evaluate: 3, or as many as validation took where those are more; 0 for what does not adapt."""
    steps = run.config.validation.steps
    return max(DEFAULT_STEPS, steps) if steps else 0


def test_tasks(run: LoadedRun, num_tasks: int | None, seed: int) -> tuple[Tensor, str]:
    """The tasks to evaluate on and where they come from: the variant's own fixed ones unless a number is asked for."""
    published = run.family.published_tasks()
    if published is not None and (num_tasks is None or num_tasks == len(published)):
        kind = "published" if run.family.spec.published else "fixed"
        return published, f"the {len(published)} {kind} test tasks"
    count = num_tasks or DEFAULT_NUM_TASKS
    return run.family.sample_tasks(count, "test", seed), f"{count} tasks drawn from the test split"


def on_published_tasks(run: LoadedRun, tasks: Tensor) -> bool:
    """Whether these are the tasks on which the variant's published numbers were measured."""
    published = run.family.published_tasks()
    return published is not None and torch.equal(tasks, published)


def evaluate_run(
    run: LoadedRun,
    tasks: Tensor,
    *,
    num_steps: int,
    episodes_per_task: int | None,
    seed: int = 0,
    num_threads: int | None = None,
    device: str = "cpu",
    keep_rollouts: bool = False,
) -> tuple[AdaptationCurve, RolloutAdaptation]:
    """Adaptation curve of a run on `tasks`, with the run's own inner step sizes.

    Args:
        run: The loaded run.
        tasks: `[task, task_dim]`.
        num_steps: Inner steps.
        episodes_per_task: Episodes per task and step; None takes twice the training data, counted as training
            counts it (in time steps if it has a budget of those), which is the published protocol.
        seed: Noise seed of the evaluation, apart from every training stream.
        num_threads: Worker threads; None takes the available cores.
        device: Where it runs.
        keep_rollouts: Keep what was recorded, as `evaluate_adaptation` does.
    """
    learner = run.config.learner
    steps_per_task = 2 * learner.steps_per_task if episodes_per_task is None and learner.steps_per_task else None
    episodes_per_task = episodes_per_task or 2 * learner.episodes_per_task
    here = replace(
        learner,
        meta_batch_size=len(tasks),
        episodes_per_task=episodes_per_task,
        steps_per_task=steps_per_task or 0,
    )
    with status(f"adapting to {len(tasks)} tasks, {num_steps} inner steps ..."):
        return evaluate_adaptation(
            run.family,
            run.inner,
            run.params,
            tasks,
            num_steps=num_steps,
            noise_key=(EVALUATION, seed),
            settings=learner.advantage_settings(),
            episodes_per_task=episodes_per_task,
            steps_per_task=steps_per_task,
            device=device,
            chunks=make_chunks(here, run.policy, run.family.horizon, device, num_threads),
            keep_rollouts=keep_rollouts,
        )


def evaluation_record(run: LoadedRun, tasks: Tensor, seed: int, curve: AdaptationCurve) -> dict[str, Any]:
    """The JSON that `evaluate.py --json` writes: returns are undiscounted sums, means over a task's episodes.

    Args:
        run: The loaded run.
        tasks: What it was evaluated on, `[task, task_dim]`.
        seed: Noise seed of the evaluation.
        curve: From `evaluate_run`.
    """
    family, _, variant = run.config.family.partition("@")
    return {
        "family": family,
        "variant": variant,
        "algorithm": run.config.algorithm,
        "checkpoint": run.checkpoint,
        "iteration": run.iteration,
        "seed": run.config.seed,
        "evaluation_seed": seed,
        "steps": curve.returns.shape[1] - 1,
        "num_tasks": len(curve.returns),
        "episodes": curve.episodes,
        "env_steps": curve.env_steps,
        "nonfinite_steps": curve.nonfinite_steps,
        "return_mean": curve.mean.tolist(),
        "return_ci95": curve.ci95.tolist(),
        "per_task": curve.returns.tolist(),
        "tasks": tasks.tolist(),
    }
