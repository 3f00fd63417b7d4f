"""The published learners, each as a choice of `LearnerConfig` settings, and the references that judge them.

A learner is added by adding an entry (docs/extending.md): scripts, checkpoints, evaluation and tables then know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FINETUNING_LRS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Step sizes among which a policy that was not meta-learned finds its own, on training tasks."""


@dataclass(frozen=True)
class NamedLearner:
    """A composition with a name.

    Attributes:
        summary: One line for `--list`.
        settings: Fields of `LearnerConfig` that differ from their defaults.
        observe_task: Whether the policy sees its task.
        finetuning_lrs: Inner step sizes at test time to choose from by validation on training tasks; empty: the
            learner's own is the one.
        test_steps: Inner steps that validation and evaluation take; None leaves it to them.
        is_trained: Whether iterations change anything.
    """

    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    observe_task: bool = False
    finetuning_lrs: tuple[float, ...] = ()
    test_steps: int | None = None
    is_trained: bool = True


_VPG = {"outer_optimizer": "adam"}
_PPO = {"outer_optimizer": "adam", "outer_epochs": 5, "clip_range": 0.3}

LEARNERS: dict[str, NamedLearner] = {
    "maml-trpo": NamedLearner("Trust-region meta-policy gradient, exact second-order inner loop (Finn et al. 2017)."),
    "maml-vpg": NamedLearner("MAML with one Adam step on the meta-policy gradient per iteration.", _VPG),
    "maml-ppo": NamedLearner("MAML with several Adam steps on the clipped surrogate per iteration.", _PPO),
    "promp": NamedLearner(
        "Low-variance curvature, clipping and an inner KL penalty (Rothfuss et al. 2019).",
        {**_PPO, "inner_estimator": "lvc", "inner_kl_penalty": 5e-4},
    ),
    "e-maml-trpo": NamedLearner(
        "MAML-TRPO that credits exploration before the inner step (Stadie et al. 2018).", {"exploration_credit": 1.0}
    ),
    "e-maml-vpg": NamedLearner("The same with Adam for the trust region.", {**_VPG, "exploration_credit": 1.0}),
    "fomaml": NamedLearner(
        "MAML-TRPO without second-order terms (Finn et al. 2017, section 5.2).", {"first_order": True}
    ),
    "meta-sgd": NamedLearner(
        "Learned inner step size for every parameter entry, here with TRPO (Li et al. 2017).", {"learned_lr": "shared"}
    ),
    "anil": NamedLearner("Inner steps change the policy's head alone (Raghu et al. 2020).", {"adapted": "head"}),
    "cavia": NamedLearner(
        "Inner steps change a context input alone (Zintgraf et al. 2019).",
        {"adapted": "context", "inner_lr": 1.0},
    ),
    "reptile": NamedLearner(
        "Moves towards the adapted parameters; no meta-gradient (Nichol et al. 2018).",
        {"outer_optimizer": "reptile", "outer_lr": 1.0, "num_inner_steps": 3},
    ),
    "random-init": NamedLearner(
        "Reference: adapts from a random policy.",
        {"outer_optimizer": "none"},
        finetuning_lrs=FINETUNING_LRS,
        is_trained=False,
    ),
    "pretrain": NamedLearner(
        "Reference: one policy trained on all tasks together by TRPO, then fine-tuned.",
        {"num_inner_steps": 0},
        finetuning_lrs=FINETUNING_LRS,
    ),
    "oracle": NamedLearner(
        "Reference: a policy that sees its task, trained by TRPO; it does not adapt.",
        {"num_inner_steps": 0},
        observe_task=True,
        test_steps=0,
    ),
    "from-scratch": NamedLearner(
        "Reference: policy gradient on each task alone, from a random policy, for 50 steps.",
        {"outer_optimizer": "none", "later_lr_factor": 1.0},
        finetuning_lrs=FINETUNING_LRS,
        test_steps=50,
        is_trained=False,
    ),
}
