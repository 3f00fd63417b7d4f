"""Arguments of benchmark.py, and what they may be."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import _common
import tyro

from metarl.algorithms.composition import MOST, Ranges, as_words
from metarl.algorithms.config import LearnerConfig
from metarl.experiment.checks import check, policy_words
from metarl.experiment.config import PolicyConfig, TrainConfig, check_device
from metarl.experiment.errors import UserError
from metarl.experiment.outputs import check_outputs
from metarl.experiment.sizes import check_evaluation_fits, check_policy_fits
from metarl.types import TaskFamily

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


_RANGES: Ranges = {"positive and below 2**31": (lambda x: 0 < x < MOST, ("repeats", "worlds"))}

_SIZES = ("family", "meta_batch_size", "episodes_per_task", "hidden_sizes", "activation", "inner_lr", "fvp_fraction")
_UNREAD = {
    "rollout": ("fvp_fraction", "chunk_size"),
    "gradients": ("fvp_fraction",),
    "gradients --run": (*_SIZES, "chunk_size"),
    "fewshot": _SIZES,
}
"""What a measurement has no use for."""


def configured(arguments: Arguments) -> TrainConfig:
    """The settings to measure under.

    Raises:
        UserError: If one makes no sense.
    """
    _common.check_ranges(arguments, _RANGES)
    if arguments.what == "gradients" and arguments.repeats == 1:
        raise UserError("--repeats is 1; for gradients it must be 2 or more.")
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
    _check_read(arguments)
    return config


def _check_read(arguments: Arguments) -> None:
    """Refuses settings that the measurement would ignore."""
    what = f"{arguments.what} --run" if arguments.run else arguments.what
    unread = _UNREAD.get(what, ())
    if arguments.worlds and arguments.device == "cpu":
        unread += ("episodes_per_task",)
        what += " --worlds"
    for field in dataclasses.fields(Arguments):
        value = getattr(arguments, field.name)
        if field.name in unread and value != field.default:
            raise UserError(f"{_common.flag(field.name)} is {as_words(value)}; {what} does not read it: leave it out.")


def check_worlds(arguments: Arguments, config: TrainConfig, family: TaskFamily) -> None:
    """Refuses more worlds, or a larger policy, than fit into memory.

    Raises:
        UserError: Naming the flag.
    """
    label = policy_words().label
    if not arguments.worlds:
        check_policy_fits(config, family, label)
        return
    check_policy_fits(config, family, label, training=False)
    for worlds in arguments.worlds:
        check_evaluation_fits(
            family, lambda _: "--worlds", num_tasks=1, worlds=worlds, steps=0, device=arguments.device
        )
