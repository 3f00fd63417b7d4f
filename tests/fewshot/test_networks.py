"""What a network of a few-shot learner must be, and what of it is learnt, kept and saved."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarl.fewshot.config import MethodConfig
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.maml import MAML
from metarl.fewshot.matching import Matching
from metarl.fewshot.meta_lstm import MetaLSTM
from metarl.fewshot.method import Method
from metarl.fewshot.methods import METHODS, NetworkConfig, Parts
from metarl.fewshot.networks import FEW_QUERIES, BatchNorm, ConvNet, Network
from metarl.fewshot.prototypical import Prototypical
from metarl.fewshot.reptile import Reptile
from metarl.fewshot.sinusoid import Sinusoid
from metarl.fewshot.tasks import Examples, Tasks
from metarl.parallel import TaskChunks


def learner_of(module: nn.Module, chunk_size: int = 4) -> FewShotLearner:
    config = MethodConfig(meta_batch_size=7)  # the mean of seven times 0.1 is another number
    method = MAML(Network(module), 1, inner_lr=0.01)
    return FewShotLearner(method, Sinusoid(5, 5), config, iterations=3, chunks=TaskChunks(chunk_size, 1))


class Around(nn.Module):
    """Two layers, and something between them."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(1, 8), nn.Linear(8, 1), between
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.register_buffer("count", torch.zeros(()))
        self.kept: Any = None
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)))


def counted(module: Any, h: Tensor) -> Tensor:
    module.count += 1
    return h * module.count


def counted_in_training(module: Any, h: Tensor) -> Tensor:
    return counted(module, h) if module.training else h


def remembered(module: Any, h: Tensor) -> Tensor:
    before = 0 if module.kept is None else module.kept
    module.kept = h.detach()
    return h + before


def grown(module: Any, h: Tensor) -> Tensor:
    module.kept = [*(module.kept or []), 1]
    return h * len(module.kept)


IMPURE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dropout layer": lambda m, h: nn.Dropout(0.5).train(m.training)(h),
    "dropout function": lambda m, h: F.dropout(h, 0.5, m.training),
    "dropout always on": lambda _, h: F.dropout(h, 0.5, True),
    "random slopes": lambda m, h: F.rrelu(h, training=m.training),
    "attention": lambda m, h: m.attention(h[None], h[None], h[None], need_weights=False)[0][0],
    "torch's noise": lambda _, h: h + torch.randn_like(h),
    "noise of its own generator": lambda m, h: h + torch.randn(h.shape, generator=m.generator),
    "NumPy's noise": lambda _, h: h + np.random.standard_normal(),
    "Python's noise": lambda _, h: h * random.random(),
    "a counter": counted,
    "a counter in training": counted_in_training,
    "a memory": remembered,
    "a list": grown,
}


@pytest.mark.parametrize("chunk_size", [1, 4])
@pytest.mark.parametrize("what", IMPURE)
def test_randomness_and_memory_are_refused_when_a_learner_is_made(what: str, chunk_size: int) -> None:
    module, state = Around(IMPURE[what]), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"The network (draws random|changes its|gives other).*same outputs"):
        learner_of(module, chunk_size)
    assert torch.equal(state, torch.get_rng_state()) and module.training


def test_a_network_that_does_not_take_the_examples_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"The network does not take examples \[5, 1\]: .*shapes"):
        learner_of(nn.Linear(2, 1))


