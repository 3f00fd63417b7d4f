"""How fast a MAML step on images is, beside the loop over tasks that anybody would write with plain autograd."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from _benchmark_limits import Row, peak_memory_mb
from torch import Tensor
from torch.nn import functional as F

from metarl.fewshot.config import MethodConfig
from metarl.fewshot.data.glyphs import load_glyphs
from metarl.fewshot.episodes import Episodes
from metarl.fewshot.learner import FewShotLearner
from metarl.fewshot.methods import METHODS, NetworkConfig, Parts, make_chunks
from metarl.fewshot.tasks import Tasks
from metarl.parallel import TaskChunks
from metarl.types import Params

if TYPE_CHECKING:
    from _benchmark_arguments import Arguments

WAYS, QUERIES, TASKS, CHUNKS = 5, (1, 15), 32, (1, 4, 8)
"""Queries are of each class, which makes 5 and 75 a task; CHUNKS are numbers of tasks computed at once."""


def plain_network(params: Params, x: Tensor) -> Tensor:
    """The four-layer network of `metarl.fewshot.networks`, as a function."""
    for layer in range(0, 12, 3):
        name = f"features.{layer}"
        norm = f"features.{layer + 1}"
        x = F.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], stride=2, padding=1)
        x = F.relu(F.batch_norm(x, None, None, params[f"{norm}.weight"], params[f"{norm}.bias"], True))
    return F.linear(x.mean((2, 3)), params["linear.weight"], params["linear.bias"])


def plain_loop(params: Params, tasks: Tasks, inner_lr: float) -> list[Tensor]:
    """Second-order MAML gradient, one inner step, task after task, with torch's own threads."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    total: list[Tensor] = []
    for i in range(len(tasks.support.x)):
        loss = F.cross_entropy(plain_network(leaves, tasks.support.x[i]), tasks.support.y[i])
        gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        moved = {n: v - inner_lr * g for (n, v), g in zip(leaves.items(), gradient, strict=True)}
        loss = F.cross_entropy(plain_network(moved, tasks.query.x[i]), tasks.query.y[i])
        parts = torch.autograd.grad(loss, list(leaves.values()))
        total = list(parts) if not total else [a + b for a, b in zip(total, parts, strict=True)]
    return [value / len(tasks.support.x) for value in total]


def timed(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median (wall, CPU) seconds of each, called in turns so that a slow moment of the machine meets all of them."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            if turn:  # the first call warms up
                found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: sorted(times)[len(times) // 2] for name, times in found.items()}


def measured_fewshot(arguments: Arguments) -> list[Row]:
    """Rows of what training does, and of tasks one by one and several at once, against the loop's wall time."""
    rows = []
    for queries in QUERIES:
        found = timed(_competitors(queries, arguments), arguments.repeats or 5)
        limit = found["loop"][0]
        for name, (wall, cpu) in found.items():
            what = f"{WAYS * queries} queries/{name}"
            rows.append(Row(what, wall, limit, wall / limit, "wall-s per step", cpu, wall, peak_memory_mb("cpu")))
    return rows


def _competitors(queries: int, arguments: Arguments) -> dict[str, Callable[[], list[Tensor]]]:
    """The same gradient three ways, made sure to be the same."""
    source = Episodes(load_glyphs(), WAYS, 1, queries)
    config = dataclasses.replace(MethodConfig(), meta_batch_size=TASKS)
    method = METHODS["maml"].build(Parts(source, NetworkConfig(), config, WAYS, 0))
    tasks, params = source.sample(TASKS, "train", 0), method.initial_params()

    def by_chunks(chunks: TaskChunks) -> Callable[[], list[Tensor]]:
        learner = FewShotLearner(method, source, config, iterations=1, chunks=chunks)
        return lambda: list(learner.mean_direction(tasks).gradient.values())

    threads = arguments.num_threads or None
    ways = {
        "loop": lambda: plain_loop(params, tasks, config.inner_lr),
        "ours": by_chunks(make_chunks(source, dataclasses.replace(config, chunk_size=arguments.chunk_size), threads)),
        **{f"chunks of {size}": by_chunks(TaskChunks(size, threads)) for size in CHUNKS},
    }
    for a, b in zip(ways["loop"](), ways["ours"](), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)
    return ways
