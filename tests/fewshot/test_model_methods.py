"""Meta-LSTM and SNAIL from first principles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarl.adaptation import adapt
from metarl.fewshot import meta_lstm
from metarl.fewshot.meta_lstm import MetaLSTM, Signal, State, optimizer_step, preprocess
from metarl.fewshot.method import Method
from metarl.fewshot.networks import BatchNorm, Network
from metarl.fewshot.snail import SNAIL, AttentionBlock, CausalNetwork, Sequences, TCBlock
from metarl.fewshot.supervised import prediction_loss
from metarl.fewshot.tasks import Examples, Tasks
from metarl.ops.tree import expand_tasks, select_tasks
from metarl.types import Params

WAYS, INPUTS, SUPPORT, QUERIES = 3, 2, 6, 5


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def module(outputs: int, batch_norm: BatchNorm | None = None, width: int = 4) -> nn.Module:
    norm = [] if batch_norm is None else [nn.BatchNorm1d(width, track_running_stats=batch_norm == "running")]
    net = nn.Sequential(nn.Linear(INPUTS, width), *norm, nn.Tanh(), nn.Linear(width, outputs))
    random = generator(0)
    for value in net.parameters():
        nn.init.normal_(value, 0.2, 0.5, generator=random)
    return net.double()


def make(name: str, batch_norm: BatchNorm | None = None, is_classification: bool = True) -> Method:
    outputs = WAYS if is_classification else 1
    if name == "meta_lstm":
        return MetaLSTM(Network(module(outputs, batch_norm)), num_inner_steps=3, inner_lr=0.3, hidden_size=3)
    attention = ((5, 4), (6, 5), (4, 3))
    embedding = Network(module(7, batch_norm))
    return SNAIL(embedding, 7, outputs, SUPPORT + 1, is_classification, filters=4, attention=attention)


def double(params: Params, noise: float = 0.0) -> Params:
    """In float64, and some way from the start of training."""
    random = generator(7)
    return {
        name: value.double() + noise * torch.randn(value.shape, generator=random, dtype=torch.float64)
        for name, value in params.items()
    }


def make_tasks(num_tasks: int, is_classification: bool = True, num_queries: int = QUERIES) -> Tasks:
    random = generator(3)

    def examples(count: int) -> Examples:
        x = torch.randn(num_tasks, count, INPUTS, generator=random, dtype=torch.float64)
        if is_classification:
            return Examples(x, torch.randint(WAYS, (num_tasks, count), generator=random))
        return Examples(x, torch.randn(num_tasks, count, 1, generator=random, dtype=torch.float64))

    return Tasks(examples(SUPPORT), examples(num_queries))


def assert_close(actual: object, expected: object, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


both = pytest.mark.parametrize("name", ["meta_lstm", "snail"])
both_modes = pytest.mark.parametrize("batch_norm", ["transductive", "running"])


# Both methods


@both
@both_modes
@pytest.mark.parametrize("is_classification", [True, False])
def test_tasks_together_are_tasks_one_by_one(name: str, batch_norm: BatchNorm, is_classification: bool) -> None:
    method, tasks = make(name, batch_norm, is_classification), make_tasks(4, is_classification)
    params, buffers = double(method.initial_params(), 0.1), method.initial_buffers()
    together = method.direction(params, buffers, tasks)
    predicted = method.predictions(params, buffers, tasks.support, tasks.query.x, 4)
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for i in range(4):
        task = select_tasks(tasks, slice(i, i + 1))
        alone = method.direction(params, buffers, task)
        total = {name: value + alone.gradient[name] for name, value in total.items()}
        assert_close(alone.measured, {key: value[i : i + 1] for key, value in together.measured.items()})
        assert_close(alone.buffers, {key: value[i : i + 1] for key, value in together.buffers.items()})
        assert_close(
            method.predictions(params, buffers, task.support, task.query.x, 4),
            [step[i : i + 1] for step in predicted],
        )
    assert_close(together.gradient, total)


@both
@both_modes
def test_permuting_tasks_permutes_results(name: str, batch_norm: BatchNorm) -> None:
    method, tasks, order = make(name, batch_norm), make_tasks(4), torch.tensor([2, 0, 3, 1])
    params, buffers = double(method.initial_params(), 0.1), method.initial_buffers()
    permuted = Tasks(*(Examples(part.x[order], part.y[order]) for part in tasks))
    first, second = method.direction(params, buffers, tasks), method.direction(params, buffers, permuted)
    assert_close(second.gradient, first.gradient)
    assert_close(second.measured, {key: value[order] for key, value in first.measured.items()})
    assert_close(
        method.predictions(params, buffers, permuted.support, permuted.query.x, 2),
        [step[order] for step in method.predictions(params, buffers, tasks.support, tasks.query.x, 2)],
    )


@both
def test_query_labels_do_not_reach_predictions(name: str) -> None:
    # The losses of one query under each possible label are those of one distribution: their likelihoods sum to 1.
    method, tasks = make(name), make_tasks(2, num_queries=1)
    params = double(method.initial_params(), 0.1)
    likelihoods = [
        method.direction(params, {}, tasks._replace(query=Examples(tasks.query.x, torch.full((2, 1), label))))
        .measured["loss"]
        .neg()
        .exp()
        for label in range(WAYS)
    ]
    assert_close(torch.stack(likelihoods).sum(0), torch.ones(2, dtype=torch.float64))
    assert len({round(float(value[0]), 6) for value in likelihoods}) == WAYS


@both
@both_modes
def test_queries_influence_each_other_in_transductive_mode_alone(name: str, batch_norm: BatchNorm) -> None:
    method, tasks = make(name, batch_norm), make_tasks(2)
    params = double(method.initial_params(), 0.1)
    buffers = {
        key: value + 0.3 if value.is_floating_point() else value for key, value in method.initial_buffers().items()
    }
    together = method.predictions(params, buffers, tasks.support, tasks.query.x, 2)[-1]
    other = tasks.query.x.clone()
    other[:, 1:] += 1.0
    changed = method.predictions(params, buffers, tasks.support, other, 2)[-1]
    if batch_norm == "running":
        assert_close(changed[:, 0], together[:, 0])
    else:
        assert not torch.allclose(changed[:, 0], together[:, 0], atol=1e-4)


@both
def test_running_statistics_move_in_training_alone(name: str) -> None:
    method, tasks = make(name, "running"), make_tasks(2)
    params, buffers = double(method.initial_params()), method.initial_buffers()
    before = {key: value.clone() for key, value in buffers.items()}
    after = method.direction(params, buffers, tasks).buffers
    method.predictions(params, buffers, tasks.support, tasks.query.x, 2)
    assert_close(buffers, before, 0.0)
    assert set(after) == set(before)
    assert not torch.equal(after["1.running_mean"][0], before["1.running_mean"])


@both
@pytest.mark.parametrize("is_classification", [True, False])
def test_learns_a_toy_problem(name: str, is_classification: bool) -> None:
    # Clusters whose labels are dealt anew for every task; or lines through 0 of any slope.
    random = generator(1)

    def draw(num_tasks: int) -> Tasks:
        if is_classification:
            means = 2.0 * torch.randn(num_tasks, WAYS, INPUTS, generator=random)

            def examples(count: int) -> Examples:
                y = torch.arange(count).remainder(WAYS).expand(num_tasks, -1)
                centres = means.gather(1, y[..., None].expand(-1, -1, INPUTS))
                return Examples(centres + 0.2 * torch.randn(num_tasks, count, INPUTS, generator=random), y)
        else:
            slope = torch.randn(num_tasks, INPUTS, 1, generator=random)

            def examples(count: int) -> Examples:
                x = torch.randn(num_tasks, count, INPUTS, generator=random)
                return Examples(x, x @ slope)

        return Tasks(examples(SUPPORT), examples(QUERIES))

    outputs = WAYS if is_classification else 1
    method: Method
    if name == "meta_lstm":
        method = MetaLSTM(Network(module(outputs, width=16).float()), num_inner_steps=3, inner_lr=0.1, hidden_size=4)
    else:
        embedding = Network(module(8, width=16).float())
        attention = ((8, 8), (16, 16), (16, 16))
        method = SNAIL(embedding, 8, outputs, SUPPORT + 1, is_classification, 16, attention)
    params = {key: value.requires_grad_() for key, value in method.initial_params().items()}
    optimizer = torch.optim.Adam(params.values(), 0.01)
    for _ in range(150):
        detached = {key: value.detach() for key, value in params.items()}
        gradient = method.direction(detached, {}, draw(16)).gradient
        for key, value in params.items():
            value.grad = gradient[key] / 16
        optimizer.step()
    trained = {key: value.detach() for key, value in params.items()}
    test = draw(300)
    predictions = method.predictions(trained, {}, test.support, test.query.x, 3)[-1]
    if is_classification:
        assert float((predictions.argmax(-1) == test.query.y).float().mean()) > 0.8
    else:
        # Predicting 0 has error E (slope . x)^2 = 2.
        assert float(prediction_loss(predictions, test.query.y).mean()) < 1.0


# Meta-LSTM


def test_preprocessing_by_hand() -> None:
    tiny = math.exp(-10.0)
    x = torch.tensor([1.0, -1.0, math.e, -tiny * math.e**3, tiny / 2, -tiny / 4, 0.0], dtype=torch.float64)
    expected = [[0.0, 1.0], [0.0, -1.0], [0.1, 1.0], [-0.7, -1.0], [-1.0, 0.5], [-1.0, -0.25], [-1.0, 0.0]]
    assert_close(preprocess(x), torch.tensor(expected, dtype=torch.float64))


def with_constant_gates(method: MetaLSTM, alpha: float) -> Params:
    """Parameters whose forget gate is 1 and whose input gate is alpha, whatever they see."""
    params = double(method.initial_params())
    for gate, bias in (("forget", 40.0), ("input", math.log(alpha / (1 - alpha)))):
        params[f"meta_lstm.{gate}_gate.weight"].zero_()
        params[f"meta_lstm.{gate}_gate.bias"].fill_(bias)
    return params


@pytest.mark.parametrize("is_classification", [True, False])
def test_is_gradient_descent_with_constant_gates(is_classification: bool) -> None:
    network = Network(module(WAYS if is_classification else 1, "transductive"))
    tasks, alpha = make_tasks(3, is_classification), 0.3
    method = MetaLSTM(network, num_inner_steps=4)

    def loss(params: Params, examples: Examples) -> Tensor:
        return prediction_loss(network.learning(params, examples.x), examples.y)

    start = expand_tasks(network.initial_params(), 3)
    expected = adapt(start, [tasks.support] * 4, loss, inner_lr=alpha)
    params = with_constant_gates(method, alpha)
    actual = method.predictions(params, {}, tasks.support, tasks.query.x, 4)
    assert_close(actual, [network.testing(theta, tasks.query.x, {}) for theta in expected])
    # And with g_t as a constant, theta_T moves with c_0 one to one: first-order MAML.
    last = {name: value.requires_grad_() for name, value in expected[-1].items()}
    first_order = torch.autograd.grad(loss(last, tasks.query).sum(), list(last.values()))
    gradient = method.direction(params, {}, tasks).gradient
    assert_close([gradient[name] for name in last], [value.sum(0) for value in first_order])


def test_starts_near_gradient_descent() -> None:
    method = MetaLSTM(Network(module(WAYS)), inner_lr=0.2)
    own = {name.removeprefix("meta_lstm."): value.double() for name, value in method.initial_params().items()}
    theta, gradient = torch.randn(2, 50, generator=generator(0), dtype=torch.float64)
    after = optimizer_step(own, State.start(theta, 20), Signal(gradient, torch.ones_like(theta)))
    torch.testing.assert_close(after.theta, theta - 0.2 * gradient, rtol=0, atol=0.05)
    assert float(after.forget_gate.min()) > 0.99
    torch.testing.assert_close(after.input_gate, torch.full_like(theta, 0.2), rtol=0.05, atol=0)


@pytest.mark.parametrize("inner_lr", [0.0, 1.0, -0.1])
def test_the_input_gate_must_be_able_to_start_as_the_step_size(inner_lr: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        MetaLSTM(Network(module(WAYS)), inner_lr=inner_lr)


def test_is_coordinate_wise() -> None:
    method, random = MetaLSTM(Network(module(WAYS)), hidden_size=3), generator(2)
    own = {name.removeprefix("meta_lstm."): value for name, value in double(method.initial_params(), 0.5).items()}
    order = torch.randperm(9, generator=random)
    state = permuted = State.start(torch.randn(9, generator=random, dtype=torch.float64), 3)
    permuted = select_tasks(permuted, order)  # type: ignore[arg-type]
    loss = torch.full((9,), 0.7, dtype=torch.float64)
    for _ in range(3):
        gradient = torch.randn(9, generator=random, dtype=torch.float64)
        state = optimizer_step(own, state, Signal(gradient, loss))
        permuted = optimizer_step(own, permuted, Signal(gradient[order], loss))
        assert_close(permuted.theta, state.theta[order])
    moved = optimizer_step(own, state, Signal(gradient + torch.eye(9)[4], loss)).theta
    changed = moved != optimizer_step(own, state, Signal(gradient, loss)).theta
    assert changed.tolist() == [i == 4 for i in range(9)]


def learn(net: nn.Module, params: Params, task: Tasks, told: list[tuple[Tensor, Tensor]] | None) -> tuple:
    """The method for one task, written anew: query loss, and what the optimiser was told (or is told, if given)."""
    theta = torch.cat([params[name].flatten() for name, _ in net.named_parameters()])
    cell = nn.LSTMCell(4, 3).double()
    weight = params["meta_lstm.weight"]
    cell.load_state_dict(
        {
            "weight_ih": weight[:, :4],
            "weight_hh": weight[:, 4:],
            "bias_ih": params["meta_lstm.bias"],
            "bias_hh": torch.zeros(12),
        }
    )

    def loss(theta: Tensor, examples: Examples) -> Tensor:
        parts = theta.split([value.numel() for value in net.parameters()])
        named = {n: part.reshape(v.shape) for (n, v), part in zip(net.named_parameters(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, named, (examples.x[0],)), examples.y[0])

    states = [(torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))] * len(theta)
    gates = [[0.0, 0.0] for _ in theta]
    signals = []
    for t in range(3):
        if told is None:
            with torch.enable_grad():
                leaf = theta.clone().requires_grad_()
                value = loss(leaf, task.support)
                signals.append((torch.autograd.grad(value, leaf)[0], value.detach()))
        else:
            signals.append(told[t])
        gradient, value = signals[-1]
        new = []
        for j, g in enumerate(gradient):
            seen = []
            for number in (float(g), float(value)):
                large = abs(number) >= math.exp(-10)
                seen += [math.log(abs(number)) / 10, math.copysign(1, number)] if large else [-1, math.e**10 * number]
            states[j] = cell(torch.tensor(seen, dtype=torch.float64), states[j])
            for k, gate in enumerate(("forget", "input")):
                w, b = params[f"meta_lstm.{gate}_gate.weight"], params[f"meta_lstm.{gate}_gate.bias"]
                gates[j][k] = float(torch.sigmoid(w[:3] @ states[j][0] + w[3] * theta[j] + w[4] * gates[j][k] + b))
            new.append(gates[j][0] * theta[j] - gates[j][1] * g)
        theta = torch.stack(new)
    return loss(theta, task.query), signals


def test_meta_gradient_is_the_derivative_with_gradients_as_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_lstm, "ROWS_AT_ONCE", 5)
    net = nn.Linear(INPUTS, WAYS).double()
    method, tasks = MetaLSTM(Network(net), num_inner_steps=3, inner_lr=0.3, hidden_size=3), make_tasks(2)
    params = double(method.initial_params(), 0.3)
    each = [select_tasks(tasks, slice(i, i + 1)) for i in range(2)]
    with torch.no_grad():
        recorded = [learn(net, params, task, None) for task in each]
        result = method.direction(params, {}, tasks)
        assert_close(result.measured["loss"], torch.stack([value for value, _ in recorded]))

        def total(changed: Params) -> float:
            return sum(
                float(learn(net, changed, task, told)[0]) for task, (_, told) in zip(each, recorded, strict=True)
            )

        random, step = generator(5), 1e-5
        for name, value in params.items():
            for _ in range(3):
                along = torch.randn(value.shape, generator=random, dtype=torch.float64)
                ahead, behind = (total(params | {name: value + sign * step * along}) for sign in (1, -1))
                derivative = (ahead - behind) / (2 * step)
                assert float((result.gradient[name] * along).sum()) == pytest.approx(derivative, rel=1e-5, abs=1e-8)


def test_no_steps_train_the_start_alone() -> None:
    method, tasks = MetaLSTM(Network(module(WAYS)), num_inner_steps=0), make_tasks(2)
    params = double(method.initial_params())
    gradient = method.direction(params, {}, tasks).gradient
    assert len(method.predictions(params, {}, tasks.support, tasks.query.x, 0)) == 1
    for name, value in gradient.items():
        assert bool(value.any()) != name.startswith("meta_lstm.")


# SNAIL


def sequence(length: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(2, length, channels, generator=generator(seed), dtype=torch.float64)


def plain(rows: Tensor) -> Sequences:
    """One sequence: support rows, and one query."""
    return Sequences(rows, rows.shape[1] - 1)


def test_rows_read_what_comes_before_them() -> None:
    x = Sequences(torch.arange(1.0, 6.0).reshape(1, 5, 1), 3)
    assert x.visible().tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, True, True, False, False],
        [True, True, True, True, False],
        [True, True, True, False, True],
    ]
    assert x.earlier(1).flatten().tolist() == [0, 1, 2, 3, 3]
    assert x.earlier(2).flatten().tolist() == [0, 0, 1, 2, 2]
    assert x.earlier(4).flatten().tolist() == [0, 0, 0, 0, 0]


def blocks(kind: str, length: int) -> nn.Module:
    if kind == "tc":
        return TCBlock(3, length, 4, generator(0)).double()
    if kind == "attention":
        return AttentionBlock(3, 4, 5, generator(0)).double()
    return CausalNetwork(3, 2, length, 4, ((4, 5), (3, 2)), generator(0)).double().blocks


@pytest.mark.parametrize("kind", ["tc", "attention", "all"])
def test_the_future_changes_nothing(kind: str) -> None:
    # Labels are channels like any other.
    length = 7
    block, x = blocks(kind, length), sequence(length)
    before = block(plain(x)).rows
    for position in range(length):
        for channel in range(3):
            changed = x.clone()
            changed[:, position, channel] += 1.0
            after = block(plain(changed)).rows
            assert_close(after[:, :position], before[:, :position], 0.0)
            assert bool((after[:, position:] != before[:, position:]).any(-1).all())


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_a_dense_block_is_a_gated_dilated_convolution(dilation: int) -> None:
    block, x = blocks("tc", 8)[dilation.bit_length() - 1], None
    channels = block.convolution.in_features // 2
    x = sequence(7, channels)
    kernel = block.convolution.weight.reshape(8, 2, channels).transpose(1, 2)
    padded = F.pad(x.transpose(1, 2), (dilation, 0))
    activation, gate = F.conv1d(padded, kernel, block.convolution.bias, dilation=dilation).transpose(1, 2).split(4, -1)
    assert_close(block(plain(x)).rows, torch.cat([x, torch.tanh(activation) * torch.sigmoid(gate)], -1))


@pytest.mark.parametrize("length", [*range(1, 10), 16, 17, 21])
def test_receptive_field_and_number_of_dense_blocks(length: int) -> None:
    block = blocks("tc", length)
    depth = (length - 1).bit_length()  # ceil(log2 T) in whole numbers
    assert len(block) == depth
    assert block.out_channels == 3 + 4 * depth

    def reach(layers: nn.Module) -> int:
        """From how many positions back the last one still hears."""
        jacobian = torch.autograd.functional.jacobian(lambda x: layers(plain(x)).rows[:, -1], sequence(3 * length))
        assert isinstance(jacobian, Tensor)
        heard = jacobian.abs().sum((0, 1, 2, 4)) > 0
        assert bool(heard[-int(heard.sum()) :].all()), "no position is skipped"
        return int(heard.sum())

    assert length <= reach(block) == 2**depth
    if depth:
        assert reach(nn.Sequential(*list(block)[:-1])) < length


def test_attention_weights() -> None:
    block, x = blocks("attention", 5), Sequences(sequence(8), 5)
    weights = block.weights(x)
    assert_close(weights.sum(-1), torch.ones(2, 8, dtype=torch.float64))
    assert_close(weights[:, ~x.visible()], torch.zeros(2, int((~x.visible()).sum()), dtype=torch.float64), 0.0)
    # By hand, for the last of the support rows.
    row = x.rows[0, 4]
    logits = torch.stack([block.keys(other) @ block.queries(row) / 2.0 for other in x.rows[0, :5]])
    assert_close(weights[0, 4, :5], logits.exp() / logits.exp().sum())
    assert_close(block(x).rows[0, 4, 3:], weights[0, 4, :5] @ block.values(x.rows[0, :5]))


def test_queries_behind_one_support_set_are_sequences_of_their_own() -> None:
    network = CausalNetwork(3, 2, 7, 4, ((4, 5), (3, 2), (5, 4)), generator(0)).double()
    support, queries = sequence(6, seed=1), sequence(4, seed=2)
    together = network(Sequences(torch.cat([support, queries], 1), 6))
    for i in range(4):
        alone = network(plain(torch.cat([support, queries[:, i : i + 1]], 1)))
        assert_close(together[:, i : i + 1], alone)


def test_an_input_in_the_future_of_the_support_order_matters_to_the_query_alone() -> None:
    # Every support label reaches the prediction, whatever its place.
    method, tasks = make("snail"), make_tasks(2)
    params = double(method.initial_params(), 0.1)
    before = method.predictions(params, {}, tasks.support, tasks.query.x, 0)
    assert len(before) == 1
    for position in range(SUPPORT):
        y = tasks.support.y.clone()
        y[:, position] = (y[:, position] + 1) % WAYS
        (after,) = method.predictions(params, {}, Examples(tasks.support.x, y), tasks.query.x, 0)
        assert bool((after != before[0]).any(-1).all())


def test_no_label_is_no_label() -> None:
    # A target of 0 is not the absence of one: a support example with target 0 differs from an unlabelled query.
    method = SNAIL(Network(module(7)), 7, 1, 3, is_classification=False, filters=4, attention=((5, 4),))
    assert_close(method._labels(torch.tensor([[[0.0], [2.0]]])), torch.tensor([[[0.0, 1.0], [2.0, 1.0]]]))
    classes = SNAIL(Network(module(7)), 7, 2, 3, filters=4, attention=((5, 4),))
    assert classes._labels(torch.tensor([[0, 1]])).tolist() == [[[1, 0], [0, 1]]]


def test_a_support_set_may_be_smaller_but_not_larger() -> None:
    method, tasks = make("snail"), make_tasks(2)
    params = double(method.initial_params())
    smaller = Examples(tasks.support.x[:, :2], tasks.support.y[:, :2])
    assert method.predictions(params, {}, smaller, tasks.query.x, 0)[0].shape == (2, QUERIES, WAYS)
    larger = Examples(tasks.support.x.repeat(1, 2, 1), tasks.support.y.repeat(1, 2))
    with pytest.raises(ValueError, match="at most 6 support examples"):
        method.predictions(params, {}, larger, tasks.query.x, 0)


def test_meta_gradient_of_snail_by_finite_differences() -> None:
    method, tasks = make("snail", "transductive"), make_tasks(2)
    params = double(method.initial_params(), 0.1)
    gradient, random, step = method.direction(params, {}, tasks).gradient, generator(5), 1e-5
    for name, value in params.items():
        along = torch.randn(value.shape, generator=random, dtype=torch.float64)
        ahead, behind = (
            float(method.direction(params | {name: value + sign * step * along}, {}, tasks).measured["loss"].sum())
            for sign in (1, -1)
        )
        derivative = (ahead - behind) / (2 * step)
        assert float((gradient[name] * along).sum()) == pytest.approx(derivative, rel=1e-5, abs=1e-8)