class Normalised(nn.Module):
    """A layer whose inputs are brought to the scale that a buffer says."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([scale]))
        self.a, self.norm, self.b = nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x * self.scale)).tanh())


@pytest.mark.parametrize("module", [Normalised(), nn.Sequential(nn.BatchNorm1d(1, track_running_stats=False))])
def test_batch_normalisation_of_either_kind_is_no_memory(module: nn.Module) -> None:
    assert learner_of(module).iterate()["skipped_updates"] == 0


def test_running_statistics_move_and_a_constant_buffer_stays_to_the_bit() -> None:
    learner = learner_of(Normalised(0.1))
    start = dict(learner.buffers)
    for _ in range(3):
        learner.iterate()
    assert torch.equal(learner.buffers["scale"], start["scale"])
    assert not torch.equal(learner.buffers["norm.running_mean"], start["norm.running_mean"])


def with_frozen_first_layer() -> nn.Module:
    module = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    module[0].requires_grad_(False)
    return module


METHODS_OF: dict[str, Callable[[Network], Method]] = {
    "maml": lambda n: MAML(n, 2, inner_lr=0.05),
    "meta-sgd": lambda n: MAML(n, 1, learned_lr="shared"),
    "reptile": lambda n: Reptile(n, 2, 0.05, 5),
    "meta-lstm": lambda n: MetaLSTM(n, 2),
}


@pytest.mark.parametrize("name", METHODS_OF)
def test_frozen_parameters_are_not_learnt_and_not_adapted(name: str) -> None:
    module = with_frozen_first_layer()
    before = {key: value.clone() for key, value in module.named_parameters()}
    method = METHODS_OF[name](Network(module))
    config = MethodConfig(meta_batch_size=4)
    learner = FewShotLearner(method, Sinusoid(5, 5), config, iterations=3, chunks=TaskChunks(2, 1))
    assert {key for key in learner.params if key[0].isdigit()} == {"2.weight", "2.bias"}
    learner.iterate()
    assert not torch.equal(learner.params["2.weight"], before["2.weight"])
    assert all(torch.equal(value, before[key]) for key, value in module.named_parameters())
    # They are read where they are: a pass follows a change of them.
    tasks = Sinusoid(5, 5).sample(2, "test", 0)
    said = method.predictions(learner.params, {}, tasks.support, tasks.query.x, 1)[-1]
    module[0].weight.data.zero_()  # pyright: ignore
    assert not torch.equal(method.predictions(learner.params, {}, tasks.support, tasks.query.x, 1)[-1], said)


def test_frozen_parameters_and_buffers_come_back_with_a_learner_s_state() -> None:
    def learner(seed: int) -> FewShotLearner:
        torch.manual_seed(seed)
        return learner_of(nn.Sequential(with_frozen_first_layer(), Normalised(0.1 + seed)))

    first, second = learner(0), learner(1)
    first.iterate()
    state = first.state_dict()
    second.load_state_dict(state)
    assert first.iterate()["loss"] == second.iterate()["loss"]
    assert all(torch.equal(value, second.params[key]) for key, value in first.params.items())
    assert list(state["frozen"]) == ["0.0.weight", "0.0.bias"] and set(first.tensors()) <= set(state)


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        learner_of(nn.Linear(1, 1).requires_grad_(False))
    # What a method adds to a network may be enough.
    embedding = Network(nn.Flatten())
    assert Matching(embedding, 3, 4).initial_params() and not Prototypical(embedding, 3).initial_params()


class Recurrent(nn.Module):
    """Reads an input's entries one after another."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.out = kind(1, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x.unsqueeze(-1))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks_have_the_meta_gradient_of_finite_differences(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    method = MAML(Network(Recurrent(kind).double()), 2, inner_lr=0.1)

    def examples(count: int) -> Examples:
        return Examples(*(torch.randn(3, count, n, dtype=torch.float64) for n in (3, 1)))

    tasks, params = Tasks(examples(4), examples(4)), method.initial_params()
    along = {name: torch.randn_like(value) for name, value in params.items()}
    gradient = method.direction(params, {}, tasks).gradient
    losses = [
        method.meta_loss({n: v + step * along[n] for n, v in params.items()}, {}, tasks).loss.detach().sum()
        for step in (1e-5, -1e-5)
    ]
    slope = sum((gradient[name] * along[name]).sum() for name in params)
    torch.testing.assert_close(slope, (losses[0] - losses[1]) / 2e-5, rtol=1e-6, atol=1e-8)


# Global random states


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("on_images", [True, False])
def test_making_a_learner_leaves_the_global_random_states(name: str, on_images: bool) -> None:
    if not on_images and not METHODS[name].regression:
        pytest.skip("compares classes")
    source: Any = Images() if on_images else Sinusoid(2, 3)
    config = MethodConfig(**{**METHODS[name].settings, "meta_batch_size": 2})
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    method = METHODS[name].build(Parts(source, NetworkConfig(channels=4), config, 3, seed=0))
    learner = FewShotLearner(method, source, config, iterations=2, chunks=TaskChunks(2, 1))
    learner.iterate()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


# Queries at once


class Images:
    """Three classes of noise around a picture each."""

    is_classification, input_shape, num_outputs, num_examples, fingerprint = True, (1, 16, 16), 3, 9, "noise"

    def sample(self, num_tasks: int, split: str, seed: int, start: int = 0, queries: int = 2) -> Tasks:
        random = torch.Generator().manual_seed(seed)
        pictures = torch.rand(num_tasks, 1, 3, *self.input_shape, generator=random)

        def examples(count: int) -> Examples:
            noise = torch.rand(num_tasks, count, 3, *self.input_shape, generator=random)
            labels = torch.arange(3).repeat(num_tasks, count)
            return Examples((pictures + 0.1 * noise).flatten(1, 2), labels)

        return Tasks(examples(1), examples(queries))


def of_images(name: str, batch_norm: BatchNorm) -> Method:
    network = Network(ConvNet((1, 16, 16), 0 if name == "prototypical" else 3, 4, batch_norm))
    return Prototypical(network, 3) if name == "prototypical" else METHODS_OF[name](network)


def predicted(method: Method, queries: int) -> Tensor:
    tasks = Images().sample(2, "test", 0, queries=4)
    params, buffers = method.initial_params(), method.initial_buffers()
    with torch.no_grad():
        return method.predictions(params, buffers, tasks.support, tasks.query.x[:, :queries], 1)[-1]


@pytest.mark.parametrize("name", METHODS_OF)
def test_transductive_predictions_for_few_queries_are_refused_or_warned_of(name: str) -> None:
    method = of_images(name, "transductive")
    with pytest.raises(
        ValueError, match=r"there is 1 query to a task: its prediction would be chance\. Predict .* support"
    ):
        predicted(method, 1)
    with pytest.warns(UserWarning, match="there are 4 queries to a task: predictions are worse than for many"):
        predicted(method, FEW_QUERIES - 1)
    assert predicted(method, FEW_QUERIES).shape == (2, FEW_QUERIES, 3)


@pytest.mark.parametrize("name", [*METHODS_OF, "prototypical"])
def test_predictions_that_do_not_hang_on_other_queries_may_be_made_one_at_a_time(name: str) -> None:
    """By running statistics, or beside the support set, which methods that compare do by themselves."""
    mode: BatchNorm = "transductive" if name == "prototypical" else "running"
    assert predicted(of_images(name, mode), 1).shape == (2, 1, 3)
