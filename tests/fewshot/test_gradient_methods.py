"""MAML, FOMAML, Reptile, Meta-SGD and ANIL against closed forms, finite differences and a loop over tasks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metarl.fewshot.maml import MAML, supervised_inner_loop
from metarl.fewshot.method import Method
from metarl.fewshot.networks import BatchNorm, ConvNet, Network
from metarl.fewshot.reptile import Reptile, mini_batches
from metarl.fewshot.supervised import prediction_loss
from metarl.fewshot.tasks import Examples, Tasks
from metarl.ops.tree import flatten, select_tasks
from metarl.types import Params

TASKS, ALPHA = 3, 0.15
MODES: tuple[BatchNorm, ...] = ("transductive", "running")


def double(method: Method) -> tuple[Params, Params]:
    """Meta-parameters away from their start, and running statistics, in float64."""
    generator = torch.Generator().manual_seed(5)
    params = {
        name: value.double() + 0.05 * torch.rand(value.shape, generator=generator, dtype=torch.float64)
        for name, value in method.initial_params().items()
    }
    buffers = {n: v.double() if v.is_floating_point() else v for n, v in method.initial_buffers().items()}
    return params, buffers


def regression(num_support: int = 4, num_query: int = 6, width: int = 3) -> Tasks:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Tasks(
        Examples(draw(TASKS, num_support, width), draw(TASKS, num_support, 1)),
        Examples(draw(TASKS, num_query, width), draw(TASKS, num_query, 1)),
    )


def images(ways: int = 3, shots: int = 2, queries: int = 4, size: int = 16) -> Tasks:
    generator = torch.Generator().manual_seed(2)

    def draw(of_class: int) -> Examples:
        x = torch.rand(TASKS, ways * of_class, 1, size, size, generator=generator, dtype=torch.float64)
        return Examples(x, torch.arange(ways).repeat(of_class).expand(TASKS, -1).contiguous())

    return Tasks(draw(shots), draw(queries))


class Line(nn.Module):
    """y = w x: every derivative of its squared error is known."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[0.3], [-0.7], [1.1]]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def smooth_conv(batch_norm: BatchNorm) -> nn.Module:
    """Somebody's own module: no ReLU, so that finite differences hold everywhere."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, track_running_stats=batch_norm == "running")
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), norm, nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))


def gradient_and_hessian(w: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
    """Of the mean squared error of one task, as the school book has them."""
    x, y = examples
    return 2 / len(x) * x.T @ (x @ w - y), 2 / len(x) * x.T @ x


def expected_maml(w: Tensor, task: Tasks, num_steps: int, hessian_term: bool) -> Tensor:
    """prod_k (I - alpha H) grad L_query(w_K); H is the same at every step of a quadratic."""
    moved = w
    for _ in range(num_steps):
        gradient, hessian = gradient_and_hessian(moved, task.support)
        moved = moved - ALPHA * gradient
    outer, _ = gradient_and_hessian(moved, task.query)
    for _ in range(num_steps if hessian_term else 0):
        outer = outer - ALPHA * hessian @ outer
    return outer


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_the_meta_gradient_on_lines_is_its_closed_form(num_steps: int) -> None:
    """Identity term alone: FOMAML. With the Hessian term: MAML. Both on their own, so that neither hides the other."""
    tasks = regression()
    second, first = (MAML(Network(Line()), num_steps, inner_lr=ALPHA, first_order=first) for first in (False, True))
    params, buffers = double(second)
    of_tasks = [select_tasks(tasks, slice(i, i + 1)) for i in range(TASKS)]
    alone = [Tasks(*(Examples(e.x[0], e.y[0]) for e in task)) for task in of_tasks]
    exact = sum(expected_maml(params["w"], task, num_steps, True) for task in alone)
    identity = sum(expected_maml(params["w"], task, num_steps, False) for task in alone)
    maml, fomaml = (method.direction(params, buffers, tasks).gradient["w"] for method in (second, first))
    torch.testing.assert_close(fomaml, identity, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(maml - fomaml, exact - identity, rtol=1e-12, atol=1e-12)
    assert num_steps == 0 or (maml - fomaml).norm() > 0.1 * maml.norm()


def test_reptile_on_lines_is_the_way_back_from_where_gradient_descent_leads() -> None:
    tasks = regression()
    method = Reptile(Network(Line()), num_inner_steps=4, inner_lr=ALPHA, batch_size=5)
    params, buffers = double(method)
    expected = torch.zeros_like(params["w"])
    for i in range(TASKS):
        x, y = (torch.cat([a[i], b[i]]) for a, b in zip(tasks.support, tasks.query, strict=True))
        w = params["w"]
        for rows in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]):
            w = w - ALPHA * gradient_and_hessian(w, Examples(x[rows], y[rows]))[0]
        expected += params["w"] - w
    direction = method.direction(params, buffers, tasks)
    torch.testing.assert_close(direction.gradient["w"], expected, rtol=1e-12, atol=1e-12)


def test_mini_batches_go_round_and_hold_what_there_is() -> None:
    examples = Examples(torch.arange(6.0).reshape(1, 6, 1), torch.arange(6).reshape(1, 6))
    assert [b.y[0].tolist() for b in mini_batches(examples, 4, 3)] == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]
    assert [b.y[0].tolist() for b in mini_batches(examples, 10, 2)] == [list(range(6))] * 2
    assert mini_batches(examples, 4, 0) == []


SWITCHES = [
    {}, {"learned_lr": "shared"}, {"learned_lr": "per_step"}, {"adapted": "head"}, {"first_order": True}
]  # fmt: skip


@pytest.mark.parametrize("batch_norm", MODES)
@pytest.mark.parametrize("switches", SWITCHES[:4], ids=str)
def test_two_inner_steps_of_any_module_have_the_gradient_of_finite_differences(
    batch_norm: BatchNorm, switches: dict[str, object]
) -> None:
    module = smooth_conv(batch_norm)
    module.head = ("4.weight", "4.bias")  # pyright: ignore
    method = MAML(Network(module), 2, inner_lr=0.3, **switches)
    params, buffers = double(method)
    tasks = images()
    vector, unflatten = flatten(params)
    analytic = flatten(method.direction(params, buffers, tasks).gradient)[0]
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        along = torch.randn(len(vector), generator=generator, dtype=torch.float64)
        along, step = along / along.norm(), 1e-5
        losses = [method.meta_loss(unflatten(vector + s * along), buffers, tasks).loss.sum() for s in (step, -step)]
        slope = (losses[0] - losses[1]).detach() / (2 * step)
        torch.testing.assert_close(analytic @ along, slope, rtol=1e-6, atol=1e-8)


def every_method(batch_norm: BatchNorm) -> dict[str, Method]:
    def network() -> Network:
        return Network(ConvNet((1, 16, 16), 3, channels=4, batch_norm=batch_norm))

    methods: dict[str, Method] = {str(s): MAML(network(), 2, inner_lr=0.3, **s) for s in SWITCHES}
    return methods | {"reptile": Reptile(network(), 3, 0.3, 4)}


@pytest.mark.parametrize("batch_norm", MODES)
@pytest.mark.parametrize("name", [*map(str, SWITCHES), "reptile"])
def test_vmapped_tasks_equal_a_loop_over_tasks(batch_norm: BatchNorm, name: str) -> None:
    method, tasks = every_method(batch_norm)[name], images()
    params, buffers = double(method)
    together = method.direction(params, buffers, tasks)
    alone = [method.direction(params, buffers, select_tasks(tasks, slice(i, i + 1))) for i in range(TASKS)]
    for entry, value in together.gradient.items():
        torch.testing.assert_close(value, sum(part.gradient[entry] for part in alone), rtol=1e-9, atol=1e-11)
    assert (len(together.buffers) > 0) == (batch_norm == "running")
    for kind in ("buffers", "measured"):
        for entry, value in getattr(together, kind).items():
            torch.testing.assert_close(value, torch.cat([getattr(part, kind)[entry] for part in alone]))
    said = method.predictions(params, buffers, tasks.support, tasks.query.x, 2)
    of_last = method.predictions(params, buffers, *_task(tasks, 2), 2)
    for ours, single in zip(said, of_last, strict=True):
        torch.testing.assert_close(ours[2:], single, rtol=1e-9, atol=1e-11)


def _task(tasks: Tasks, i: int) -> tuple[Examples, Tensor]:
    one = select_tasks(tasks, slice(i, i + 1))
    return one.support, one.query.x


@pytest.mark.parametrize("name", [*map(str, SWITCHES), "reptile"])
def test_a_prediction_reads_no_query_but_its_own_unless_batch_norm_is_transductive(name: str) -> None:
    """And never a label of a query: `predictions` is not given any. Transductive means exactly this leak of inputs."""
    tasks = images()
    for batch_norm in MODES:
        method = every_method(batch_norm)[name]
        params, buffers = double(method)
        whole = method.predictions(params, buffers, tasks.support, tasks.query.x, 2)[-1]
        part = method.predictions(params, buffers, tasks.support, tasks.query.x[:, :10], 2)[-1]
        same = torch.allclose(whole[:, :10], part, rtol=1e-9, atol=1e-11)
        assert same == (batch_norm == "running")


@pytest.mark.parametrize("name", [*map(str, SWITCHES)])
@pytest.mark.parametrize("batch_norm", MODES)
def test_labels_of_queries_never_influence_their_predictions(batch_norm: BatchNorm, name: str) -> None:
    """Not in training either, where they are at hand: they enter the loss alone."""
    method, tasks = every_method(batch_norm)[name], images()
    assert isinstance(method, MAML)
    params, buffers = double(method)
    other = tasks._replace(query=tasks.query._replace(y=2 - tasks.query.y))
    here, there = (method.meta_loss(params, buffers, t) for t in (tasks, other))
    assert torch.equal(here.predictions, there.predictions) and not torch.equal(here.loss, there.loss)
    assert all(torch.equal(value, there.buffers[entry]) for entry, value in here.buffers.items())


def test_running_statistics_are_those_of_the_adapted_networks_on_the_queries() -> None:
    """Moved once per outer step, from given ones; the passes on the support set leave no trace."""
    method, tasks = MAML(Network(smooth_conv("running")), 2, inner_lr=0.3), images()
    params, buffers = double(method)
    after = method.direction(params, buffers, tasks).buffers
    theta = method.inner.adapt(params, [tasks.support] * 2, TASKS, 2)[-1]
    for i in range(TASKS):
        maps = nn.functional.conv2d(tasks.query.x[i], theta["0.weight"][i], theta["0.bias"][i], stride=4)
        expected = 0.9 * buffers["1.running_mean"] + 0.1 * maps.mean((0, 2, 3))
        torch.testing.assert_close(after["1.running_mean"][i], expected)
        assert int(after["1.num_batches_tracked"][i]) == 1
    assert all(torch.equal(value, double(method)[1][name]) for name, value in buffers.items())


def test_anil_moves_the_head_alone_and_meta_sgd_starts_as_maml() -> None:
    tasks = images()
    methods = every_method("transductive")
    anil, maml = methods["{'adapted': 'head'}"], methods["{}"]
    assert isinstance(anil, MAML) and isinstance(maml, MAML)
    params, _ = double(anil)
    theta = anil.inner.adapt(params, [tasks.support] * 2, TASKS, 2)
    for name, value in theta[-1].items():
        assert torch.equal(value, theta[0][name]) == (not name.startswith("linear."))
    sgd = methods["{'learned_lr': 'per_step'}"]
    start = {name: value.double() for name, value in sgd.initial_params().items()}
    plain = {name: value for name, value in start.items() if not name.startswith("inner_lr.")}
    assert len(start) == 3 * len(plain)
    for a, b in zip(
        sgd.predictions(start, {}, tasks.support, tasks.query.x, 2),
        maml.predictions(plain, {}, tasks.support, tasks.query.x, 2),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_permuting_tasks_permutes_results() -> None:
    tasks, order = images(), torch.tensor([2, 0, 1])
    method = every_method("running")["{}"]
    params, buffers = double(method)
    shuffled = Tasks(*(Examples(e.x[order], e.y[order]) for e in tasks))
    here, there = (method.direction(params, buffers, t) for t in (tasks, shuffled))
    torch.testing.assert_close(there.measured["loss"], here.measured["loss"][order])
    torch.testing.assert_close(flatten(there.gradient)[0], flatten(here.gradient)[0])


def test_losses_are_means_over_examples_and_a_step_descends() -> None:
    """The sign: one small step on the support set lowers its loss, by the squared gradient times the step."""
    logits, labels = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]).double(), torch.tensor([[0, 1]])
    by_hand = -(torch.tensor(2.0).exp() / (torch.tensor(2.0).exp() + 1)).log() + torch.tensor(2.0).log()
    torch.testing.assert_close(prediction_loss(logits, labels), by_hand.double().reshape(1) / 2, rtol=1e-6, atol=0.0)
    tasks, step = regression(), 1e-5
    loop = supervised_inner_loop(Network(Line()), inner_lr=step)
    params = {"w": loop.initial_meta()["w"].double()}
    before, after = (loop.loss(theta, tasks.support) for theta in loop.adapt(params, [tasks.support], TASKS, 1))
    for i in range(TASKS):
        gradient, _ = gradient_and_hessian(params["w"], Examples(tasks.support.x[i], tasks.support.y[i]))
        torch.testing.assert_close(before[i] - after[i], step * gradient.square().sum(), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("build", [lambda n: MAML(n, 1, adapted="context"), lambda n: MAML(n, 1, adapted="head")])
def test_parts_that_a_module_has_not_are_refused(build: Callable[[Network], object]) -> None:
    with pytest.raises(ValueError, match="this module has no"):
        build(Network(Line()))


class Flat(nn.Module):
    """Forgets the axis of outputs, which a squared error would broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def test_modules_that_would_learn_something_else_are_refused() -> None:
    method = MAML(Network(Flat()), 1)
    with pytest.raises(ValueError, match=r"predicts \(3, 4\) .* tasks have \(3, 4, 1\)"):
        method.direction(*double(method), regression())


def test_images_that_cannot_be_halved_four_times_are_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        ConvNet((1, 8, 8), pooling=True)
