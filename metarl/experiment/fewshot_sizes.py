"""What a few-shot run must hold at once; see `sizes`."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter

from metarl.experiment.fewshot_config import FewShotConfig
from metarl.experiment.sizes import FLOAT, Sizes, check_fits, layer_numbers
from metarl.fewshot.tasks import TaskSource

_OF_TASKS = ("shots", "queries", "test_shots", "test_queries", "learner.meta_batch_size", "validation.num_tasks")
_OF_IMAGES = ("network.channels",)
_OF_VECTORS = ("network.hidden_sizes",)
_OF_METHOD = {"meta-lstm": ("learner.lstm_size",), "snail": ("learner.tc_filters", "learner.attention_keys")}


def check_fewshot_fits(config: FewShotConfig, source: TaskSource, label: Callable[[str], str]) -> None:
    """Refuses a run whose tasks or whose network do not fit into memory.

    Args:
        config: The run's settings.
        source: Its tasks, of which none is drawn.
        label: A field as the person knows it.

    Raises:
        UserError: Naming the size to make smaller.
    """
    images = len(source.input_shape) == 3
    names = (*_OF_TASKS, *(_OF_IMAGES if images else _OF_VECTORS), *_OF_METHOD.get(config.method, ()))
    ways = config.ways if source.is_classification else 1
    # Sine waves are drawn in double precision, inputs and targets.
    drawn = 1 if images else 6

    def need(sizes: Sizes) -> int:
        support, queries = ways * sizes["shots"], ways * sizes["queries"]
        tested = ways * ((sizes["test_shots"] or sizes["shots"]) + sizes["test_queries"])
        if images:
            network, of_example, width = _convolutions(source.input_shape, sizes["network.channels"])
        else:
            hidden = sizes["network.hidden_sizes"]
            network = layer_numbers((*source.input_shape, *hidden, source.num_outputs))
            of_example, width = sum(hidden), hidden[-1]
        if config.method == "meta-lstm":
            lstm = sizes["learner.lstm_size"]
            network = network * lstm + 4 * lstm * (4 + lstm)
        longest = max(support + queries, tested)
        if config.method == "snail":
            # Every row may look at every other.
            of_example += longest
            network += _snail(width, ways * max(sizes["shots"], sizes["test_shots"]) + 1, sizes)
        trained = sizes["learner.meta_batch_size"] * (support + queries)
        numbers = drawn * math.prod(source.input_shape) * max(trained, tested) + of_example * longest
        scores = 4 * sizes["validation.num_tasks"] * (config.num_test_steps + 1) if config.validation.every else 0
        return FLOAT * (network + numbers + scores)

    sizes, usual = ({name: attrgetter(name)(c) for name in names} for c in (config, FewShotConfig()))
    check_fits(sizes, usual, need, label)


def _convolutions(shape: tuple[int, ...], channels: int) -> tuple[int, int, int]:
    """Least weights of the four layers, numbers that the first one makes of an image, and the width of the features."""
    depth, height, width = shape
    return 9 * channels * (depth + 3 * channels), channels * (height // 2) * (width // 2), channels


def _snail(width: int, num_examples: int, sizes: Sizes) -> int:
    """Least weights of SNAIL's blocks behind features of some width."""
    filters, keys = sizes["learner.tc_filters"], sizes["learner.attention_keys"]
    blocks = math.ceil(math.log2(num_examples))
    dense = sum(4 * filters * (width + i * filters) for i in range(blocks))
    # An attention block appends values half as wide as its keys to what the next one reads.
    attention = sum(2 * keys[i] * (width + sum(keys[:i]) // 2) for i in range(len(keys)))
    return dense + attention
