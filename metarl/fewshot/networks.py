"""Networks of the few-shot learners, and any module applied to tasks with its running statistics kept outside it.

Batch normalisation (Ioffe and Szegedy 2015) has two modes here, which are torch's own `track_running_stats`:

- transductive: every pass is normalised by the statistics of its own batch, in training and in testing. The queries of
  a task are normalised together, so that a prediction depends on the other queries (not on any label). This is what
  the published MAML does. On few queries at once it means little, on one nothing.
- running: a pass that learns is normalised by its own batch and moves a running average; queries are predicted with the
  running average at meta-test, so that no query sees another one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Literal, cast, final

import torch
from torch import Tensor, nn

from metarl.functional import check_follows, check_pure, initial_buffers, initial_params, per_task
from metarl.ops.tree import expand_tasks
from metarl.types import Params

BatchNorm = Literal["transductive", "running"]

FEW_QUERIES = 5
"""Below, statistics of the queries alone say little: of 87 % right on 75 queries at once 83 are left at 10, 77 at 5, 62
at 2 and chance at 1 (MAML, five glyphs to tell apart; docs/fewshot.md)."""


def linear_layer(in_features: int, out_features: int, generator: torch.Generator) -> nn.Linear:
    """Weights of Glorot and Bengio (2010), biases 0, and no number from torch's global generator."""
    layer = cast(nn.Linear, nn.utils.skip_init(nn.Linear, in_features, out_features))
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


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
            # Without torch's own initial weights, which would come from its global generator.
            stride = 1 if pooling else 2
            convolution = nn.utils.skip_init(nn.Conv2d, in_channels, channels, 3, stride=stride, padding=1)
            nn.init.kaiming_normal_(cast(Tensor, convolution.weight), nonlinearity="relu", generator=generator)
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
        self.linear = linear_layer(self.num_features, num_outputs, generator) if num_outputs else None
        self.head = ("linear.weight", "linear.bias") if num_outputs else ()

    def forward(self, images: Tensor) -> Tensor:
        """`[image, num_outputs]`, or `[image, num_features]` without a linear layer, of `[image, channel, h, w]`."""
        maps = self.features(images)
        features = maps.flatten(1) if self.pooling else maps.mean((2, 3))
        return features if self.linear is None else self.linear(features)


@final
class Network:
    """A module applied to a batch of tasks, each with parameters of its own; whatever the module is.

    Modules must be functions of parameters, buffers and inputs (`check`). Parameters that require a gradient are
    learnt; others stay as they are, and are read from the module at every pass.

    Args:
        module: Any module from `[example, *input]` to `[example, output]` (or one that says `takes_task_axis`).

    Attributes:
        module: The module, for its structure and initial numbers.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # Two twins with the same tensors, as the mode is a switch of the module, and threads would otherwise turn it
        # under one another.
        self._learner, self._tester = (
            copy.deepcopy(module, {id(v): v for v in module.parameters()}).train(mode) for mode in (True, False)
        )
        self._training, self._testing = per_task(self._learner), per_task(self._tester)
        self._scratch = initial_buffers(module)

    def check(self, x: Tensor) -> None:
        """Makes sure that the module is a function of parameters, buffers and inputs.

        Buffers may move in a pass that learns, as running statistics do, but its outputs must not depend on them:
        inner steps start from the same ones every time.

        Args:
            x: Some examples `[example, *input]`.

        Raises:
            ValueError: In one sentence, if it does not take them, draws random numbers (dropout of any kind), has a
                hidden state, or changes a buffer in a pass that predicts.
        """
        try:
            check_pure(copy.deepcopy(self.module).eval(), x, "The network")
            check_pure(_without_buffers(copy.deepcopy(self.module).train()), x, "The network")
        except (RuntimeError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"The network does not take examples {list(x.shape)}: {reason}") from error
        check_follows(self._tester, x, "The network")

    def initial_params(self) -> Params:
        """The module's own parameters that are learnt."""
        return initial_params(self.module)

    def initial_buffers(self) -> Params:
        """The module's own running statistics; empty without any."""
        return {name: value.clone() for name, value in self._scratch.items()}

    @property
    def frozen(self) -> Params:
        """The module's own parameters that are not learnt."""
        return {name: value.detach() for name, value in self.module.named_parameters() if not value.requires_grad}

    def load_constants(self, buffers: Params, frozen: Params) -> None:
        """Gives the module the buffers that passes which learn start from, and what `frozen` was."""
        self._scratch = {name: buffers[name].clone() for name in self._scratch}
        for name, value in self.frozen.items():
            value.copy_(frozen[name])

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

    def predictions(
        self, trajectory: Sequence[Params], support_x: Tensor, query_x: Tensor, buffers: Params
    ) -> list[Tensor]:
        """Outputs of `testing` for the queries under each of several parameter sets.

        Args:
            trajectory: Parameter sets `{name: [task, ...]}`.
            support_x: `[task, support, *input]`, to tell whether the network looks at other examples.
            query_x: `[task, query, *input]`.
            buffers: Running statistics.

        Raises:
            ValueError: If there is a single query to a task, and the network normalises it by itself. Less than
                `FEW_QUERIES` are a warning.
        """
        if query_x.shape[1] < FEW_QUERIES:
            self._check_company(trajectory[-1], support_x, query_x, buffers)
        return [self.testing(params, query_x, buffers) for params in trajectory]

    def _check_company(self, params: Params, support_x: Tensor, query_x: Tensor, buffers: Params) -> None:
        """Refuses one query, and warns of a few, if predictions hang on the examples beside them."""
        num = query_x.shape[1]
        # Twice the same queries have the statistics of once; torch takes no single number per channel.
        alone, beside = (
            self.testing(params, torch.cat([query_x, others], 1), buffers)[:, :num] for others in (query_x, support_x)
        )
        # Not so where they are not finite.
        if not (alone - beside).abs().max() > 1e-3 * alone.abs().max():
            return
        problem = (
            "The network normalises queries by their own statistics (transductive batch normalisation), and there "
            f"{'is 1 query' if num == 1 else f'are {num} queries'} to a task"
        )
        better = "Predict them together with the support set, or train with running statistics (batch_norm)."
        if num == 1:
            raise ValueError(f"{problem}: its prediction would be chance. {better}")
        warnings.warn(f"{problem}: predictions are worse than for many. {better}", stacklevel=4)

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


def _without_buffers(module: nn.Module) -> nn.Module:
    """The module with its buffers as plain attributes, in place: they may then change."""
    for part in module.modules():
        for name, value in list(part.named_buffers(recurse=False)):
            delattr(part, name)
            setattr(part, name, value)
    return module


def _of_tasks(buffers: Params, num_tasks: int) -> Params:
    """A copy for each task, which the pass may change."""
    return {name: value.expand(num_tasks, *value.shape).clone() for name, value in buffers.items()}
