"""Reading finished or running runs: a run directory, or one under `pretrained/`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metarl.algorithms.meta_learner import MetaLearner
from metarl.experiment.checkpoint import read_checkpoint
from metarl.experiment.checks import read_config
from metarl.experiment.config import TrainConfig
from metarl.experiment.errors import UserError
from metarl.experiment.policy_run import make_policy, saved_inner_lr
from metarl.functional import constants, load_constants
from metarl.policies import GaussianMLPPolicy
from metarl.policy_gradient import PolicyInnerLoop
from metarl.types import Params, TaskFamily


@dataclass(frozen=True)
class LoadedRun:
    """A trained policy with what is needed to adapt it.

    Attributes:
        path: The run directory.
        config: Its settings, with the device it is looked at on (the CPU, wherever it was trained) and the inner step
            size that validation chose, where it had a choice.
        family: Its task family.
        policy: The policy module, with the checkpoint's constants; its parameters are in `params`.
        inner: How the policy adapts.
        params: Meta-parameters of the checkpoint.
        checkpoint: Which checkpoint it is.
        iteration: Iterations behind it.
    """

    path: Path
    config: TrainConfig
    family: TaskFamily
    policy: GaussianMLPPolicy
    inner: PolicyInnerLoop
    params: Params
    checkpoint: str
    iteration: int

    def learner(self) -> MetaLearner:
        """A learner with these parameters, to `adapt` them to a task; as to training it is a new one (iteration 0)."""
        config = self.config
        learner = MetaLearner(
            self.family, self.policy, config.learner, config.seed, num_threads=config.num_threads or None
        )
        learner.params = dict(self.params)
        return learner


def load_run(path: Path, make_family: Callable[[TrainConfig], TaskFamily], checkpoint: str = "best") -> LoadedRun:
    """Loads a run.

    Args:
        path: Run directory.
        make_family: Builds the task family a config names (metarl imports no environments itself).
        checkpoint: "best" (by validation on training tasks; "last" where there was none yet), "last", or
            "iteration_N" for one that was kept.

    Raises:
        UserError: If it is not a run, or its checkpoint is missing or unusable.
    """
    trained = read_config(path)
    config = dataclasses.replace(trained, device="cpu")
    file = find_checkpoint(path, checkpoint)
    family = make_family(config)
    policy = make_policy(family, config.policy, config.seed)
    like = {"params": config.learner.inner_loop(policy).initial_meta(), "constants": constants(policy)}
    state = read_checkpoint(file, config.identity, like, MetaLearner.counters, trained)
    learner = state["learner"]
    load_constants(policy, learner["constants"])
    settings = dataclasses.replace(config.learner, inner_lr=saved_inner_lr(state, config, str(file)))
    config, inner = dataclasses.replace(config, learner=settings), settings.inner_loop(policy)
    return LoadedRun(path, config, family, policy, inner, learner["params"], file.stem, learner["iteration"])


def find_checkpoint(path: Path, name: str) -> Path:
    """The file of a run's checkpoint.

    Args:
        path: Run directory.
        name: As for `load_run`.

    Raises:
        UserError: If there is none of that name.
    """
    if Path(name).name != name or name.startswith(".") or "\\" in name:
        raise UserError(f"{name!r} is not the name of a checkpoint of the run; best, last and iteration_N are.")
    folder = path / "checkpoints"
    # Before its first validation a run has no best checkpoint; the last one is what there is to look at.
    if name == "best" and not (folder / "best.pt").exists() and (folder / "last.pt").exists():
        name = "last"
    file = folder / f"{name}.pt"
    if not file.exists():
        present = ", ".join(sorted(p.stem for p in folder.glob("*.pt"))) or "none yet"
        raise UserError(f"{path} has no checkpoint '{name}'; it has: {present}.")
    return file
