"""Every named learner trains, adapts, continues bitwise from its state, and leaves nothing changed by a bad update."""

import math

import numpy as np
import pytest
import torch
from toys import PointFamily, assert_trees_close, equal_trees, target_family

from metarl.algorithms import outer
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.learners import LEARNERS
from metarl.algorithms.meta_learner import MetaLearner
from metarl.evaluation import evaluate_adaptation
from metarl.policies import GaussianMLPPolicy
from metarl.rollout_adaptation import AdvantageSettings

TRAINED = [name for name, learner in LEARNERS.items() if learner.is_trained]
ADAPTING = [name for name in TRAINED if LEARNERS[name].settings.get("num_inner_steps") != 0]
SMALL = {"meta_batch_size": 3, "episodes_per_task": 4}


def make(name, family=None, policy_seed=0, seed=0, **settings):
    family, config = family or PointFamily(min_length=1), LearnerConfig(**{**LEARNERS[name].settings, **settings})
    policy = GaussianMLPPolicy(
        family.observation_dim, family.action_dim, (8,), context_dim=config.context_dim,
        generator=torch.Generator().manual_seed(policy_seed),
    )  # fmt: skip
    return MetaLearner(family, policy, config, seed, num_threads=1)


def metrics_of(learner, iterations):
    return [{k: v for k, v in learner.iterate().items() if not k.startswith("time/")} for _ in range(iterations)]


@pytest.mark.parametrize("name", list(LEARNERS))
def test_continuing_from_a_state_dict_is_bitwise_the_unbroken_run(name):
    unbroken = make(name, **SMALL)
    first = metrics_of(unbroken, 2)
    state = unbroken.state_dict()
    kept = {n: v.clone() for n, v in state["params"].items()}
    rest = metrics_of(unbroken, 2)
    resumed = make(name, policy_seed=5, **SMALL)
    resumed.load_state_dict(state)
    assert metrics_of(resumed, 2) == rest and equal_trees(resumed.params, unbroken.params)
    assert equal_trees(state["params"], kept), "a state is not changed by training on"
    assert first[0]["skipped_updates"] == rest[-1]["skipped_updates"] == 0
    assert equal_trees(kept, unbroken.params) != LEARNERS[name].is_trained


@pytest.mark.parametrize("name", list(LEARNERS))
def test_metrics_have_the_same_names_in_every_iteration_skipped_ones_too(name):
    poison = {"on": False}
    learner = make(name, PointFamily(min_length=1, poison=lambda *where: poison["on"] and where == (1, 2, 0)), **SMALL)
    (good,) = metrics_of(learner, 1)
    before = {n: v.clone() for n, v in learner.params.items()}
    poison["on"] = True
    (bad,) = metrics_of(learner, 1)
    assert set(good) == set(bad)
    assert bad["skipped_updates"] == 1 and equal_trees(learner.params, before)


@pytest.mark.parametrize("name", ADAPTING)
def test_every_learner_learns_to_adapt_on_two_targets(name):
    """Goals -1 and 1, reward -(a - g)^2: no policy alone does better than -1, an adapted one may reach 0."""
    settings = {"meta_batch_size": 4, "episodes_per_task": 100}
    optimizer = LEARNERS[name].settings.get("outer_optimizer", "trpo")
    if optimizer == "trpo":
        settings |= {"max_kl": 0.05, "cg_iters": 4}
    if optimizer == "adam":
        settings |= {"outer_lr": 0.03 if "outer_epochs" not in LEARNERS[name].settings else 0.01}
    if optimizer == "reptile":
        settings |= {"outer_lr": 0.1}
    learner = make(name, target_family(), policy_seed=1, **settings)

    def after_one_step():
        curve, _ = evaluate_adaptation(
            learner.family, learner.inner, learner.params, learner.family.published_tasks(), num_steps=1,
            noise_key=(2, 0), settings=AdvantageSettings(), episodes_per_task=2000,
        )  # fmt: skip
        return float(curve.mean[1])

    before = after_one_step()
    metrics_of(learner, 40)
    assert before < -1.0
    assert after_one_step() > -0.7


def test_pretraining_finds_the_best_single_policy():
    learner = make("pretrain", target_family(), 1, meta_batch_size=4, episodes_per_task=100, max_kl=0.05, cg_iters=4)
    history = metrics_of(learner, 40)
    assert history[0]["return/step_0"] < -1.5
    assert history[-1]["return/step_0"] == pytest.approx(-1.0, abs=0.1)


def test_the_references_do_not_move():
    learner = make("random-init", **SMALL)
    before = {n: v.clone() for n, v in learner.params.items()}
    metrics = metrics_of(learner, 2)
    assert equal_trees(learner.params, before) and "kl" not in metrics[0]


# Adam.


