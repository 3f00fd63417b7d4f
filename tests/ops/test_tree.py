"""Parameter dictionaries: flattening is a bijection, task axes come and go without mixing tasks."""

import math

import torch

from metarl.ops.tree import add_all, all_finite, concatenate_tasks, expand_tasks, flatten, select_tasks, sum_tasks

PARAMS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([7.0]), "c": torch.tensor(8.0)}


def test_flatten_keeps_every_entry_in_order_and_unflatten_undoes_it():
    vector, unflatten = flatten(PARAMS)
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    back = unflatten(vector)
    assert list(back) == list(PARAMS)
    assert all(torch.equal(back[name], PARAMS[name]) for name in PARAMS)
    assert unflatten(vector.double())["b"].dtype == torch.float64


def test_writing_into_the_flat_vector_does_not_touch_the_parameters():
    vector, _ = flatten({"only": PARAMS["a"]})
    vector += 1
    assert PARAMS["a"].tolist() == [7.0]


def test_sum_tasks_is_the_transpose_of_expand_tasks():
    generator = torch.Generator().manual_seed(0)
    per_task = {name: torch.randn(5, *value.shape, generator=generator) for name, value in PARAMS.items()}
    expanded, summed = expand_tasks(PARAMS, 5), sum_tasks(per_task)
    assert all(expanded[name].shape == (5, *value.shape) for name, value in PARAMS.items())
    left = sum(float((expanded[name] * per_task[name]).sum()) for name in PARAMS)
    right = sum(float((PARAMS[name] * summed[name]).sum()) for name in PARAMS)
    assert math.isclose(left, right, rel_tol=1e-5)


def test_selecting_chunks_and_joining_them_is_the_identity():
    tree = {"x": torch.arange(14).reshape(7, 2), "nested": [torch.arange(7)]}
    joined = concatenate_tasks([select_tasks(tree, slice(i, i + 3)) for i in (0, 3, 6)])
    assert torch.equal(joined["x"], tree["x"]) and torch.equal(joined["nested"][0], tree["nested"][0])


def test_all_finite_sees_one_bad_entry():
    assert all_finite(PARAMS)
    for bad in (math.nan, math.inf, -math.inf):
        assert not all_finite(PARAMS | {"d": torch.tensor([0.0, bad])})


def test_add_all_sums_in_the_given_order_scales_and_writes_into_nothing():
    generator = torch.Generator().manual_seed(0)
    terms = [{"x": torch.randn(50, generator=generator)} for _ in range(7)]
    copies = [term["x"].clone() for term in terms]
    expected = copies[0]
    for copy in copies[1:]:
        expected = expected + copy
    assert torch.equal(add_all(terms, 0.5)["x"], 0.5 * expected)
    assert all(torch.equal(term["x"], copy) for term, copy in zip(terms, copies, strict=True))
    assert torch.equal(add_all(terms[:1])["x"], copies[0])
