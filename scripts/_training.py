"""What train.py and train_fewshot.py share: finding, opening and running a run."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import _common

from metarl.experiment.errors import UserError
from metarl.experiment.run_directory import RunDirectory
from metarl.experiment.trainer import Trainer


def flag_value(arguments: list[str], flag: str) -> str | None:
    """The value of `--flag VALUE` or `--flag=VALUE`, before tyro parses anything: defaults depend on it.

    As in tyro the last one counts, and `--run_dir` is `--run-dir`.
    """
    value = None
    for here, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, attached = here.partition("=")
        if name.replace("_", "-") == flag:
            value = attached if equals else following
    return value


def given_number(arguments: list[str], flag: str) -> int | None:
    """The value of `--flag`, if it is given and a whole number; what else it may be, tyro will say."""
    try:
        return int(flag_value(arguments, flag) or "")
    except ValueError:
        return None


def known(name: str, names: Collection[str], what: str) -> str:
    """The name, if it is one of `names`.

    Raises:
        UserError: Otherwise, with the nearest one.
    """
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"Unknown {what} {name!r}{hint}. Known: {', '.join(names)}. See --list.")
    return name


def check_first(name: str, default: str) -> None:
    """Refuses a name that does not stand first: the settings would be those recommended for another one.

    Raises:
        UserError: Saying where it belongs.
    """
    if name != default:
        raise UserError(f"{name} must stand before the flags; the settings depend on it.")


def resumed_run(arguments: list[str]) -> str | None:
    """The directory of --resume, if it is given.

    Raises:
        UserError: If a directory is named twice, or not at all.
    """
    resume, run_dir = flag_value(arguments, "--resume"), flag_value(arguments, "--run-dir")
    if resume is not None and run_dir is not None:
        raise UserError("--resume names the run directory already; leave out --run-dir.")
    for flag, value in (("--resume", resume), ("--run-dir", run_dir)):
        if value == "":
            raise UserError(f"{flag} is empty; it must name a directory.")
    return resume


def check_unchanged(resume: str, config: Any, before: Any) -> None:
    """Refuses to resume a run with other settings than its own, the number of iterations aside.

    Raises:
        UserError: Naming what differs.
    """
    changed = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(before, f.name)]
    changed = [name for name in changed if name != "iterations"]
    if changed:
        raise UserError(
            f"--resume continues {resume} with its own settings; only --iterations may change, not those under "
            f"{', '.join(changed)}."
        )


def open_run(run_dir: Path | None, resume: Path | None, config: Any, name: str) -> RunDirectory:
    """The run directory the arguments name, held by this process; runs/<name>-<time> if they name none."""
    if resume is not None:
        return RunDirectory.resume(resume)
    return RunDirectory.create(run_dir or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}", config)


def announce(trainer: Trainer, what: str, seed: int) -> None:
    """Says what is about to be trained, and where."""
    print(
        f"{what}: iteration {trainer.learner.iteration} of {trainer.config.iterations}, seed {seed}, run directory "
        f"{trainer.run.path}",
        flush=True,
    )


def train(trainer: Trainer, script: str) -> None:
    """Trains to the end, or leaves after Ctrl-C, saying how to go on; a run that has learned nothing has failed."""
    finished = trainer.train()
    skipped = trainer.learner.state_dict()["skipped_updates"]
    if skipped:
        print(f"Skipped {skipped} updates whose data or gradients were not finite.")
    if not finished:
        print(f"Stopped after iteration {trainer.learner.iteration}.")
        print(f"Continue with: {_common.command(script, '--resume', trainer.run.path)}")
        # What a shell expects of a command ended by Ctrl-C, so that `train && evaluate` stops here too.
        sys.exit(130)
    check_learned(trainer)


def check_learned(trainer: Trainer) -> None:
    """Ends the program with 1 where every update was skipped."""
    if 0 < trainer.learner.iteration == trainer.learner.state_dict()["skipped_updates"]:
        print(
            f"error: {trainer.run.path} has learned nothing: no iteration had finite data and gradients; look for what "
            "makes rewards, observations or losses infinite, or take smaller steps.",
            file=sys.stderr,
        )
        sys.exit(1)
