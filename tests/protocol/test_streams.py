"""Where random numbers come from, written out: a published number can be reproduced as long as these keys stay."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from test_fewshot_protocol import some_images
from witness import navigation

import envs
from envs.batched_env import derive_task_seeds
from metarl.fewshot.episodes import Episodes
from metarl.fewshot.sinusoid import Sinusoid
from metarl.noise import DeviceNoise, TaskNoise
from metarl.ops import gaussian


def seed_of(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_task_is_drawn_by_family_split_seed_and_index() -> None:
    for name, split, seed, index in (("navigation-2d", "train", 3, 0), ("navigation-2d", "test", 0, 5)):
        key = (zlib.crc32(name.encode()), ("train", "test").index(split), seed, index)
        expected = np.random.default_rng(np.random.SeedSequence(key)).uniform(-0.5, 0.5, 2)
        drawn = envs.make(name).sample_tasks(1, split, seed, start=index)  # pyright: ignore
        np.testing.assert_array_equal(drawn[0], expected)
    # A variant is another measure of the same tasks.
    plain, other = (envs.make(f"halfcheetah-vel@{variant}").sample_tasks(4) for variant in ("plain", "varibad"))
    assert torch.equal(plain, other)


def test_noise_of_a_task_is_drawn_by_its_key_wave_use_and_index() -> None:
    noise = TaskNoise((2, 9, 4), 3, start=5)
    assert noise.reset_seeds(1) == [seed_of(2, 9, 4, 1, 0, task) for task in (5, 6, 7)]
    expected = torch.stack([normal(seed_of(2, 9, 4, 1, 1, task), 2, 6, 3) for task in (5, 6, 7)])
    assert torch.equal(noise.action_noise(1, 2, 6, gaussian, 3), expected)


def test_noise_of_a_device_is_drawn_for_all_tasks_together() -> None:
    noise = DeviceNoise((2, 9, 4), 3, torch.device("cpu"))
    assert noise.reset_seeds(1) == [seed_of(2, 9, 4, 1, 0, task) for task in range(3)]
    expected = normal(seed_of(2, 9, 4, 1, 1, 0), 3, 2, 6, 4)
    assert torch.equal(noise.action_noise(1, 2, 6, gaussian, 4), expected)


def test_one_seed_of_an_environment_stands_for_one_of_each_task() -> None:
    assert derive_task_seeds(7, 3) == [seed_of(7, task) for task in range(3)]
    assert derive_task_seeds([4, 5], 2) == [4, 5]


def test_every_tasks_starts_come_from_its_own_seed() -> None:
    family = envs.make("navigation-2d-corners")
    env = family.batch(family.sample_tasks(3), 4)
    starts = env.reset([11, 12, 13])
    for task, seed in enumerate((11, 12, 13)):
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(starts[task], family.problem.initial_state(4, generator)["position"])
    assert len(starts.reshape(-1, 2).unique(dim=0)) == 12


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_few_shot_task_is_drawn_by_split_seed_and_index(split: Any) -> None:
    key = (("train", "validation", "test").index(split), 9, 4)
    unit = np.random.default_rng(key).random(2 + 3 + 2)
    drawn = Sinusoid(3, 2).sample(1, split, 9, start=4)
    inputs = torch.cat([drawn.support.x, drawn.query.x], 1).flatten().numpy()
    np.testing.assert_allclose(inputs, -5 + 10 * unit[2:], rtol=1e-6)
    np.testing.assert_allclose(Sinusoid.parameters(1, split, 9, start=4)[0], [0.1 + 4.9 * unit[0], np.pi * unit[1]])
    images = some_images()
    random = np.random.default_rng(key)
    classes = images.splits[split][random.choice(len(images.splits[split]), 3, replace=False)]
    labels = np.stack([random.permutation(3) for _ in range(3)])
    drawn = Episodes(images, 3, 1, 2).sample(1, split, 9, start=4)
    assert torch.equal(torch.cat([drawn.support.y, drawn.query.y], 1)[0], torch.from_numpy(labels.reshape(-1)))
    for label, of_class in enumerate(classes):
        own = torch.from_numpy(images.images[images.first[of_class] : images.first[of_class + 1]])
        shown = (255 * torch.cat([drawn.support.x, drawn.query.x], 1)[0][labels.reshape(-1) == label]).round().byte()
        chosen = random.choice(6, 3, replace=False)
        assert torch.equal(shown, own[chosen])


def test_the_stand_in_family_draws_as_the_registered_one() -> None:
    """What the other tests of this folder rest on."""
    assert torch.equal(navigation().sample_tasks(5, "test", 3), envs.make("navigation-2d").sample_tasks(5, "test", 3))


def test_no_two_streams_of_a_run_coincide_with_those_of_another_use() -> None:
    seeds = [
        seed
        for purpose, of_seed, iteration in itertools.product(range(4), (0, 1, 2), (0, 1))
        for seed in TaskNoise((purpose, of_seed, iteration), 2).reset_seeds(0)
    ]
    assert len(set(seeds)) == len(seeds)
