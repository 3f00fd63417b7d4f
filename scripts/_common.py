"""What the scripts share: the listing, family construction with clear errors, and start-up settings."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING


def _open_streams() -> None:
    """Gives the process the standard streams that it was started without, and makes them take every text.

    Otherwise the next file to be opened would be in their place, and take what is printed. A name that is no text in
    the terminal's encoding is printed with escapes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


_open_streams()


def _leave(number: int, frame: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


# Until main runs there is nothing to save, and an exception in the middle of somebody's import would be a traceback.
_started_here = str(getattr(sys.modules["__main__"], "__file__", "")).startswith(str(Path(__file__).parent))
if _started_here and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)

REPOSITORY = Path(__file__).resolve().parent.parent
# A script's own directory is the first entry of sys.path; `envs` and `metarl` must be this checkout's, also where
# the package is not installed.
sys.path.insert(0, str(REPOSITORY))

from metarl.algorithms.composition import Ranges, out_of_range  # noqa: E402
from metarl.experiment.errors import UserError, one_line  # noqa: E402

if TYPE_CHECKING:
    from envs.family import TaskFamily
    from metarl.experiment.config import TrainConfig
    from metarl.experiment.loading import LoadedRun


def prepare_display() -> None:
    """Chooses off-screen rendering where no display exists and MUJOCO_GL does not say otherwise."""
    import ctypes.util

    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl" if ctypes.util.find_library("EGL") else "osmesa")


def command(script: str, *arguments: object) -> str:
    """A command line for another script of this directory that works as it stands where the user is now."""

    def here(path: str) -> str:
        inside = os.path.relpath(path)
        return path if inside.startswith(os.pardir) else inside

    parts = [here(sys.executable) if sys.executable else "python", here(str(Path(__file__).parent / script))]
    return shlex.join([*parts, *map(str, arguments)])


def handle_list(arguments: list[str]) -> None:
    """Prints families, variants, algorithms, data sets and methods and leaves, if `--list` is among the arguments.

    Every script calls it first: from here on Ctrl-C is an exception, which `reports_errors` handles.
    """
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "--list" not in arguments:
        return
    from envs.registry import describe
    from metarl.algorithms.learners import LEARNERS

    print("Task families and variants:")
    for name, line in describe():
        print(f"  {name:<28} {line}")
    print("\nAlgorithms:")
    for name, learner in LEARNERS.items():
        print(f"  {name:<28} {learner.summary}")
    from metarl.experiment.fewshot_config import DATASETS
    from metarl.fewshot.methods import METHODS

    print("\nFew-shot data sets (train_fewshot.py):")
    for name, line in DATASETS.items():
        print(f"  {name:<28} {line}")
    print("\nFew-shot methods:")
    for name, method in METHODS.items():
        print(f"  {name:<28} {method.summary}")
    raise SystemExit(0)


def resolve_family(name: str, source: Path | None = None) -> str:
    """`family` or `family@variant` -> `family@variant`.

    Args:
        name: Family name.
        source: The file it stands in; None for the command line.

    Raises:
        UserError: For an unknown name, with the nearest ones.
    """
    from envs.registry import resolve

    try:
        return "@".join(resolve(name))
    except ValueError as error:
        raise UserError(f"{source}: {error}" if source else f"{error} See --list.") from None


def make_family(name: str, observe_task: bool = False, source: Path | None = None):
    """Builds a task family and one world of it: a physics engine that is missing, too old or unusable shows here.

    Args:
        name: `family` or `family@variant`.
        observe_task: Show the policy its task.
        source: The file the name stands in; None for the command line.

    Raises:
        UserError: In one sentence, if the name is unknown or the family cannot run here.
    """
    from envs.registry import make

    name = resolve_family(name, source)
    try:
        family = make(name, observe_task=observe_task)
        family.batch(family.sample_tasks(1), 1)
    # AttributeError is how PyOpenGL, which MuJoCo imports, says that a library is missing.
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:
        raise UserError(f"{name} cannot run here: {one_line(error)}") from error
    return family


def check_ranges(arguments: object, ranges: Ranges) -> None:
    """Refuses arguments that are out of range; None, a default that is chosen later, passes.

    Raises:
        UserError: Naming the first flag.
    """
    problem = out_of_range(arguments, ranges)
    if problem is not None:
        raise UserError(f"{flag(problem[0])} {problem[1]}")


def flag(name: str) -> str:
    """The flag of an argument."""
    return f"--{name.replace('_', '-')}"


def load_run(path: Path, checkpoint: str = "best"):
    """Loads a run directory (or one under `pretrained/`) with its family; see `metarl.experiment.loading`."""
    from metarl.experiment.checks import policy_words
    from metarl.experiment.loading import load_run
    from metarl.experiment.sizes import check_policy_fits

    source = path / "config.json"

    def family_of(config: TrainConfig) -> TaskFamily:
        family = make_family(config.family, config.observe_task, source)
        check_policy_fits(config, family, policy_words(source).label, training=False)
        return family

    return load_run(path, family_of, checkpoint)


def check_evaluation(
    run: LoadedRun, num_tasks: int | None, episodes: int | None, steps: int, device: str = "cpu"
) -> None:
    """Refuses an evaluation that does not fit into memory; None: as many as the protocol takes.

    Raises:
        UserError: Naming the flag.
    """
    from metarl.experiment.evaluate_run import DEFAULT_NUM_TASKS
    from metarl.experiment.sizes import check_evaluation_fits

    worlds = episodes or 2 * run.config.learner.worlds_per_task(run.family.horizon)
    num_tasks = num_tasks or DEFAULT_NUM_TASKS
    check_evaluation_fits(run.family, flag, num_tasks=num_tasks, worlds=worlds, steps=steps, device=device)


def is_fewshot_run(path: Path) -> bool:
    """Whether a run directory was made by train_fewshot.py.

    Raises:
        UserError: If it is no run at all.
    """
    from metarl.experiment.config import is_fewshot
    from metarl.experiment.run_directory import read_config_file

    return is_fewshot(read_config_file(path)[0])
