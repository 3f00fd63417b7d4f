"""Arguments of benchmark.py, and what they may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from metarl.algorithms.config import LearnerConfig
from metarl.experiment.checks import check
from metarl.experiment.config import PolicyConfig, TrainConfig, check_device
from metarl.experiment.errors import UserError
from metarl.experiment.outputs import check_outputs

SWEEP = tuple(2**k for k in range(6, 18))
"""Numbers of worlds tried on a GPU."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of benchmark.py.

    Attributes:
        what: What to measure.
        family: Task family.
        meta_batch_size: Tasks.
        episodes_per_task: Episodes per task and phase.
        hidden_sizes: Policy layers.
        activation: Policy activation.
        inner_lr: Inner step size.
        fvp_fraction: Share of the tasks in the Fisher metric.
        chunk_size: Tasks handled together in the update; 0 chooses as training does.
        repeats: Measurements, of which the median by CPU time is reported (by default 3), or gradients drawn (40).
        run: For gradients: the run whose policy, family and settings are taken instead of those here.
        device: Device.
        backend: Physics engine: auto, or warp with --device cpu for MuJoCo Warp's CPU device (slow; to try the code).
        worlds: Numbers of worlds for rollout, each with a power of two of tasks; by default 64 to 131072 on cuda and
            the tasks and episodes above on cpu.
        num_threads: Threads of physics and update; 0 takes the available cores.
        json: Where to write the rows as JSON.
        plot: Where to draw them (PNG).
    """

    what: tyro.conf.Positional[Literal["rollout", "update", "iteration", "learners", "gradients", "fewshot"]]
    family: str = "halfcheetah-vel"
    meta_batch_size: int = 40
    episodes_per_task: int = 20
    hidden_sizes: tuple[int, ...] = (100, 100)
    activation: Literal["tanh", "relu"] = "tanh"
    inner_lr: float = 0.1
    fvp_fraction: float = 1.0
    chunk_size: int = 0
    repeats: int | None = None
    run: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    backend: Literal["auto", "mujoco", "warp", "torch"] = "auto"
    worlds: tuple[int, ...] = ()
    num_threads: int = 0
    json: Path | None = None
    plot: Path | None = None


def configured(arguments: Arguments) -> TrainConfig:
    """The settings to measure under.

    Raises:
        UserError: If one makes no sense.
    """
    if arguments.repeats is not None and arguments.repeats < (2 if arguments.what == "gradients" else 1):
        raise UserError(f"--repeats is {arguments.repeats}; it must be positive, and for gradients 2 or more.")
    config = TrainConfig(
        family=arguments.family,
        device=arguments.device,
        num_threads=arguments.num_threads,
        policy=PolicyConfig(hidden_sizes=arguments.hidden_sizes, activation=arguments.activation),
        learner=LearnerConfig(
            meta_batch_size=arguments.meta_batch_size,
            episodes_per_task=arguments.episodes_per_task,
            inner_lr=arguments.inner_lr,
            fvp_fraction=arguments.fvp_fraction,
            chunk_size=arguments.chunk_size,
        ),
    )
    check(config)
    check_device(config.device)
    if min(arguments.worlds, default=1) < 1:
        raise UserError(f"--worlds is {' '.join(map(str, arguments.worlds))}; each must be positive.")
    check_outputs(json=arguments.json, plot=arguments.plot)
    if arguments.worlds and arguments.what != "rollout":
        raise UserError(
            f"--worlds belongs to rollout; {arguments.what} takes --meta-batch-size and --episodes-per-task."
        )
    if arguments.what == "gradients" and (arguments.device != "cpu" or arguments.plot):
        raise UserError("gradients are measured on the CPU and have no plot; leave out --device and --plot.")
    if arguments.what not in ("rollout", "update") and arguments.backend != "auto":
        raise UserError(f"--backend is {arguments.backend}; {arguments.what} takes the physics of its --device.")
    if arguments.what == "fewshot" and (arguments.device != "cpu" or arguments.plot):
        raise UserError("fewshot is measured on the CPU and has no plot; leave out --device and --plot.")
    if arguments.run and arguments.what != "gradients":
        raise UserError(f"--run belongs to gradients; {arguments.what} takes --family and the policy's sizes.")
    return config
