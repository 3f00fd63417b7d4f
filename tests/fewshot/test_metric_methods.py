"""Prototypical, Matching and Siamese networks: hand arithmetic, loops, symmetries, gradients, what they may read."""

import itertools
import math

import pytest
import torch
from torch import nn

from metarl.fewshot.matching import (
    Matching,
    class_log_probabilities,
    cosines,
    log_attention,
    query_context,
    support_context,
)
from metarl.fewshot.networks import Network
from metarl.fewshot.prototypical import Prototypical, class_means, squared_distances
from metarl.fewshot.siamese import (
    Siamese,
    balanced_mean,
    contrastive_loss,
    distances,
    log_odds,
    pairwise_cross_entropy,
    same_class,
)
from metarl.fewshot.tasks import Examples, Tasks
from metarl.ops.lstm import lstm_cell
from metarl.ops.tree import add_all, flatten, select_tasks

WAYS, INPUT, FEATURES = 3, 3, 2

METHODS = {
    "prototypical": lambda network: Prototypical(network, WAYS),
    "matching": lambda network: Matching(network, WAYS, FEATURES),
    "matching, as published": lambda network: Matching(network, WAYS, FEATURES, learn_scale=False),
    "matching, full context": lambda network: Matching(network, WAYS, FEATURES, full_context=True, num_reads=2),
    "siamese, contrastive": lambda network: Siamese(network, WAYS, FEATURES, "contrastive"),
    "siamese, cross-entropy": lambda network: Siamese(network, WAYS, FEATURES, "cross_entropy"),
}
WITHOUT_CONTEXT = [name for name in METHODS if name != "matching, full context"]
every_method = pytest.mark.parametrize("name", METHODS)


