"""Sinusoid regression (Finn et al. 2017, section 5.1): y = A sin(x - phase), a task is (A, phase)."""

from __future__ import annotations

from typing import final

import numpy as np
import torch

from metarl.fewshot.tasks import SPLITS, Examples, Split, Tasks

AMPLITUDES, PHASES, INPUTS = (0.1, 5.0), (0.0, float(np.pi)), (-5.0, 5.0)
"""Bounds of the uniform laws of amplitude, phase and input."""


@final
class Sinusoid:
    """Regression tasks: A ~ U[0.1, 5], phase ~ U[0, pi], x ~ U[-5, 5] for support and query alike.

    Args:
        shots: Support examples.
        queries: Query examples.
    """

    is_classification = False
    input_shape = (1,)
    num_outputs = 1
    fingerprint = "sinusoid"

    def __init__(self, shots: int, queries: int) -> None:
        self.shots, self.queries = shots, queries
        self.num_examples = shots + queries

    def sample(self, num_tasks: int, split: Split, seed: int, start: int = 0) -> Tasks:
        """See `TaskSource.sample`. A task's parameters do not depend on the number of its examples."""
        key = SPLITS.index(split)
        unit = np.stack(
            [
                np.random.default_rng((key, seed, start + i)).random(2 + self.shots + self.queries)
                for i in range(num_tasks)
            ]
        )
        amplitude, phase = (_between(unit[:, i, None], bounds) for i, bounds in enumerate((AMPLITUDES, PHASES)))
        x = _between(unit[:, 2:], INPUTS)
        examples = Examples(*(torch.from_numpy(v).float().unsqueeze(-1) for v in (x, amplitude * np.sin(x - phase))))
        support, query = (
            Examples(*(v[:, part] for v in examples)) for part in (slice(self.shots), slice(self.shots, None))
        )
        return Tasks(support, query)

    @staticmethod
    def parameters(num_tasks: int, split: Split, seed: int, start: int = 0) -> np.ndarray:
        """Amplitude and phase of the same tasks, `[task, 2]`, for figures."""
        unit = [np.random.default_rng((SPLITS.index(split), seed, start + i)).random(2) for i in range(num_tasks)]
        return np.stack([_between(np.array(unit)[:, i], bounds) for i, bounds in enumerate((AMPLITUDES, PHASES))], 1)


def _between(unit: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Numbers in [0, 1) moved onto an interval."""
    return bounds[0] + (bounds[1] - bounds[0]) * unit
