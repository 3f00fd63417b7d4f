"""The few-shot learners by name, and how each is made from its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from metarl.fewshot.config import MethodConfig
from metarl.fewshot.maml import MAML
from metarl.fewshot.matching import Matching
from metarl.fewshot.meta_lstm import MetaLSTM
from metarl.fewshot.method import Method
from metarl.fewshot.networks import BatchNorm, ConvNet, Network
from metarl.fewshot.prototypical import Prototypical
from metarl.fewshot.reptile import Reptile
from metarl.fewshot.siamese import Siamese
from metarl.fewshot.snail import SNAIL
from metarl.fewshot.tasks import TaskSource
from metarl.parallel import TaskChunks
from metarl.policies import MLP


@dataclass(frozen=True)
class NetworkConfig:
    """The network that a method trains: convolutions on images, fully connected layers on vectors.

    Attributes:
        channels: Images: filters of each of the four convolutions.
        pooling: Images: halve them by max-pooling instead of by stride.
        batch_norm: Images: normalise by each batch's own statistics (transductive), or predict with running ones.
        hidden_sizes: Vectors: width of each hidden layer.
    """

    channels: int = 64
    pooling: bool = False
    batch_norm: BatchNorm = "transductive"
    hidden_sizes: tuple[int, ...] = (40, 40)


@dataclass(frozen=True)
class Parts:
    """What a method is built of.

    Attributes:
        source: Where tasks come from.
        network: Settings of the network.
        config: Settings of the method.
        num_support: Most support examples that a task may have.
        seed: Seed of the initial weights.
    """

    source: TaskSource
    network: NetworkConfig
    config: MethodConfig
    num_support: int
    seed: int

    def predictor(self) -> Network:
        """A network with one output per class, or per entry of a target."""
        return Network(self._module(self.source.num_outputs))

    def embedding(self) -> tuple[Network, int]:
        """A network without an output layer, and the width of what it gives."""
        module = self._module(0)
        return Network(module), module.num_features if isinstance(module, ConvNet) else self.network.hidden_sizes[-1]

    def generator(self) -> torch.Generator:
        """Source of the weights of what is not the network."""
        return self._generator(1)

    def _generator(self, stream: int) -> torch.Generator:
        # torch keeps 32 bits of a seed, so that sums of seeds would meet again.
        return torch.Generator().manual_seed(int(np.random.SeedSequence((self.seed, stream)).generate_state(1)[0]))

    def _module(self, num_outputs: int) -> nn.Module:
        generator, shape = self._generator(0), self.source.input_shape
        if len(shape) == 3:
            network = self.network
            return ConvNet(shape, num_outputs, network.channels, network.batch_norm, network.pooling, generator)
        sizes = (*shape, *self.network.hidden_sizes, *([num_outputs] if num_outputs else []))
        return MLP(sizes, "relu", generator)


@dataclass(frozen=True)
class NamedMethod:
    """A published few-shot learner.

    Attributes:
        summary: One line for `--list`.
        build: Makes it.
        reads: Fields of `MethodConfig` that it reads, besides the outer loop's.
        settings: What makes it: fields of `MethodConfig` that differ from the defaults.
        takes_steps: Whether it adapts in steps, so that there is a curve.
        regression: Whether it can predict real targets.
    """

    summary: str
    build: Callable[[Parts], Method]
    reads: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    takes_steps: bool = False
    regression: bool = False


OUTER = ("meta_batch_size", "outer_optimizer", "outer_lr", "outer_lr_decay", "chunk_size")
"""Fields of `MethodConfig` that every method reads: those of the outer loop."""

_SWITCHES = ("first_order", "learned_lr", "adapted")
_STEPS = ("inner_lr", "num_inner_steps")


def _maml(parts: Parts) -> Method:
    switches = {name: getattr(parts.config, name) for name in ("inner_lr", *_SWITCHES)}
    return MAML(parts.predictor(), parts.config.num_inner_steps, **switches)


def _reptile(parts: Parts) -> Method:
    config = parts.config
    return Reptile(parts.predictor(), config.num_inner_steps, config.inner_lr, config.inner_batch_size)


def _siamese(parts: Parts) -> Method:
    network, width = parts.embedding()
    return Siamese(network, parts.source.num_outputs, width, parts.config.siamese_loss, parts.config.margin)


def _matching(parts: Parts) -> Method:
    network, width = parts.embedding()
    config = parts.config
    return Matching(
        network,
        parts.source.num_outputs,
        width,
        config.full_context,
        learn_scale=config.learn_scale,
        generator=parts.generator(),
    )


def _prototypical(parts: Parts) -> Method:
    return Prototypical(parts.embedding()[0], parts.source.num_outputs)


def _meta_lstm(parts: Parts) -> Method:
    config = parts.config
    return MetaLSTM(
        parts.predictor(), config.num_inner_steps, config.inner_lr, config.lstm_size, generator=parts.generator()
    )


def _snail(parts: Parts) -> Method:
    network, width = parts.embedding()
    source, config = parts.source, parts.config
    return SNAIL(
        network,
        width,
        source.num_outputs,
        parts.num_support + 1,
        source.is_classification,
        config.tc_filters,
        [(keys, keys // 2) for keys in config.attention_keys],
        parts.generator(),
    )


def _gradient_based(summary: str, **settings: Any) -> NamedMethod:
    return NamedMethod(summary, _maml, (*_STEPS, *_SWITCHES), settings, takes_steps=True, regression=True)


METHODS: dict[str, NamedMethod] = {
    "maml": _gradient_based("MAML: gradient steps from a learnt start, second order (Finn et al. 2017)"),
    "fomaml": _gradient_based("MAML with inner gradients taken for constants (Finn et al. 2017)", first_order=True),
    "reptile": NamedMethod(
        "Reptile: the start moves towards the adapted parameters (Nichol et al. 2018)",
        _reptile,
        (*_STEPS, "inner_batch_size"),
        {"outer_optimizer": "sgd", "outer_lr": 1.0, "outer_lr_decay": 1.0, "num_inner_steps": 5, "inner_lr": 0.1},
        takes_steps=True,
        regression=True,
    ),
    "meta-sgd": _gradient_based("MAML with learnt inner step sizes (Li et al. 2017)", learned_lr="shared"),
    "anil": _gradient_based("MAML whose inner steps change the last layer alone (Raghu et al. 2020)", adapted="head"),
    "siamese": NamedMethod(
        "Siamese networks: distances learnt on pairs (Koch et al. 2015; contrastive loss of Hadsell et al. 2006)",
        _siamese,
        ("siamese_loss", "margin"),
    ),
    "matching": NamedMethod(
        "Matching networks: attention over the support set by cosine similarity (Vinyals et al. 2016)",
        _matching,
        ("full_context", "learn_scale"),
    ),
    "prototypical": NamedMethod("Prototypical networks: nearest class mean (Snell et al. 2017)", _prototypical),
    "meta-lstm": NamedMethod(
        "Meta-LSTM: an LSTM that writes the learner's parameters (Ravi and Larochelle 2017)",
        _meta_lstm,
        (*_STEPS, "lstm_size"),
        {"num_inner_steps": 5, "inner_lr": 0.1},
        takes_steps=True,
        regression=True,
    ),
    "snail": NamedMethod(
        "SNAIL: temporal convolutions and attention over the support set (Mishra et al. 2018)",
        _snail,
        ("tc_filters", "attention_keys"),
        regression=True,
    ),
}


IMAGES_AT_ONCE = 128
"""Images of several tasks that are computed together: what was measured to be fastest (docs/performance.md)."""


def make_chunks(source: TaskSource, config: MethodConfig, num_threads: int | None) -> TaskChunks:
    """How tasks are split over threads.

    Small networks on vectors run all tasks at once. Of images a few small tasks are computed at once, and of large
    ones each by itself: vmapped convolutions save calls and cost arithmetic. There are enough chunks for the cores.
    The split depends on the problem alone, never on the machine, so that runs stay repeatable to the bit.
    """
    size = config.chunk_size or config.meta_batch_size
    if not config.chunk_size and len(source.input_shape) == 3:
        size = max(1, min(IMAGES_AT_ONCE // source.num_examples, config.meta_batch_size // 4))
    return TaskChunks(size, num_threads)


def contradiction(name: str, config: MethodConfig) -> tuple[str, str] | None:
    """What makes no sense in a method's settings: (the field, what is wrong with it), or None.

    A method reads some of the settings; another one set to anything but its default would be ignored.
    """
    named = METHODS[name]
    default = dataclasses.replace(MethodConfig(), **named.settings)
    for entry in dataclasses.fields(MethodConfig):
        value, usual = getattr(config, entry.name), getattr(default, entry.name)
        if entry.name not in (*OUTER, *named.reads) and value != usual:
            return entry.name, f"is {value}; {name} does not read it."
    for switch in _SWITCHES:
        if switch in named.settings and getattr(config, switch) != named.settings[switch]:
            return switch, f"is {getattr(config, switch)}; {name} is the method with {named.settings[switch]}."
    if config.adapted == "context":
        return "adapted", "is context; no network for few-shot tasks has one."
    if config.num_inner_steps == 0 and name != "maml":
        return "num_inner_steps", f"is 0; only maml can be trained without adapting, {name} needs a step."
    return None
