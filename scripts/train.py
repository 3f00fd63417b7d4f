"""Train a meta-learner on a task family.

    python scripts/train.py maml-trpo --family navigation-2d
    python scripts/train.py maml-trpo --family halfcheetah-vel@maml2017 --iterations 30 --run-dir runs/cheetah
    python scripts/train.py --resume runs/cheetah --iterations 60

Settings start from the preset of the algorithm on that family; every flag below changes one. `--list` shows families,
variants and algorithms.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import _common
import tyro
from _training import (
    announce,
    check_first,
    check_unchanged,
    flag_value,
    given_number,
    known,
    open_run,
    resumed_run,
    train,
)

from metarl.algorithms.learners import LEARNERS
from metarl.experiment.checks import check, policy_words, read_config
from metarl.experiment.config import TrainConfig
from metarl.experiment.errors import UserError, reports_errors
from metarl.experiment.presets import preset
from metarl.experiment.sizes import check_policy_fits


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


def given_sizes(arguments: list[str]) -> dict[str, int]:
    """The settings given on the command line that others of the preset are recommended for.

    Raises:
        UserError: If there are two budgets.
    """
    names = ("num_inner_steps", "episodes_per_task", "steps_per_task")
    found = {name: given_number(arguments, f"--{name.replace('_', '-')}") for name in names}
    given = {name: number for name, number in found.items() if number is not None}
    if given.get("steps_per_task") and "episodes_per_task" in given:
        raise UserError(
            f"--episodes-per-task is {given['episodes_per_task']} and --steps-per-task {given['steps_per_task']}: a "
            "budget of steps takes whole episodes until they hold so many; give one of the two."
        )
    return given


def say_what_goes(config: TrainConfig, arguments: list[str]) -> None:
    """Says which recommended weights were left out, because they are for another number of inner steps."""
    weights, steps = preset(config.algorithm, config.family).learner.step_weights, config.learner.num_inner_steps
    if len(weights) not in (0, steps) and flag_value(arguments, "--step-weights") is None:
        print(
            f"note: --num-inner-steps is {steps}; the recommended --step-weights {' '.join(map(str, weights))} are for "
            f"{len(weights)} steps and are left out.",
            file=sys.stderr,
        )


def parse(arguments: list[str]) -> Arguments:
    """Parses the command line on top of the preset, or of the resumed run's own settings."""
    resume = resumed_run(arguments)
    algorithm = arguments[0] if arguments and not arguments[0].startswith("-") else "maml-trpo"
    known(algorithm, LEARNERS, "algorithm")
    wants_help = "--help" in arguments or "-h" in arguments
    if resume is not None and not wants_help:
        default = read_config(Path(resume))
        _common.resolve_family(default.family, Path(resume) / "config.json")
    else:
        family = _common.resolve_family(flag_value(arguments, "--family") or "navigation-2d")
        default = preset(algorithm, family, **given_sizes(arguments))
    parsed = tyro.cli(Arguments, default=Arguments(default), args=arguments, description=__doc__, prog="train.py")
    config = dataclasses.replace(parsed.config, family=_common.resolve_family(parsed.config.family))
    check(config, usual=default)
    check_first(config.algorithm, default.algorithm)
    if resume is not None:
        check_unchanged(resume, config, default)
    return dataclasses.replace(parsed, config=config)


@reports_errors
def main() -> None:
    _common.handle_list(sys.argv)
    arguments = parse(sys.argv[1:])
    config = arguments.config
    family = _common.make_family(config.family, config.observe_task)
    check_policy_fits(config, family, policy_words().label)
    if arguments.resume is None:
        say_what_goes(config, sys.argv[1:])
    # After the arguments are known to be good: this import brings TensorBoard and takes a moment.
    from metarl.experiment.policy_run import make_learner, make_trainer

    learner = make_learner(family, config)
    with open_run(arguments.run_dir, arguments.resume, config, f"{config.family}-{config.algorithm}") as run:
        trainer = make_trainer(learner, config, run, resume=arguments.resume is not None)
        announce(trainer, f"{config.algorithm} on {config.family}", config.seed)
        train(trainer, "train.py")
    print(f"Done: {learner.iteration} iterations, {learner.env_steps:,} environment steps.")
    print(f"Next: {_common.command('evaluate.py', run.path)}   and   {_common.command('visualize.py', run.path)}")


if __name__ == "__main__":
    main()
