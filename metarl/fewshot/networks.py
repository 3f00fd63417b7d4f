"""Networks of the few-shot learners, and any module applied to tasks with its running statistics kept outside it.

Batch normalisation (Ioffe and Szegedy 2015) has two modes here, which are torch's own `track_running_stats`:

- transductive: every pass is normalised by the statistics of its own batch, in training and in testing. The queries of
  a task are normalised together, so that a prediction depends on the other queries (not on any label). This is what
  the published MAML does.
- running: a pass that learns is normalised by its own batch and moves a running average; queries are predicted with the
  running average at meta-test, so that no query sees another one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, cast, final

import torch
from torch import Tensor, nn

from metarl.functional import initial_buffers, initial_params, per_task
from metarl.ops.tree import expand_tasks
from metarl.types import Params

BatchNorm = Literal["transductive", "running"]


@final
class ConvNet(nn.Module):
    """Four times 3x3 convolution, batch normalisation and ReLU, then a linear layer (Finn et al. 2017, section 5.2).

    Args:
        input_shape: `(channel, height, width)` of an image.
        num_outputs: Width of the linear layer; 0 for an embedding without one.
        channels: Filters of each convolution.
        batch_norm: Mode of batch normalisation, see the module's docstring.
        pooling: Halve the image by 2x2 max-pooling after each module, and flatten what is left (mini-ImageNet);
            otherwise by convolutions of stride 2, and average what is left (Omniglot).
        generator: Source of the initial weights (He et al. 2015); biases start at 0.

    Attributes:
        head: Names of the parameters of the linear layer.
        num_features: Width of the embedding under it.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int = 0,
        channels: int = 64,
        batch_norm: BatchNorm = "transductive",
        pooling: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        in_channels, *size = input_shape
        layers: list[nn.Module] = []
        for _ in range(4):
            convolution = nn.Conv2d(in_channels, channels, 3, stride=1 if pooling else 2, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(cast(Tensor, convolution.bias))
            norm = nn.BatchNorm2d(channels, track_running_stats=batch_norm == "running")
            layers += [convolution, norm, nn.ReLU(), *([nn.MaxPool2d(2)] if pooling else [])]
            in_channels = channels
            size = [length // 2 if pooling else (length + 1) // 2 for length in size]
        if min(size) < 1:
            raise ValueError(f"Images of {'x'.join(map(str, input_shape))} are too small to be halved four times.")
        self.features = nn.Sequential(*layers)
        self.pooling = pooling
        self.num_features = channels * size[0] * size[1] if pooling else channels
        self.linear = nn.Linear(self.num_features, num_outputs) if num_outputs else None
        if self.linear is not None:
            nn.init.xavier_uniform_(self.linear.weight, generator=generator)
            nn.init.zeros_(self.linear.bias)
        self.head = ("linear.weight", "linear.bias") if num_outputs else ()

    def forward(self, images: Tensor) -> Tensor:
        """`[image, num_outputs]`, or `[image, num_features]` without a linear layer, of `[image, channel, h, w]`."""
        maps = self.features(images)
        features = maps.flatten(1) if self.pooling else maps.mean((2, 3))
        return features if self.linear is None else self.linear(features)


@final
class Network:
    """A module applied to a batch of tasks, each with parameters of its own; whatever the module is.

    Modules must be deterministic functions of parameters, buffers and inputs. All parameters are learnt; whether they
    say `requires_grad` is not read.

    Args:
        module: Any module from `[example, *input]` to `[example, output]` (or one that says `takes_task_axis`).

    Attributes:
        module: The module, for its structure and initial numbers.

    Raises:
        ValueError: If it has dropout, which would draw from torch's global generator, when predicting too.
    """

    def __init__(self, module: nn.Module) -> None:
        random = [name for name, part in module.named_modules() if isinstance(part, nn.modules.dropout._DropoutNd)]
        if random:
            raise ValueError(f"The network has dropout ({random[0]}); a few-shot network must be deterministic.")
        self.module = module
        # Two copies, as the mode is a switch of the module, and threads would otherwise turn it under one another.
        self._training = per_task(copy.deepcopy(module).train())
        self._testing = per_task(copy.deepcopy(module).eval())
        self._scratch = initial_buffers(module)

    def initial_params(self) -> Params:
        """The module's own parameters."""
        return initial_params(self.module)

    def initial_buffers(self) -> Params:
        """The module's own running statistics; empty without any."""
        return {name: value.clone() for name, value in self._scratch.items()}

    def learning(self, params: Params, x: Tensor) -> Tensor:
        """Outputs of a pass that learns: normalised by the statistics of each task's own batch, which are not kept.

        Args:
            params: `{name: [task, ...]}`.
            x: `[task, example, *input]`.
        """
        scratch = {name: value.to(x) if value.is_floating_point() else value for name, value in self._scratch.items()}
        return self._training(params | _of_tasks(scratch, len(x)), x)

    def learning_statistics(self, params: Params, x: Tensor, buffers: Params) -> tuple[Tensor, Params]:
        """The same, and the running statistics `[task, ...]` after it, each task's from `buffers` on."""
        moved = _of_tasks(buffers, len(x))
        return self._training(params | moved, x), moved

    def testing(self, params: Params, x: Tensor, buffers: Params) -> Tensor:
        """Outputs of a pass that predicts at meta-test: normalised by running statistics where the module has them."""
        return self._testing(params | _of_tasks(buffers, len(x)), x)

    def embed(
        self, params: Params, support_x: Tensor, query_x: Tensor, buffers: Params, learning: bool
    ) -> tuple[Tensor, Tensor, Params]:
        """Outputs for support and query examples under one set of parameters for all tasks, in one pass per task.

        In a pass that learns, and in any with transductive batch normalisation, the examples of a task are normalised
        together; otherwise each by running statistics.

        Args:
            params: `{name: [...]}`, without a task axis.
            support_x: `[task, support, *input]`.
            query_x: `[task, query, *input]`.
            buffers: Running statistics before it.
            learning: Whether the pass learns.

        Returns:
            Outputs `[task, support, output]` and `[task, query, output]`, and the running statistics after it,
            `[task, ...]` where the pass learns.
        """
        x = torch.cat([support_x, query_x], 1)
        of_tasks = expand_tasks(params, len(x))
        if learning:
            features, buffers = self.learning_statistics(of_tasks, x, buffers)
        else:
            features = self.testing(of_tasks, x, buffers)
        num_support = support_x.shape[1]
        return features[:, :num_support], features[:, num_support:], buffers


def _of_tasks(buffers: Params, num_tasks: int) -> Params:
    """A copy for each task, which the pass may change."""
    return {name: value.expand(num_tasks, *value.shape).clone() for name, value in buffers.items()}
