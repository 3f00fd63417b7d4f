"""Where few-shot tasks come from, and the training loop: laws, splits, determinism, what is skipped, what is kept."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.fewshot.config import MethodConfig
from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.episodes import Episodes
from metarl.fewshot.evaluation import evaluate_method, nearest_neighbour
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.maml import MAML
from metarl.fewshot.method import Direction
from metarl.fewshot.methods import METHODS, NetworkConfig, Parts, contradiction, make_chunks
from metarl.fewshot.networks import Network
from metarl.fewshot.sinusoid import Sinusoid
from metarl.fewshot.supervised import score
from metarl.fewshot.tasks import SPLITS, Examples, Tasks
from metarl.parallel import TaskChunks
from metarl.policies import MLP

PER_CLASS = 6


def numbered_images(num_classes: int = 12, rotations: int = 1) -> ImageClasses:
    """Image i of class c is all 10 c + i but for a bright corner, which tells how it was turned."""
    values = 10 * np.arange(num_classes)[:, None] + np.arange(PER_CLASS)
    images = np.broadcast_to(values.reshape(-1, 1, 1, 1), (values.size, 1, 4, 4)).astype(np.uint8).copy()
    images[:, :, 0, 0] = 255
    classes = np.arange(num_classes)
    thirds = {"train": classes[:6], "validation": classes[6:9], "test": classes[9:]}
    first = np.arange(num_classes + 1) * PER_CLASS
    return ImageClasses("numbers", images, first, tuple(map(str, classes)), thirds, rotations)  # pyright: ignore


def as_numbers(examples: Examples) -> Tensor:
    """The number that each image shows, away from its corners."""
    return (255 * examples.x[:, :, 0, 1, 1]).round().long()


@pytest.mark.parametrize("split", SPLITS)
def test_episodes_are_of_classes_of_their_split_with_support_and_query_apart(split: str) -> None:
    data = numbered_images()
    tasks = Episodes(data, ways=3, shots=2, queries=3).sample(20, split, seed=4)  # pyright: ignore
    shown = torch.cat([as_numbers(tasks.support), as_numbers(tasks.query)], 1)
    labels = torch.cat([tasks.support.y, tasks.query.y], 1)
    for images, said in zip(shown, labels, strict=True):
        assert len(images.unique()) == len(images) == 15
        of_class = images // 10
        assert set(of_class.tolist()) <= set(data.splits[split].tolist())  # pyright: ignore
        # A label is one class, and a class one label.
        assert len({(int(c), int(y)) for c, y in zip(of_class, said, strict=True)}) == 3
        assert said.reshape(5, 3).sort(1).values.tolist() == [[0, 1, 2]] * 5
    assert len({tuple(row.tolist()) for row in labels[:, :3]}) > 1


def test_a_task_is_a_function_of_split_seed_and_index() -> None:
    for source in (Episodes(numbered_images(), 3, 1, 2), Sinusoid(3, 2)):
        whole = source.sample(6, "train", 0)
        assert not torch.equal(source.sample(6, "validation", 0).support.x, whole.support.x)
        again = source.sample(2, "train", 0, start=3)
        assert torch.equal(whole.query.x[3:5], again.query.x) and torch.equal(whole.support.y[3:5], again.support.y)
        for other in (source.sample(6, "train", 1), source.sample(6, "test", 0)):
            assert not torch.equal(other.support.x, whole.support.x)


def test_turned_classes_are_classes_of_their_own_and_never_mixed() -> None:
    tasks = Episodes(numbered_images(rotations=4), ways=8, shots=1, queries=1).sample(30, "validation", 0)
    corners = torch.stack([tasks.query.x[:, :, 0, i, j] for i, j in ((0, 0), (3, 0), (3, 3), (0, 3))], -1)
    turns, shown = corners.argmax(-1), as_numbers(tasks.query) // 10
    support_corners = torch.stack([tasks.support.x[:, :, 0, i, j] for i, j in ((0, 0), (3, 0), (3, 3), (0, 3))], -1)
    for i in range(30):
        of_label = {int(y): (int(c), int(t)) for y, c, t in zip(tasks.query.y[i], shown[i], turns[i], strict=True)}
        assert len(set(of_label.values())) == 8
        support = zip(
            tasks.support.y[i], as_numbers(tasks.support)[i] // 10, support_corners[i].argmax(-1), strict=True
        )
        assert all(of_label[int(y)] == (int(c), int(t)) for y, c, t in support)
    assert set(turns.flatten().tolist()) == {0, 1, 2, 3}


def test_more_classes_or_images_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="3 classes in its validation split, and a task needs 4"):
        Episodes(numbered_images(), 4, 1, 1)
    with pytest.raises(ValueError, match="a class of 6 images in its train split, and a task needs 2 shots and 5 quer"):
        Episodes(numbered_images(), 3, 2, 5)
    data, everywhere = numbered_images(), dict.fromkeys(SPLITS, np.arange(12))
    with pytest.raises(ValueError, match="a class is in two splits"):
        ImageClasses("numbers", data.images, data.first, (), everywhere)


def test_sinusoids_follow_their_law() -> None:
    tasks, waves = Sinusoid(5, 40).sample(400, "test", 3), Sinusoid.parameters(400, "test", 3)
    assert np.array_equal(Sinusoid.parameters(2, "test", 3, start=7), waves[7:9])
    for examples in tasks:
        x = examples.x[..., 0].double().numpy()
        expected = waves[:, :1] * np.sin(x - waves[:, 1:])
        np.testing.assert_allclose(examples.y[..., 0].double().numpy(), expected, atol=1e-5)
        assert -5 <= x.min() < -4.9 and 4.9 < x.max() <= 5
    for column, low, high in ((0, 0.1, 5.0), (1, 0.0, math.pi)):
        values = waves[:, column]
        edge = 0.05 * (high - low)
        assert low <= values.min() < low + edge and high - edge < values.max() <= high
        # Mean of a uniform law, within four of its standard errors.
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 400)
    # A task is the same wave however many examples are asked for.
    few = Sinusoid(2, 3).sample(400, "test", 3)
    np.testing.assert_allclose(few.support.x, tasks.support.x[:, :2])


def sinusoid_learner(chunk_size: int = 8, seed: int = 0, **settings: object) -> FewShotLearner:
    config = MethodConfig(meta_batch_size=8, inner_lr=0.02, outer_lr=0.003, **settings)  # pyright: ignore
    network = Network(MLP((1, 40, 40, 1), "relu", torch.Generator().manual_seed(seed)))
    return FewShotLearner(
        MAML(network, 1, inner_lr=config.inner_lr), Sinusoid(10, 10), config, iterations=300, seed=seed,
        chunks=TaskChunks(chunk_size, 2),
    )  # fmt: skip


def test_an_iteration_is_adam_on_the_mean_gradient_of_its_tasks_whatever_the_chunks() -> None:
    learner, chunked = sinusoid_learner(), sinusoid_learner(chunk_size=3)
    start = dict(learner.params)
    tasks = Sinusoid(10, 10).sample(8, "train", 0)
    gradient = learner.method.direction(start, {}, tasks).gradient
    for one in (learner, chunked):
        one.iterate()
        for name, value in start.items():
            g = gradient[name] / 8
            torch.testing.assert_close(one.params[name], value - 0.003 * g / (g.abs() + 1e-8), rtol=1e-4, atol=2e-6)


def test_the_outer_step_of_adam_falls_linearly() -> None:
    """The second of two steps along one gradient: Adam's is the step size itself, entry by entry."""
    learner = sinusoid_learner(outer_lr_decay=1.0)
    gradient = {name: torch.ones_like(value) for name, value in learner.params.items()}
    for iteration in (0, 225):
        learner.iteration = iteration
        moved = learner._outer_step(gradient)
        assert moved is not None
        for name, value in learner.params.items():
            expected = torch.full_like(value, 0.003 * (1 - iteration / 300))
            torch.testing.assert_close(value - moved[name], expected, rtol=1e-3, atol=1e-7)


