"""How well a method does on new tasks, after each of its steps."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.evaluation import AdaptationCurve
from metarl.fewshot.method import Method
from metarl.fewshot.supervised import score
from metarl.fewshot.tasks import Examples, Tasks
from metarl.parallel import TaskChunks
from metarl.precision import no_tf32
from metarl.types import Params


@no_tf32()
def evaluate_method(
    method: Method, params: Params, buffers: Params, tasks: Tasks, num_steps: int, chunks: TaskChunks
) -> AdaptationCurve:
    """Scores on the queries of each task after 0 to K steps: one column for a method that takes no steps.

    The labels of the queries are read here alone.

    Args:
        method: The method.
        params: Meta-parameters.
        buffers: Running statistics.
        tasks: Tasks of a split that was not trained on.
        num_steps: K; ignored by a method that takes no steps.
        chunks: How tasks are split over threads.
    """

    def scores(part: Tasks) -> Tensor:
        with torch.no_grad():
            predictions = method.predictions(params, buffers, part.support, part.query.x, num_steps)
        return torch.stack([score(p, part.query.y).double() for p in predictions], 1)

    return AdaptationCurve(torch.cat(chunks.map(scores, len(tasks.support.x), tasks)), env_steps=0)


def nearest_neighbour(support: Examples, query_x: Tensor, num_classes: int) -> Tensor:
    """The reference that learns nothing: a query has the class of the nearest support example, pixel by pixel.

    Args:
        support: Support examples.
        query_x: `[task, query, *input]`.
        num_classes: Classes of a task.

    Returns:
        Predictions `[task, query, class]`: minus the Euclidean distance to the nearest example of each class.
    """
    distances = torch.cdist(query_x.flatten(2), support.x.flatten(2))
    of_class = torch.nn.functional.one_hot(support.y, num_classes).bool().unsqueeze(1)
    return -torch.where(of_class, distances.unsqueeze(-1), torch.inf).amin(2)