def test_one_epoch_is_one_adam_step_on_the_meta_gradient():
    """The first step of Adam is outer_lr times the sign of the gradient, up to its epsilon of 1e-8."""
    learner = make("maml-vpg", outer_lr=0.01, **SMALL)
    before = {n: v.clone() for n, v in learner.params.items()}
    seen = {}
    original = outer.meta_gradient

    def spy(*args):
        seen["gradient"], value = original(*args)
        return seen["gradient"], value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outer, "meta_gradient", spy)
        (metrics,) = metrics_of(learner, 1)
    expected = {n: before[n] + 0.01 * g / (g.abs() + 1e-8) for n, g in seen["gradient"].items()}
    assert_trees_close(learner.params, expected, rtol=1e-5, atol=1e-7)
    step = sum(float((seen["gradient"][n] * (learner.params[n] - before[n])).double().sum()) for n in before)
    assert metrics["expected_gain"] == pytest.approx(step, rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(
        math.sqrt(sum(float(g.double().square().sum()) for g in seen["gradient"].values())), rel=1e-6
    )


def test_epochs_are_taken_on_the_same_rollouts_and_move_further():
    one, five = (make("maml-ppo", outer_epochs=n, clip_range=0.0, **SMALL) for n in (1, 5))
    a, b = metrics_of(one, 1)[0], metrics_of(five, 1)[0]
    assert a["env_steps"] == b["env_steps"] and a["gradient_norm"] == b["gradient_norm"]
    assert b["actual_gain"] > a["actual_gain"] > 0 and b["kl"] > a["kl"] > 0


def test_clipping_holds_the_policies_back():
    free, clipped = (make("maml-ppo", outer_epochs=40, outer_lr=0.02, clip_range=clip, **SMALL) for clip in (0.0, 0.1))
    assert metrics_of(clipped, 1)[0]["kl"] < 0.5 * metrics_of(free, 1)[0]["kl"]


def test_the_inner_kl_penalty_holds_the_initial_policy_back():
    free, held = (make("promp", outer_lr=0.02, inner_kl_penalty=eta, **SMALL) for eta in (1e-9, 20.0))
    assert metrics_of(held, 1)[0]["inner_kl"] < 0.5 * metrics_of(free, 1)[0]["inner_kl"]


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_gradient_that_is_not_finite_moves_neither_parameters_nor_moments(monkeypatch, epoch):
    learner = make("promp", **SMALL)
    metrics_of(learner, 1)
    before = learner.state_dict()
    original, calls = outer.meta_gradient, []

    def broken(*args):
        gradient, value = original(*args)
        calls.append(1)
        if len(calls) > epoch:
            gradient["log_std"] = torch.full_like(gradient["log_std"], math.nan)
        return gradient, value

    monkeypatch.setattr(outer, "meta_gradient", broken)
    (metrics,) = metrics_of(learner, 1)
    monkeypatch.undo()
    after = learner.state_dict()
    assert metrics["skipped_updates"] == 1 and math.isnan(metrics["gradient_norm"])
    assert equal_trees(after["params"], before["params"])
    assert all(equal_trees(after["outer"][n], before["outer"][n]) for n in before["outer"])
    metrics_of(learner, 1)
    assert not equal_trees(learner.params, before["params"])


@pytest.mark.parametrize("damage", ["all", "missing", "shape", "infinite"])
def test_moments_that_do_not_fit_are_refused(damage):
    learner = make("promp", **SMALL)
    metrics_of(learner, 1)
    state = learner.state_dict()
    if damage == "all":
        state["outer"] = {}
    elif damage == "missing":
        del state["outer"]["log_std"]
    elif damage == "shape":
        state["outer"]["log_std"]["exp_avg"] = torch.zeros(3)
    else:
        state["outer"]["log_std"]["exp_avg_sq"][0] = math.inf
    with pytest.raises(ValueError, match="Adam moments"):
        make("promp", **SMALL).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda state: {**state, "params": {**state["params"], "log_std": torch.zeros(3)}},
            r"log_std .* shape \[3\], not",
        ),
        (lambda state: make("meta-sgd", **SMALL).state_dict(), "params hold inner_lr"),
        (lambda state: make("promp", **SMALL).state_dict(), "another outer optimiser"),
        (lambda state: {**state, "params": dict.fromkeys(state["params"], torch.zeros(1))}, "shape"),
        (lambda state: {**state, "params": {n: v * math.nan for n, v in state["params"].items()}}, "not all finite"),
        (lambda state: {**state, "params": {n: v.double() for n, v in state["params"].items()}}, "float64"),
        (lambda state: {**state, "constants": {"mean": torch.zeros(2)}}, "constants hold mean"),
        (lambda state: {**state, "iteration": -1}, "iteration"),
        (lambda state: {n: v for n, v in state.items() if n != "env_steps"}, "env_steps"),
        (lambda state: {}, "params are missing"),
        (lambda state: None, "NoneType"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_of_it_is_taken(change, says):
    learner = make("maml-trpo", **SMALL)
    metrics_of(learner, 1)
    before = learner.state_dict()
    with pytest.raises(ValueError, match=says):
        learner.load_state_dict(change(make("maml-trpo", policy_seed=5, **SMALL).state_dict()))
    assert equal_trees(learner.params, before["params"]) and learner.iteration == 1


def test_moments_that_do_not_fit_leave_a_learner_as_it_was():
    learner, other = (make("promp", policy_seed=seed, **SMALL) for seed in (0, 5))
    metrics_of(learner, 1), metrics_of(other, 2)
    before, state = learner.state_dict(), other.state_dict()
    last = list(state["outer"])[-1]
    state["outer"][last]["exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match=f"Adam moments of {last}"):
        learner.load_state_dict(state)
    after = learner.state_dict()
    assert equal_trees(after["params"], before["params"]) and after["iteration"] == 1
    assert all(equal_trees(after["outer"][n], before["outer"][n]) for n in before["outer"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"meta_batch_size": 2.5}, "meta_batch_size is 2.5; it must be a whole number"),
        ({"meta_batch_size": True}, "meta_batch_size is True; it must be a whole number"),
        ({"inner_lr": "0.1"}, "inner_lr is '0.1'; it must be a number"),
        ({"first_order": 1}, "first_order is 1; it must be True or False"),
        ({"step_weights": 1.0}, "step_weights is 1.0; it must be a tuple"),
        ({"step_weights": ("1",)}, "step_weights"),
        ({"inner_rl": 0.1}, "'inner_rl' is no field of LearnerConfig; is 'inner_lr' meant"),
        ({"hidden_sizes": (4,)}, "'hidden_sizes' is no field of LearnerConfig; a policy of your own"),
    ],
)
def test_settings_of_the_wrong_kind_are_told(settings, says):
    with pytest.raises(ValueError, match=says):
        MetaLearner.for_family(PointFamily(), **settings)


