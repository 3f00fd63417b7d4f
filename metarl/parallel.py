"""Chunks of tasks on all cores, with results that do not depend on how many cores there are.

Tasks are independent, so whatever is summed over them is computed chunk by chunk and added in task order. Each chunk
runs on one thread with torch's own intra-op threads at 1 (large operations release the interpreter lock); small
chunks also keep a task's activations in the processor's cache.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, final

import torch

from metarl.ops.tree import select_tasks

T = TypeVar("T")


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def one_intra_op_thread() -> Iterator[None]:
    """Sets torch's intra-op threads to 1 inside the block, whatever OMP_NUM_THREADS says, and restores them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


CACHED_BYTES = 2**20
"""Bytes of one layer's activations that a core's second-level cache holds next to what else a product reads."""


def cached_chunk_size(num_tasks: int, layer_bytes: int) -> int:
    """Tasks per chunk on the CPU: as many as keep a layer's activations in cache, but enough chunks for the cores.

    It depends on the problem alone, never on the machine: runs stay repeatable to the bit on any number of threads.

    Args:
        num_tasks: Tasks in all.
        layer_bytes: Bytes of the widest layer's activations of one task.
    """
    return max(1, min(CACHED_BYTES // layer_bytes, num_tasks // 4))


def fitting_chunk_size(num_tasks: int, task_bytes: int, budget: int) -> int:
    """Tasks per chunk on a GPU: all of them if they fit the budget, as one large product is the fast one there.

    Args:
        num_tasks: Tasks in all.
        task_bytes: Bytes that one task's graphs take.
        budget: Bytes there are.
    """
    return max(1, min(budget // task_bytes, num_tasks))


@final
class TaskChunks:
    """Maps a function over chunks of tasks.

    Args:
        chunk_size: Tasks per chunk. Bounds memory; results depend on it to rounding only.
        num_threads: Worker threads; None takes the cores this process may use, 1 runs in the caller.
    """

    def __init__(self, chunk_size: int = 1, num_threads: int | None = None) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1.")
        self.chunk_size = chunk_size
        self.num_threads = num_cores() if num_threads is None else num_threads
        self._pool: ThreadPoolExecutor | None = None
        self._owner = 0

    def slices(self, num_tasks: int) -> list[slice]:
        """The chunks of `num_tasks` tasks, in order."""
        return [slice(i, min(i + self.chunk_size, num_tasks)) for i in range(0, num_tasks, self.chunk_size)]

    def map(self, function: Callable[..., T], num_tasks: int, *trees: Any) -> list[T]:
        """`[function(*chunk of each tree) for each chunk]`, in task order; every tensor leads with the task axis."""
        return self.map_items(
            lambda tasks: function(*(select_tasks(tree, tasks) for tree in trees)), self.slices(num_tasks)
        )

    def map_items(self, function: Callable[[Any], T], items: list[Any]) -> list[T]:
        """`[function(item) for item in items]` on the worker threads, in order."""
        with one_intra_op_thread():
            if self.num_threads == 1 or len(items) == 1:
                return [function(item) for item in items]
            # A forked child has a copy of the pool but none of its threads.
            if self._pool is None or self._owner != os.getpid():
                self._owner = os.getpid()
                # Threads start with OMP's own default: each has to be told.
                self._pool = ThreadPoolExecutor(
                    self.num_threads, thread_name_prefix="metarl", initializer=torch.set_num_threads, initargs=(1,)
                )
            return list(self._pool.map(function, items))