class Scaling(nn.Module):
    """Embeds an input as itself, times a parameter that is 1."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return self.factor * x


def smooth_module(batch_norm=None, seed=0):
    """A small float64 network with smooth activations, with or without batch normalisation."""
    norm = [] if batch_norm is None else [nn.BatchNorm1d(4, track_running_stats=batch_norm == "running")]
    module = nn.Sequential(nn.Linear(INPUT, 4), *norm, nn.Tanh(), nn.Linear(4, FEATURES)).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return module


def build(name, batch_norm=None):
    """A method on the smooth network, its float64 parameters, none of them at a special value, and its buffers."""
    method = METHODS[name](Network(smooth_module(batch_norm)))
    generator = torch.Generator().manual_seed(1)
    params = {
        key: value.double() + 0.1 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for key, value in method.initial_params().items()
    }
    return method, params, method.initial_buffers()


def random_tasks(num_tasks=2, shots=2, queries=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def examples(num_each):
        y = torch.arange(WAYS).repeat_interleave(num_each)
        order = torch.stack([torch.randperm(len(y), generator=generator) for _ in range(num_tasks)])
        return Examples(torch.randn(num_tasks, len(y), INPUT, generator=generator, dtype=torch.float64), y[order])

    return Tasks(examples(shots), examples(queries))


def unequal_shots():
    """Labels of 2 tasks whose classes have 1 to 3 examples."""
    return torch.tensor([[0, 1, 1, 2, 2, 2], [2, 0, 1, 0, 2, 0]])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predict(method, params, buffers, support, query_x):
    (prediction,) = method.predictions(params, buffers, support, query_x, 5)
    return prediction


def one_dimensional_tasks(support, support_y, query, query_y):
    def examples(x, y):
        return Examples(torch.tensor(x, dtype=torch.float64).reshape(1, -1, 1), torch.tensor([y]))

    return Tasks(examples(support, support_y), examples(query, query_y))


# Prototypical


def test_prototypes_and_their_distances_by_hand():
    values = torch.tensor([[[0.0, 2.0], [4.0, 4.0], [6.0, 0.0]]])
    means = class_means(values, torch.tensor([[1, 0, 1]]), 2)
    assert means.tolist() == [[[4.0, 4.0], [3.0, 1.0]]]
    assert squared_distances(torch.tensor([[[4.0, 1.0]]]), means).tolist() == [[[9.0, 1.0]]]


def test_a_prototypical_task_by_hand():
    """Prototypes 1 and 4, a query at 2 of the first class: logits -1 and -4, loss log(1 + e^-3)."""
    tasks = one_dimensional_tasks([0.0, 4.0, 2.0], [0, 1, 0], [2.0], [0])
    method = Prototypical(Network(Scaling()), 2)
    params = method.initial_params()
    assert predict(method, params, {}, tasks.support, tasks.query.x).tolist() == [[[-1.0, -4.0]]]
    direction = method.direction(params, {}, tasks)
    assert float(direction.measured["loss"]) == pytest.approx(math.log1p(math.exp(-3)), rel=1e-14)
    assert float(direction.measured["score"]) == 1.0
    # Logits grow with the square of the embedding's scale s: d/ds log(1 + e^(-3 s^2)) = -6 s / (1 + e^(3 s^2)).
    assert float(direction.gradient["factor"]) == pytest.approx(-6 / (1 + math.exp(3)), rel=1e-12)


def test_prototypical_logits_equal_loops_for_any_number_of_shots():
    support, queries, y = normal(2, 6, 4), normal(2, 5, 4, seed=1), unequal_shots()
    logits = predict(
        Prototypical(Network(Scaling()), WAYS), {"factor": torch.ones(())}, {}, Examples(support, y), queries
    )
    for task, query, k in itertools.product(range(2), range(5), range(WAYS)):
        members = [support[task, i] for i in range(6) if y[task, i] == k]
        prototype = sum(members) / len(members)
        expected = -sum((float(queries[task, query, f]) - float(prototype[f])) ** 2 for f in range(4))
        assert float(logits[task, query, k]) == pytest.approx(expected, rel=1e-12)


# Siamese


def pull(a, b, same, margin=1.0):
    """Minus the gradient of the contrastive loss of two embeddings: where a step moves each of them."""
    a, b = (torch.tensor(value, dtype=torch.float64).reshape(1, 1, -1).requires_grad_() for value in (a, b))
    loss = contrastive_loss(distances(a, b), torch.tensor([[[same]]]), margin)
    return [-gradient.flatten() for gradient in torch.autograd.grad(loss.sum(), (a, b))]


def test_the_contrastive_loss_by_hand():
    distance = torch.tensor([0.0, 0.25, 1.0, 3.0], dtype=torch.float64)
    of = {same: contrastive_loss(distance, torch.full((4,), same), 2.0).tolist() for same in (True, False)}
    assert of == {True: [0.0, 0.03125, 0.5, 4.5], False: [2.0, 1.53125, 0.5, 0.0]}


@pytest.mark.parametrize(("a", "b"), [([0.3, 0.0], [0.0, 0.4]), ([1.0, -2.0], [4.0, 2.0])])
def test_a_pair_of_one_class_is_pulled_together_by_all_of_its_difference(a, b):
    difference = torch.tensor(b, dtype=torch.float64) - torch.tensor(a, dtype=torch.float64)
    of_a, of_b = pull(a, b, same=True)
    torch.testing.assert_close(of_a, difference)
    torch.testing.assert_close(of_b, -difference)


def test_a_pair_of_two_classes_is_pushed_apart_by_what_it_lacks_to_the_margin():
    """At a distance of 0.5 and margin 0.8: 0.3 along the unit vector from one to the other, (-0.6, 0.8)."""
    of_a, of_b = pull([0.3, 0.0], [0.0, 0.4], same=False, margin=0.8)
    torch.testing.assert_close(of_b, 0.3 * torch.tensor([-0.6, 0.8], dtype=torch.float64))
    torch.testing.assert_close(of_a, -of_b)


def test_a_pair_of_two_classes_beyond_the_margin_is_left_alone():
    for gradient in pull([0.3, 0.0], [0.0, 0.4], same=False, margin=0.5 - 1e-12):
        assert gradient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("same", [True, False])
def test_two_equal_embeddings_have_a_finite_gradient(same):
    for gradient in pull([0.3, 0.4], [0.3, 0.4], same):
        assert gradient.tolist() == [0.0, 0.0]


def test_steps_against_the_gradient_gather_each_class_and_part_the_classes_to_the_margin_and_not_beyond():
    y, embeddings = torch.tensor([[0, 0, 1, 1]]), normal(1, 4, 2)
    for _ in range(2000):
        embeddings = embeddings.detach().requires_grad_()
        losses = contrastive_loss(distances(embeddings, embeddings), same_class(y), 1.5)
        embeddings = embeddings - 0.2 * torch.autograd.grad(balanced_mean(losses, y).sum(), embeddings)[0]
    expected = torch.where(same_class(y), 0.0, 1.5).double()
    torch.testing.assert_close(distances(embeddings.detach(), embeddings.detach()), expected, atol=1e-6, rtol=0)


def test_the_log_odds_and_their_cross_entropy_by_hand():
    a, b = torch.tensor([[[0.5, 0.25]]]), torch.tensor([[[0.25, 1.0]]])
    odds = log_odds(a, b, torch.tensor([-2.0, -4.0]), torch.tensor(1.5))
    assert odds.tolist() == [[[1.5 - 0.5 - 3.0]]]
    p = 1 / (1 + math.exp(2.0))
    for same, expected in ((True, -math.log(p)), (False, -math.log(1 - p))):
        assert float(pairwise_cross_entropy(odds, torch.tensor([[[same]]]))) == pytest.approx(expected, rel=1e-6)


def test_kinds_of_pairs_weigh_the_same_however_many_there_are_and_a_missing_kind_counts_nothing():
    y = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3], [1, 1, 1, 1]])
    losses = torch.where(same_class(y), 3.0, 5.0)
    losses += 100 * torch.eye(4)  # of an example and itself: no pair
    assert balanced_mean(losses, y).tolist() == [4.0, 2.5, 1.5]


@pytest.mark.parametrize("name", ["siamese, contrastive", "siamese, cross-entropy"])
def test_the_loss_of_a_task_equals_a_loop_over_its_pairs(name):
    method, params, buffers = build(name)
    tasks = random_tasks()
    measured = method.direction(params, buffers, tasks).measured["loss"]
    own = {key: params.pop(key) for key in list(params) if key.startswith("siamese.")}
    for task in range(2):
        x = torch.cat([tasks.support.x[task], tasks.query.x[task]])
        y = [*tasks.support.y[task].tolist(), *tasks.query.y[task].tolist()]
        embedded = torch.func.functional_call(smooth_module(), params, (x,))
        kinds = {True: [], False: []}
        for i, j in itertools.combinations(range(len(y)), 2):
            same = y[i] == y[j]
            if own:
                difference = (embedded[i].sigmoid() - embedded[j].sigmoid()).abs()
                p = torch.sigmoid(own["siamese.weight"] @ difference + own["siamese.bias"])
                kinds[same].append(-torch.log(p if same else 1 - p))
            else:
                d = (embedded[i] - embedded[j]).norm()
                kinds[same].append(0.5 * d**2 if same else 0.5 * max(0.0, method.margin - float(d)) ** 2)
        expected = sum(sum(map(float, kind)) / len(kind) for kind in kinds.values()) / 2
        assert float(measured[task]) == pytest.approx(expected, rel=1e-12)


def test_siamese_predictions_are_mean_similarities_for_any_number_of_shots():
    support, queries, y = normal(2, 6, 4), normal(2, 5, 4, seed=1), unequal_shots()
    examples, factor, alpha = Examples(support, y), torch.ones(()), -normal(4, seed=2).abs()
    by_distance = predict(
        Siamese(Network(Scaling()), WAYS, 4, "contrastive"), {"factor": factor}, {}, examples, queries
    )
    own = {"siamese.weight": alpha, "siamese.bias": torch.tensor(0.3).double()}
    by_odds = predict(
        Siamese(Network(Scaling()), WAYS, 4, "cross_entropy"), {"factor": factor} | own, {}, examples, queries
    )
    for task, query, k in itertools.product(range(2), range(5), range(WAYS)):
        members, x = support[task][y[task] == k], queries[task, query]
        far = [float((x - member).norm()) for member in members]
        assert float(by_distance[task, query, k]) == pytest.approx(-sum(far) / len(far), rel=1e-12)
        odds = [float(alpha @ (x.sigmoid() - member.sigmoid()).abs() + own["siamese.bias"]) for member in members]
        assert float(by_odds[task, query, k]) == pytest.approx(sum(odds) / len(odds), rel=1e-12)


# Matching


def test_attention_and_class_probabilities_sum_to_one():
    log_a = log_attention(normal(2, 5, 4), normal(2, 6, 4, seed=1), 10.0)
    torch.testing.assert_close(log_a.exp().sum(-1), torch.ones(2, 5).double())
    p = class_log_probabilities(log_a, unequal_shots(), WAYS).exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 5).double())


def test_matching_probabilities_equal_loops_for_any_number_of_shots():
    """As published: the softmax of bare cosines, added up over the examples of a class."""
    support, queries, y = normal(2, 6, 4), normal(2, 5, 4, seed=1), unequal_shots()
    method = Matching(Network(Scaling()), WAYS, 4, learn_scale=False)
    log_p = predict(method, {"factor": torch.ones(())}, {}, Examples(support, y), queries)
    for task, query in itertools.product(range(2), range(5)):
        x = queries[task, query]
        weights = [math.exp(float(x @ s / (x.norm() * s.norm()))) for s in support[task]]
        for k in range(WAYS):
            own = sum(weight for weight, label in zip(weights, y[task], strict=True) if label == k)
            # The constant that guards the norms is 1e-8 of a squared norm of 1.
            assert float(log_p[task, query, k].exp()) == pytest.approx(own / sum(weights), rel=1e-6)


def test_a_probability_too_small_for_a_float_keeps_its_logarithm():
    a, b = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    log_p = class_log_probabilities(log_attention(a, b, 200.0), torch.tensor([[0, 1]]), 2)
    assert log_p[0, 0].tolist() == pytest.approx([0.0, -400.0], rel=1e-6)


def test_an_embedding_of_zeros_has_cosine_0_and_a_finite_gradient():
    zeros = torch.zeros(1, 1, 4, requires_grad=True)
    similarity = cosines(zeros, torch.ones(1, 2, 4))
    assert similarity.tolist() == [[[0.0, 0.0]]]
    assert torch.isfinite(torch.autograd.grad(similarity.sum(), zeros)[0]).all()


def test_support_context_is_a_bidirectional_lstm_and_a_skip_connection():
    lstm = nn.LSTM(4, 4, bidirectional=True, batch_first=True).double()
    features = normal(2, 5, 4)
    of_module = dict(lstm.named_parameters())

    def cell(suffix):
        weight = torch.cat([of_module[f"weight_ih_l0{suffix}"], of_module[f"weight_hh_l0{suffix}"]], 1)
        return weight, of_module[f"bias_ih_l0{suffix}"] + of_module[f"bias_hh_l0{suffix}"]

    forward, backward = lstm(features)[0].chunk(2, -1)
    torch.testing.assert_close(
        support_context(features, cell(""), cell("_reverse")), features + forward + backward, rtol=1e-12, atol=1e-12
    )


def test_query_context_equals_a_loop_of_torchs_cell_over_each_query():
    """[h, r] beside f' in one matrix is an LSTM with input [f', r] and hidden state h."""
    queries, support, weight, bias = (
        normal(2, 3, 4),
        normal(2, 5, 4, seed=1),
        normal(16, 12, seed=2),
        normal(16, seed=3),
    )
    cell = nn.LSTMCell(8, 4).double()
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([weight[:, :4], weight[:, 8:]], 1))
        cell.weight_hh.copy_(weight[:, 4:8])
        cell.bias_ih.copy_(bias)
        cell.bias_hh.zero_()
    context = query_context(queries, support, weight, bias, num_reads=3)
    for task, query in itertools.product(range(2), range(3)):
        x = queries[task, query]
        h, c = x, torch.zeros(4).double()
        for _ in range(3):
            a = torch.stack([h @ s for s in support[task]]).softmax(0)
            read = sum(a[i] * support[task, i] for i in range(5))
            z, c = cell(torch.cat([x, read]), (h, c))
            h = z + x
        torch.testing.assert_close(context[task, query], h, rtol=1e-12, atol=1e-12)


def test_full_context_does_nothing_without_weights_or_without_reads():
    features = normal(2, 5, 4)
    silent = torch.zeros(16, 8).double(), torch.zeros(16).double()
    assert torch.equal(support_context(features, silent, silent), features)
    assert torch.equal(query_context(features, features, torch.zeros(16, 12), torch.zeros(16), 0), features)


def test_the_lstm_cell_is_torchs():
    cell = nn.LSTMCell(3, 5).double()
    x, h, c = normal(2, 4, 3), normal(2, 4, 5, seed=1), normal(2, 4, 5, seed=2)
    weight, bias = torch.cat([cell.weight_ih, cell.weight_hh], 1), cell.bias_ih + cell.bias_hh
    ours = lstm_cell(x, h, c, weight, bias)
    torchs = cell(x.flatten(0, 1), (h.flatten(0, 1), c.flatten(0, 1)))
    for own, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(own.flatten(0, 1), other, rtol=1e-12, atol=1e-12)


# Every method


@pytest.mark.parametrize("name", WITHOUT_CONTEXT)
def test_the_order_of_the_support_set_means_nothing_without_full_context(name):
    torch.testing.assert_close(*_in_two_orders(name), rtol=1e-12, atol=1e-12)


def test_the_order_of_the_support_set_is_read_with_full_context():
    one, other = _in_two_orders("matching, full context")
    assert float((one - other).abs().max()) > 1e-3


def _in_two_orders(name):
    method, params, buffers = build(name)
    support, query = random_tasks()
    order = torch.randperm(support.y.shape[1], generator=torch.Generator().manual_seed(3))
    shuffled = Examples(support.x[:, order], support.y[:, order])
    return [predict(method, params, buffers, examples, query.x) for examples in (support, shuffled)]


@every_method
def test_relabelling_the_classes_relabels_the_predictions_and_changes_no_loss(name):
    method, params, buffers = build(name)
    support, query = random_tasks()
    new_number = torch.tensor([2, 0, 1])
    tasks = Tasks(Examples(support.x, new_number[support.y]), Examples(query.x, new_number[query.y]))
    before = predict(method, params, buffers, support, query.x)
    after = predict(method, params, buffers, tasks.support, query.x)
    torch.testing.assert_close(after[..., new_number], before, rtol=1e-12, atol=1e-12)
    losses = [method.direction(params, buffers, t).measured["loss"] for t in (Tasks(support, query), tasks)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)


@every_method
@pytest.mark.parametrize("batch_norm", ["transductive", "running"])
def test_several_tasks_at_once_equal_a_loop_over_them(name, batch_norm):
    method, params, buffers = build(name, batch_norm)
    tasks = random_tasks(3)
    together = method.direction(params, buffers, tasks)
    alone = [method.direction(params, buffers, select_tasks(tasks, slice(i, i + 1))) for i in range(3)]
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(together.gradient, add_all([one.gradient for one in alone]), **close)
    for key in together.measured:
        torch.testing.assert_close(together.measured[key], torch.cat([one.measured[key] for one in alone]), **close)
    assert bool(together.buffers) == (batch_norm == "running")
    for key, value in together.buffers.items():
        torch.testing.assert_close(value, torch.cat([one.buffers[key] for one in alone]), **close)
    predictions = predict(method, params, buffers, tasks.support, tasks.query.x)
    for i in range(3):
        support, query = select_tasks(tasks, slice(i, i + 1))
        torch.testing.assert_close(predictions[i : i + 1], predict(method, params, buffers, support, query.x), **close)


@every_method
def test_permuting_tasks_permutes_results(name):
    method, params, buffers = build(name, "running")
    tasks, order = random_tasks(3), torch.tensor([2, 0, 1])
    support, query = (Examples(examples.x[order], examples.y[order]) for examples in tasks)
    one, other = method.direction(params, buffers, tasks), method.direction(params, buffers, Tasks(support, query))
    torch.testing.assert_close(other.measured["loss"], one.measured["loss"][order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other.gradient, one.gradient, rtol=1e-10, atol=1e-12)
    predictions = predict(method, params, buffers, tasks.support, tasks.query.x)
    torch.testing.assert_close(predict(method, params, buffers, support, query.x), predictions[order])


@every_method
@pytest.mark.parametrize("batch_norm", [None, "transductive", "running"])
def test_no_task_reads_another(name, batch_norm):
    """NaN in the second of three tasks stays there."""
    method, params, buffers = build(name, batch_norm)
    tasks = random_tasks(3)
    spoilt = random_tasks(3)
    spoilt.support.x[1], spoilt.query.x[1] = math.nan, math.nan
    results = []
    for support, query in (tasks, spoilt):
        direction = method.direction(params, buffers, Tasks(support, query))
        predictions = predict(method, params, buffers, support, query.x)
        results.append((predictions, direction.measured["loss"], *direction.buffers.values()))
    for clean, nan in zip(*results, strict=True):
        if nan.is_floating_point():
            assert bool(nan[1].isnan().any())
        torch.testing.assert_close(nan[[0, 2]], clean[[0, 2]], rtol=1e-12, atol=1e-12)


@every_method
def test_the_whole_gradient_against_finite_differences(name):
    method, params, buffers = build(name)
    tasks = random_tasks()
    gradient, _ = flatten(method.direction(params, buffers, tasks).gradient)
    vector, unflatten = flatten(params)

    def loss(vector):
        return float(method.direction(unflatten(vector), buffers, tasks).measured["loss"].sum())

    step = 1e-6 * torch.eye(len(vector), dtype=torch.float64)
    numeric = torch.tensor([(loss(vector + row) - loss(vector - row)) / 2e-6 for row in step])
    torch.testing.assert_close(gradient, numeric.double(), rtol=1e-5, atol=1e-8)
    assert list(method.direction(params, buffers, tasks).gradient) == list(params)


@every_method
@pytest.mark.parametrize("batch_norm", ["transductive", "running"])
def test_query_labels_never_influence_predictions_or_running_statistics(name, batch_norm):
    """With every query called class k, the score is the share predicted k: these add up to 1 if nothing leaks."""
    method, params, buffers = build(name, batch_norm)
    support, query = random_tasks(4, queries=5)
    called = [
        method.direction(params, buffers, Tasks(support, Examples(query.x, torch.full_like(query.y, k))))
        for k in range(WAYS)
    ]
    shares = torch.stack([direction.measured["score"] for direction in called])
    torch.testing.assert_close(shares.sum(0), torch.ones(4))
    assert float(shares.max()) < 1.0
    for direction in called[1:]:
        torch.testing.assert_close(direction.buffers, called[0].buffers, rtol=0, atol=0)


@every_method
@pytest.mark.parametrize("batch_norm", [None, "running"])
def test_a_querys_prediction_does_not_depend_on_the_other_queries(name, batch_norm):
    together, alone = _queries_together_and_alone(name, batch_norm)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@every_method
def test_transductive_batch_norm_lets_a_querys_prediction_depend_on_the_other_queries_inputs(name):
    together, alone = _queries_together_and_alone(name, "transductive")
    assert float((together - alone).abs().max()) > 1e-3


def _queries_together_and_alone(name, batch_norm):
    method, params, buffers = build(name, batch_norm)
    support, query = random_tasks()
    together = predict(method, params, buffers, support, query.x)
    alone = [predict(method, params, buffers, support, query.x[:, i : i + 1]) for i in range(query.x.shape[1])]
    return together, torch.cat(alone, 1)


@every_method
def test_meta_parameters_are_the_networks_and_a_methods_own_under_its_name(name):
    method, of_network = METHODS[name](Network(smooth_module())), dict(smooth_module().named_parameters())
    params = method.initial_params()
    own = set(params) - set(of_network)
    assert set(of_network) < set(params) or set(of_network) == set(params)
    assert all(key.startswith(f"{name.split(',')[0]}.") for key in own)
    for value in params.values():
        value.add_(1.0)
    assert not any(torch.equal(value, params[key]) for key, value in method.initial_params().items())


def test_what_each_method_learns_beside_the_network():
    network = set(dict(smooth_module().named_parameters()))
    lstms = {f"matching.{part}.{kind}" for part in ("forward", "backward", "read") for kind in ("weight", "bias")}
    expected = {
        "prototypical": set(),
        "matching": {"matching.log_scale"},
        "matching, as published": set(),
        "matching, full context": {"matching.log_scale"} | lstms,
        "siamese, contrastive": set(),
        "siamese, cross-entropy": {"siamese.weight", "siamese.bias"},
    }
    for name, builder in METHODS.items():
        assert set(builder(Network(smooth_module())).initial_params()) - network == expected[name]


def clusters(num_tasks, seed, noise=3.0):
    """3-way 1-shot tasks: classes differ in 2 of 8 inputs, the other 6 are strong noise."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(num_tasks, WAYS, 2, generator=generator)

    def examples(num_each):
        y = torch.arange(WAYS).repeat_interleave(num_each).expand(num_tasks, -1)
        near = centres.gather(1, y.unsqueeze(-1).expand(-1, -1, 2))
        near = near + 0.2 * torch.randn(near.shape, generator=generator)
        return Examples(torch.cat([near, noise * torch.randn(*y.shape, 6, generator=generator)], -1), y)

    return Tasks(examples(1), examples(4))


@every_method
def test_each_method_learns_to_ignore_noise(name):
    module = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    network = Network(module)
    method = {
        "prototypical": lambda: Prototypical(network, WAYS),
        "matching": lambda: Matching(network, WAYS, 8),
        "matching, as published": lambda: Matching(network, WAYS, 8, learn_scale=False),
        "matching, full context": lambda: Matching(network, WAYS, 8, full_context=True, num_reads=2),
        "siamese, contrastive": lambda: Siamese(network, WAYS, 8, "contrastive"),
        "siamese, cross-entropy": lambda: Siamese(network, WAYS, 8, "cross_entropy"),
    }[name]()
    params = method.initial_params()
    test = clusters(100, seed=10**6)

    def accuracy(params):
        prediction = predict(method, params, {}, test.support, test.query.x)
        return float((prediction.argmax(-1) == test.query.y).float().mean())

    before = accuracy(params)
    optimizer = torch.optim.Adam(params.values(), lr=1e-2)
    for iteration in range(200):
        direction = method.direction(params, {}, clusters(16, seed=iteration))
        for key, value in params.items():
            value.grad = direction.gradient[key] / 16
        optimizer.step()
    after = accuracy(params)
    assert before < 0.6 and after > 0.85, (before, after)