def test_running_statistics_move_to_the_mean_over_tasks_and_are_not_moved_by_a_skipped_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = sinusoid_learner()
    learner.buffers = {"mean": torch.zeros(2), "count": torch.tensor(0)}
    found = {"mean": torch.arange(16.0).reshape(8, 2), "count": torch.ones(8, dtype=torch.int64)}
    original = MAML.direction

    def direction(self: MAML, params: dict, buffers: dict, tasks: Tasks) -> Direction:
        return original(self, params, {}, tasks)._replace(buffers=found)

    monkeypatch.setattr(MAML, "direction", direction)
    learner.iterate()
    assert learner.buffers["mean"].tolist() == [7.0, 8.0] and int(learner.buffers["count"]) == 1
    found["mean"][3, 0] = torch.nan
    moments = learner.state_dict()["outer"]
    assert learner.iterate()["skipped_updates"] == 1
    assert learner.buffers["mean"].tolist() == [7.0, 8.0]
    assert all(torch.equal(moments[n]["step"], entry["step"]) for n, entry in learner.state_dict()["outer"].items())


def test_the_outer_step_falls_linearly_and_sgd_follows_the_gradient() -> None:
    learner = sinusoid_learner(outer_optimizer="sgd", outer_lr_decay=1.0)
    for iteration in (0, 150):
        learner.iteration = iteration
        before = dict(learner.params)
        tasks = Sinusoid(10, 10).sample(8, "train", 0, start=8 * iteration)
        gradient = learner.method.direction(before, {}, tasks).gradient
        learner.iterate()
        for name, value in before.items():
            lr = 0.003 * (1 - iteration / 300)
            torch.testing.assert_close(learner.params[name], value - lr * gradient[name] / 8, rtol=1e-5, atol=1e-7)


