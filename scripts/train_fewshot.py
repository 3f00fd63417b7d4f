"""Train a few-shot learner: from a handful of labelled examples of a new task to predictions on it.

    python scripts/train_fewshot.py maml --dataset sinusoid
    python scripts/train_fewshot.py prototypical --dataset glyphs --ways 5 --shots 1 --run-dir runs/glyphs
    python scripts/train_fewshot.py --resume runs/glyphs --iterations 2000

Settings start from the recommended run of the method on that data set; every flag below changes one. `--list` shows
data sets and methods.
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

from metarl.experiment.errors import reports_errors
from metarl.experiment.fewshot_config import (
    DATASETS,
    FewShotConfig,
    check_fewshot,
    fewshot_words,
    read_fewshot_config,
)
from metarl.experiment.fewshot_presets import fewshot_preset
from metarl.experiment.fewshot_sizes import check_fewshot_fits
from metarl.fewshot.methods import METHODS


@dataclass(frozen=True)
class Arguments:
    """Arguments of train_fewshot.py.

    Attributes:
        config: The run's settings.
        run_dir: Where the run is kept; runs/<dataset>-<method>-<time> if not given.
        resume: Continue the run in this directory; only --iterations may change.
    """

    config: Annotated[FewShotConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    resume: Path | None = None


def parse(arguments: list[str]) -> Arguments:
    """Parses the command line on top of the preset, or of the resumed run's own settings."""
    resume = resumed_run(arguments)
    method = known(arguments[0], METHODS, "method") if arguments and not arguments[0].startswith("-") else "maml"
    if resume is not None and not {"--help", "-h"} & set(arguments):
        default = read_fewshot_config(Path(resume))
    else:
        dataset = known(flag_value(arguments, "--dataset") or "glyphs", DATASETS, "data set")
        default = fewshot_preset(method, dataset, given_number(arguments, "--ways") or 5)
    parsed = tyro.cli(
        Arguments, default=Arguments(default), args=arguments, description=__doc__, prog="train_fewshot.py"
    )
    if resume is not None:
        check_unchanged(resume, parsed.config, default)
    else:
        check_first(parsed.config.method, default.method)
    check_fewshot(parsed.config, usual=default)
    if resume is not None:
        if default.learner.outer_lr_decay and parsed.config.iterations != default.iterations:
            print(
                f"note: the outer step size falls over all iterations; with {parsed.config.iterations} of them it is "
                f"not what it would be in a run that had so many from the beginning.",
                file=sys.stderr,
            )
    elif parsed.config.data_dir:
        # The run can then be evaluated from anywhere.
        config = dataclasses.replace(parsed.config, data_dir=str(Path(parsed.config.data_dir).resolve()))
        parsed = dataclasses.replace(parsed, config=config)
    return parsed


@reports_errors
def main() -> None:
    _common.handle_list(sys.argv)
    arguments = parse(sys.argv[1:])
    config = arguments.config
    # After the arguments are known to be good: these bring TensorBoard and take a moment.
    from metarl.experiment.fewshot_run import load_images, make_fewshot_learner, make_fewshot_trainer, make_source

    images = None if config.is_regression else load_images(config)
    source, test_source = make_source(config, images), make_source(config, images, test=True)
    check_fewshot_fits(config, source, fewshot_words().label)
    learner = make_fewshot_learner(config, source)
    with open_run(arguments.run_dir, arguments.resume, config, f"{config.dataset}-{config.method}") as run:
        trainer = make_fewshot_trainer(learner, test_source, config, run, resume=arguments.resume is not None)
        tested = f", tested {config.setting}" if config.test_shots not in (0, config.shots) else ""
        trained = dataclasses.replace(config, test_shots=0).setting
        announce(trainer, f"{config.method} on {config.dataset}, {trained}{tested}", config.seed)
        train(trainer, "train_fewshot.py")
    print(f"Done: {learner.iteration} iterations, {learner.iteration * config.learner.meta_batch_size:,} tasks.")
    print(f"Next: {_common.command('evaluate.py', run.path)}   and   {_common.command('visualize.py', run.path)}")


if __name__ == "__main__":
    main()