def test_numbers_of_numpy_are_numbers():
    learner = MetaLearner.for_family(
        PointFamily(), meta_batch_size=np.int64(2), episodes_per_task=2, inner_lr=np.float32(0.1)
    )
    learner.iterate()
    learner.adapt([0.1, 0.1], num_steps=np.int64(1), episodes=2)


def test_a_name_of_a_family_is_none():
    with pytest.raises(ValueError, match="family is 'navigation-2d'; it must be a family itself"):
        MetaLearner.for_family("navigation-2d")


# Inner steps.


def test_learned_step_sizes_move_and_are_used():
    learner = make("meta-sgd", **SMALL)
    start = {n: v.clone() for n, v in learner.params.items()}
    metrics_of(learner, 2)
    names = [n for n in start if n.startswith("inner_lr.")]
    assert names and all(not torch.equal(learner.params[n], start[n]) for n in names)
    agent = learner.adapt(learner.family.sample_tasks(1, "test")[0], num_steps=3)
    assert set(agent.params) == {n for n, _ in learner.policy.named_parameters()}


def test_training_with_k_steps_and_testing_with_any_other_number():
    learner = make("promp", num_inner_steps=3, **SMALL)
    (metrics,) = metrics_of(learner, 1)
    assert [f"return/step_{k}" in metrics for k in range(5)] == [True, True, True, True, False]
    for steps in (0, 1, 5):
        curve, data = evaluate_adaptation(
            learner.family, learner.inner, learner.params, learner.family.sample_tasks(2, "test"), num_steps=steps,
            noise_key=(2, 0), settings=AdvantageSettings(), episodes_per_task=3, keep_rollouts=True,
        )  # fmt: skip
        assert curve.returns.shape == (2, steps + 1)
        starts = [rollout.observations[:, :, 0] for rollout in data.rollouts]
        assert all(not torch.equal(starts[0], other) for other in starts[1:]), "fresh rollouts at every step"


def test_reptile_collects_nothing_after_its_last_step():
    learner = make("reptile", num_inner_steps=2, **SMALL)
    (metrics,) = metrics_of(learner, 1)
    assert "return/step_1" in metrics and "return/step_2" not in metrics


def test_settings_that_contradict_one_another_are_refused_when_a_learner_is_made():
    with pytest.raises(ValueError, match=r"clip_range is 0\.2"):
        make("maml-trpo", clip_range=0.2, **SMALL)


def test_an_oracle_needs_a_family_that_shows_its_task():
    with pytest.raises(ValueError, match="observe_task=True"):
        MetaLearner.for_family(PointFamily(), "oracle")


def test_learned_step_sizes_are_reported():
    (metrics,) = metrics_of(make("meta-sgd", **SMALL), 1)
    assert metrics["inner_lr/min"] < metrics["inner_lr/mean"] < metrics["inner_lr/max"]
    assert metrics["inner_lr/mean"] == pytest.approx(0.1, abs=0.05)
    assert "inner_lr/mean" not in metrics_of(make("maml-trpo", **SMALL), 1)[0]


def test_the_inner_kl_is_reported_where_it_is_measured():
    assert metrics_of(make("promp", **SMALL), 1)[0]["inner_kl"] > 0
    assert metrics_of(make("e-maml-trpo", **SMALL), 1)[0]["inner_kl"] > 0
    assert "inner_kl" not in metrics_of(make("maml-trpo", **SMALL), 1)[0]