def test_a_direction_that_is_not_finite_is_skipped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = sinusoid_learner()
    learner.iterate()
    before, moments = dict(learner.params), learner.state_dict()["outer"]
    broken = MAML.direction

    def direction(self: MAML, params: dict, buffers: dict, tasks: Tasks) -> Direction:
        found = broken(self, params, buffers, tasks)
        return found._replace(gradient={name: value * torch.nan for name, value in found.gradient.items()})

    with monkeypatch.context() as patch:
        patch.setattr(MAML, "direction", direction)
        assert learner.iterate()["skipped_updates"] == 1
    assert learner.iteration == 2
    assert all(torch.equal(value, learner.params[name]) for name, value in before.items())
    after = learner.state_dict()["outer"]
    assert all(torch.equal(moments[n][key], after[n][key]) for n in moments for key in moments[n])


def test_a_learner_continues_from_its_state() -> None:
    whole, first, second = (sinusoid_learner() for _ in range(3))
    for _ in range(4):
        whole.iterate()
    for _ in range(2):
        first.iterate()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.iterate()
    assert all(torch.equal(value, second.params[name]) for name, value in whole.params.items())


def test_maml_learns_sinusoids() -> None:
    """One step on five points of a wave never seen before halves the error."""
    learner = sinusoid_learner()
    tasks = Sinusoid(5, 50).sample(100, "test", 0)

    def error() -> list[float]:
        curve = evaluate_method(learner.method, learner.params, {}, tasks, 1, TaskChunks(50))
        return curve.mean.tolist()

    untrained = error()
    for _ in range(1250):
        learner.iterate()
    before, after = error()
    assert after < 0.5 * before and after < 0.5 * untrained[1], (untrained, before, after)


def test_answers_that_are_not_numbers_are_wrong() -> None:
    logits = torch.tensor([[[torch.nan, 0.0], [0.0, torch.inf], [1.0, 0.0], [0.0, 1.0]]])
    assert score(logits, torch.tensor([[0, 1, 0, 0]])).tolist() == [0.25]


