"""Settings of the few-shot learners and of their training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metarl.inner_loop import Adapted, LearnedLR


@dataclass(frozen=True)
class MethodConfig:
    """Settings of a few-shot learner; each method reads some of them (docs/fewshot.md).

    Attributes:
        meta_batch_size: Tasks of an outer step.
        inner_lr: Step size of inner steps; where step sizes are learned, what they start from.
        num_inner_steps: Inner steps in training. 0 trains one network on all tasks, without adaptation.
        first_order: Take inner gradients for constants (FOMAML).
        learned_lr: Learn inner step sizes, one per parameter entry (Meta-SGD): no, shared by all steps, or per_step.
        adapted: What inner steps change: all, or the head (ANIL).
        inner_batch_size: Examples of a mini-batch of Reptile's inner steps.
        outer_optimizer: What follows the meta-gradient: adam, or sgd.
        outer_lr: Step size of the outer optimiser.
        outer_lr_decay: Share of the outer step size that is lost by the end of training, falling linearly.
        full_context: Matching networks: embed the support set as a whole.
        learn_scale: Matching networks: learn how sharp the attention is; published without.
        siamese_loss: Siamese networks: contrastive, or cross_entropy of pairs.
        margin: Siamese networks: distance up to which the contrastive loss pushes different classes apart.
        lstm_size: Meta-LSTM: width of the LSTM that reads the gradients.
        tc_filters: SNAIL: filters of each dense block of a TC block.
        attention_keys: SNAIL: width of the keys of each attention block; its values are half as wide.
        chunk_size: Tasks that are computed at once, which bounds memory; 0 chooses (docs/performance.md).
    """

    meta_batch_size: int = 32
    inner_lr: float = 0.4
    num_inner_steps: int = 1
    first_order: bool = False
    learned_lr: LearnedLR = "no"
    adapted: Adapted = "all"
    inner_batch_size: int = 10
    outer_optimizer: Literal["adam", "sgd"] = "adam"
    outer_lr: float = 0.001
    outer_lr_decay: float = 0.0
    full_context: bool = False
    learn_scale: bool = True
    siamese_loss: Literal["contrastive", "cross_entropy"] = "contrastive"
    margin: float = 3.0
    lstm_size: int = 20
    tc_filters: int = 128
    attention_keys: tuple[int, ...] = (64, 256, 512)
    chunk_size: int = 0
