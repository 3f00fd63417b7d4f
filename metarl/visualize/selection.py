"""Which of many tasks to show."""

from __future__ import annotations

import torch
from torch import Tensor


def spread_tasks(tasks: Tensor, count: int) -> list[int]:
    """Picks tasks that are far apart, without a look at how well any of them went.

    Farthest-point sampling in task space, every dimension scaled to its range, from the task nearest to one corner of
    it: of a one-dimensional law the lowest and the highest come first, then the middle.

    Args:
        tasks: `[task, task_dim]`.
        count: How many, at most as many as there are.

    Returns:
        Indices into `tasks`, in the order of the tasks' own values (by the first dimension).
    """
    points = tasks.cpu().double()
    span = points.amax(0) - points.amin(0)
    points = (points - points.amin(0)) / torch.where(span > 0, span, 1.0)
    chosen = [int(points.sum(-1).argmax())]
    distance = torch.cdist(points, points)
    while len(chosen) < min(count, len(points)):
        nearest = distance[:, chosen].amin(1)
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return sorted(chosen, key=lambda i: tasks[i].tolist())