def test_weights_of_different_parts_and_seeds_come_from_different_numbers() -> None:
    source = Episodes(numbered_images(), 3, 1, 2)

    def first_weights(seed: int) -> Tensor:
        parts = Parts(source, NetworkConfig(channels=4), MethodConfig(), 3, seed)
        return parts.embedding()[0].initial_params()["features.0.weight"]

    assert not torch.equal(first_weights(1), first_weights(1 + 2**32))
    assert not torch.equal(first_weights(1), first_weights(2))
    parts = Parts(source, NetworkConfig(), MethodConfig(), 3, 1)
    assert not torch.equal(torch.rand(3, generator=parts.generator()), torch.rand(3, generator=parts._generator(0)))


def test_a_fingerprint_changes_with_classes_splits_and_images() -> None:
    data = numbered_images()
    prints = {data.fingerprint, numbered_images(rotations=4).fingerprint}
    images = data.images.copy()
    images[0, 0, 2, 2] += 1
    prints.add(dataclasses.replace(data, images=images).fingerprint)
    prints.add(dataclasses.replace(data, splits={**data.splits, "test": data.splits["test"][::-1]}).fingerprint)
    assert len(prints) == 4 and numbered_images().fingerprint == data.fingerprint


def test_the_nearest_image_decides() -> None:
    support = Examples(torch.tensor([[[0.0, 0.0], [1.0, 1.0], [0.2, 0.2]]]), torch.tensor([[0, 1, 2]]))
    query = torch.tensor([[[0.9, 0.8], [0.05, 0.0], [0.25, 0.2]]])
    predictions = nearest_neighbour(support, query, 3)
    assert predictions.argmax(-1).tolist() == [[1, 0, 2]]
    torch.testing.assert_close(predictions[0, 1, 0], torch.tensor(-0.05))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_from_its_settings_and_trains(name: str) -> None:
    source = Episodes(numbered_images(), 3, 1, 2)
    config = MethodConfig(**{**METHODS[name].settings, "meta_batch_size": 4})
    parts = Parts(source, NetworkConfig(channels=4, batch_norm="running"), config, 3, seed=0)
    learner = FewShotLearner(
        METHODS[name].build(parts), source, config, iterations=2, chunks=make_chunks(source, config, 1)
    )
    start, buffers = dict(learner.params), dict(learner.buffers)
    metrics = learner.iterate()
    assert metrics["skipped_updates"] == 0 and math.isfinite(metrics["loss"])
    assert any(not torch.equal(start[key], learner.params[key]) for key in start)
    assert any(not torch.equal(buffers[key], learner.buffers[key]) for key in buffers)
    tasks = source.sample(2, "test", 0)
    said = learner.method.predictions(learner.params, learner.buffers, tasks.support, tasks.query.x, 2)
    assert len(said) == (3 if METHODS[name].takes_steps else 1) and said[0].shape == (2, 6, 3)
    assert contradiction(name, config) is None


def test_snail_has_the_widths_of_its_settings() -> None:
    source, config = Episodes(numbered_images(), 3, 1, 2), MethodConfig(tc_filters=5, attention_keys=(6, 4))
    params = METHODS["snail"].build(Parts(source, NetworkConfig(channels=4), config, 3, seed=0)).initial_params()
    # Rows of 4 features and 3 labels; an attention block, 2 dense blocks for 4 examples, an attention block.
    assert params["snail.blocks.0.keys.weight"].shape == (6, 7)
    assert params["snail.blocks.0.values.weight"].shape == (3, 7)
    assert params["snail.blocks.1.0.convolution.weight"].shape == (2 * 5, 2 * 10)
    assert params["snail.blocks.2.keys.weight"].shape == (4, 10 + 2 * 5)
    assert params["snail.linear.weight"].shape == (3, 20 + 2)


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("maml", {"margin": 0.5}, "margin"),
        ("fomaml", {"first_order": False}, "first_order"),
        ("prototypical", {"inner_lr": 0.1}, "inner_lr"),
        ("reptile", {"num_inner_steps": 0}, "num_inner_steps"),
    ],
)
def test_settings_that_a_method_does_not_read_are_refused(name: str, settings: dict, field: str) -> None:
    config = MethodConfig(**{**METHODS[name].settings, **settings})
    problem = contradiction(name, config)
    assert problem is not None and problem[0] == field
