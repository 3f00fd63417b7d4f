"""Train a meta-learner on a task family.

    python scripts/train.py maml-trpo --family navigation-2d
    python scripts/train.py maml-trpo --family halfcheetah-vel@maml2017 --iterations 30 --run-dir runs/cheetah
    python scripts/train.py --resume runs/cheetah --iterations 60

Settings start from the preset of the algorithm on that family; every flag below changes one. `--list` shows families,
variants and algorithms.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import _common
import tyro

from metarl.algorithms.learners import LEARNERS
from metarl.experiment.checks import check
from metarl.experiment.config import TrainConfig
from metarl.experiment.errors import UserError, reports_errors
from metarl.experiment.presets import preset
from metarl.experiment.run_directory import RunDirectory, read_config

if TYPE_CHECKING:
    from metarl.experiment.trainer import Trainer


@dataclass(frozen=True)
class Arguments:
    """Arguments of train.py.

    Attributes:
        config: The run's settings.
        run_dir: Where the run is kept; runs/<family>-<algorithm>-<time> if not given.
        resume: Continue the run in this directory; only --iterations may change (a run extended later was also
            validated at its former end).
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    resume: Path | None = None


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


def parse(arguments: list[str]) -> Arguments:
    """Parses the command line on top of the preset, or of the resumed run's own settings."""
    resume, run_dir = flag_value(arguments, "--resume"), flag_value(arguments, "--run-dir")
    algorithm = arguments[0] if arguments and not arguments[0].startswith("-") else "maml-trpo"
    if algorithm not in LEARNERS:
        near = difflib.get_close_matches(algorithm, LEARNERS, n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"Unknown algorithm {algorithm!r}{hint}. Known: {', '.join(LEARNERS)}. See --list.")
    wants_help = "--help" in arguments or "-h" in arguments
    if resume is not None and run_dir is not None:
        raise UserError("--resume names the run directory already; leave out --run-dir.")
    for flag, value in (("--resume", resume), ("--run-dir", run_dir)):
        if value == "":
            raise UserError(f"{flag} is empty; it must name a directory.")
    if resume is not None and not wants_help:
        default = read_config(Path(resume))
        _common.resolve_family(default.family, Path(resume) / "config.json")
    else:
        default = preset(algorithm, _common.resolve_family(flag_value(arguments, "--family") or "navigation-2d"))
    parsed = tyro.cli(Arguments, default=Arguments(default), args=arguments, description=__doc__, prog="train.py")
    config = dataclasses.replace(parsed.config, family=_common.resolve_family(parsed.config.family))
    check(config)
    if resume is not None and dataclasses.replace(config, iterations=default.iterations) != default:
        changed = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(default, f.name)]
        raise UserError(
            f"--resume continues {resume} with its own settings; only --iterations may change, not those under "
            f"{', '.join(name for name in changed if name != 'iterations')}."
        )
    return dataclasses.replace(parsed, config=config)


@reports_errors
def main() -> None:
    _common.handle_list(sys.argv)
    arguments = parse(sys.argv[1:])
    config = arguments.config
    family = _common.make_family(config.family, config.observe_task)
    # After the arguments are known to be good: this import brings TensorBoard and takes a moment.
    from metarl.experiment.trainer import Trainer, make_learner

    learner = make_learner(family, config)
    with open_run(arguments) as run:
        train(Trainer(learner, config, run, resume=arguments.resume is not None))


def open_run(arguments: Arguments) -> RunDirectory:
    """The run directory the arguments name, held by this process."""
    if arguments.resume is not None:
        return RunDirectory.resume(arguments.resume)
    default = f"{arguments.config.family}-{arguments.config.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}"
    return RunDirectory.create(arguments.run_dir or Path("runs") / default, arguments.config)


def train(trainer: Trainer) -> None:
    """Trains and says what was done and what can be done next."""
    config, run, learner = trainer.config, trainer.run.path, trainer.learner
    print(
        f"{config.algorithm} on {config.family}: iteration {learner.iteration} of {config.iterations}, "
        f"seed {config.seed}, run directory {run}",
        flush=True,
    )
    finished = trainer.train()
    if learner.skipped_updates:
        print(f"Skipped {learner.skipped_updates} updates whose rollouts or gradients were not finite.")
    if not finished:
        print(f"Stopped after iteration {learner.iteration}.")
        print(f"Continue with: {_common.command('train.py', '--resume', run)}")
        # What a shell expects of a command ended by Ctrl-C, so that `train && evaluate` stops here too.
        sys.exit(130)
    print(f"Done: {learner.iteration} iterations, {learner.env_steps:,} environment steps.")
    print(f"Next: {_common.command('evaluate.py', run)}   and   {_common.command('visualize.py', run)}")


if __name__ == "__main__":
    main()
