"""Training: repeatable to the bit, unharmed by numbers that are not finite, and right where the answer is known."""

import copy
import math

import pytest
import torch
from toys import OneStepFamily, PointFamily, equal_trees, target_family, two_armed_bandit

from metarl.algorithms import trust_region
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.meta_learner import MetaLearner
from metarl.evaluation import evaluate_adaptation
from metarl.noise import EVALUATION, TRAINING
from metarl.ops.tree import expand_tasks
from metarl.parallel import TaskChunks
from metarl.policies import CategoricalMLPPolicy, GaussianMLPPolicy
from metarl.policy_gradient import policy_inner_loop
from metarl.rollout_adaptation import AdvantageSettings, adapt_on_rollouts
from metarl.samples import advantages

CONFIG = {"meta_batch_size": 3, "episodes_per_task": 4, "num_inner_steps": 2, "inner_lr": 0.1}


def learner(seed=0, num_threads=1, family=None, policy_seed=0, **config):
    family = family or PointFamily(min_length=1)
    policy = GaussianMLPPolicy(2, 2, (4,), generator=torch.Generator().manual_seed(policy_seed))
    settings = CONFIG | config
    if "steps_per_task" in settings:
        del settings["episodes_per_task"]
    return MetaLearner(family, policy, LearnerConfig(**settings), seed, num_threads=num_threads)


def metrics_of(learner, iterations):
    return [{k: v for k, v in learner.iterate().items() if not k.startswith("time/")} for _ in range(iterations)]


# Repeatability.


@pytest.mark.parametrize("config", [{}, {"steps_per_task": 15, "fvp_fraction": 0.5}, {"chunk_size": 1}])
@pytest.mark.parametrize("kept", [True, False])
def test_the_same_seed_gives_the_same_metrics_and_parameters_bitwise(config, kept, monkeypatch):
    if not kept:  # no room for graphs: all but one chunk's are rebuilt for every product
        monkeypatch.setattr(trust_region, "graph_budget", lambda device: 1)
    torch.manual_seed(1)
    first = learner(**config)
    first_metrics = metrics_of(first, 3)
    torch.manual_seed(2)
    second = learner(**config)
    assert metrics_of(second, 3) == first_metrics
    assert equal_trees(first.params, second.params)
    assert any(m["line_search/accepted"] for m in first_metrics)


def test_other_seeds_and_other_iterations_draw_other_tasks_and_noise():
    a, b = learner(0), learner(1)
    first, second = metrics_of(a, 2)
    (other,) = metrics_of(b, 1)
    assert len({first["return/step_0"], second["return/step_0"], other["return/step_0"]}) == 3
    assert not torch.equal(a.family.sample_tasks(3, "train", 0), a.family.sample_tasks(3, "train", 0, start=3))


def test_tasks_of_an_iteration_continue_where_the_one_before_stopped():
    subject, seen = learner(), []
    original = subject._env.set_tasks
    subject._env.set_tasks = lambda tasks: (seen.append(tasks.clone()), original(tasks))[1]
    metrics_of(subject, 3)
    assert torch.equal(torch.cat(seen), subject.family.sample_tasks(9, "train", 0))


def test_continuing_from_a_state_dict_is_bitwise_the_unbroken_run():
    unbroken = learner()
    expected = metrics_of(unbroken, 4)
    first_half = learner()
    metrics_of(first_half, 2)
    state = copy.deepcopy(first_half.state_dict())
    second_half = learner(policy_seed=7)  # other initial parameters: all must come from the state
    second_half.load_state_dict(state)
    assert metrics_of(second_half, 2) == expected[2:]
    assert equal_trees(second_half.params, unbroken.params)
    assert second_half.state_dict()["env_steps"] == unbroken.env_steps and second_half.iteration == 4


def test_a_state_dict_is_not_changed_by_training_on():
    subject = learner()
    state = subject.state_dict()
    before = copy.deepcopy(state)
    metrics_of(subject, 2)
    assert equal_trees(state["params"], before["params"]) and state["iteration"] == 0


def test_the_policy_modules_own_parameters_are_never_written():
    subject = learner()
    before = {name: value.detach().clone() for name, value in subject.policy.named_parameters()}
    metrics_of(subject, 2)
    assert all(torch.equal(value, before[name]) for name, value in subject.policy.named_parameters())
    assert not equal_trees(subject.params, before)


def test_the_number_of_threads_does_not_change_a_bit():
    one, two = learner(num_threads=1, meta_batch_size=5), learner(num_threads=2, meta_batch_size=5)
    assert metrics_of(one, 2) == metrics_of(two, 2)
    assert equal_trees(one.params, two.params)


def test_chunk_size_changes_results_to_rounding_only():
    one, five = learner(meta_batch_size=5, chunk_size=1), learner(meta_batch_size=5, chunk_size=5)
    metrics_of(one, 1), metrics_of(five, 1)
    for name in one.params:
        torch.testing.assert_close(one.params[name], five.params[name], rtol=1e-3, atol=1e-4)


# Numbers that are not finite.


class Poison:
    """Switched on, the reward of one step of one lane is NaN."""

    def __init__(self, task=1, episode=2, t=0):
        self.where, self.on = (task, episode, t), False

    def __call__(self, *where):
        return self.on and where == self.where


@pytest.mark.parametrize("config", [{}, {"steps_per_task": 15}])
def test_a_lane_that_diverges_voids_the_update_which_is_counted_and_leaves_parameters_bitwise(config):
    poison = Poison()
    subject = learner(family=PointFamily(min_length=1, poison=poison), **config)
    healthy = learner(**config)
    metrics_of(subject, 1), metrics_of(healthy, 1)
    before = {name: value.clone() for name, value in subject.params.items()}
    assert equal_trees(before, healthy.params)
    poison.on = True
    (metrics,) = metrics_of(subject, 1)
    assert metrics["nonfinite_steps"] >= 1 and metrics["skipped_updates"] == 1
    assert metrics["line_search/accepted"] == metrics["kl"] == 0.0
    assert equal_trees(subject.params, before) and subject.iteration == 2
    poison.on = False
    (metrics,) = metrics_of(subject, 1)
    assert metrics["nonfinite_steps"] == 0 and metrics["skipped_updates"] == 1
    assert not equal_trees(subject.params, before), "training goes on afterwards"


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_a_lane_that_diverges_in_any_phase_is_counted_and_voids_the_update(phase):
    """Before either inner step, or after both: the first steps of one lane, of which there is one in every phase."""
    seen = []

    def poison(*where):
        if where == (1, 2, 0):
            seen.append(where)
        return where == (1, 2, 0) and len(seen) == phase + 1

    subject = learner(family=PointFamily(poison=poison))
    (metrics,) = metrics_of(subject, 1)
    # A policy adapted on what is not finite is not finite either.
    assert len(seen) == 3 and metrics["skipped_updates"] == 1
    assert metrics["nonfinite_steps"] == 1 if phase == 2 else metrics["nonfinite_steps"] > 1


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_voids_the_update(monkeypatch, garbage):
    subject = learner()
    before = {name: value.clone() for name, value in subject.params.items()}
    original = trust_region.pulled_back_gradient

    def broken(*args):
        gradient, value = original(*args)
        gradient["log_std"] = gradient["log_std"].clone()
        gradient["log_std"][0] = garbage
        return gradient, value

    monkeypatch.setattr(trust_region, "pulled_back_gradient", broken)
    (metrics,) = metrics_of(subject, 1)
    assert metrics["skipped_updates"] == 1 and not math.isfinite(metrics["gradient_norm"])
    assert equal_trees(subject.params, before)
    monkeypatch.undo()
    (metrics,) = metrics_of(subject, 1)
    assert metrics["skipped_updates"] == 1 and not equal_trees(subject.params, before)


@pytest.mark.parametrize("inner_lr", [1e20, 1e38])
def test_an_inner_step_that_diverges_voids_the_update(inner_lr):
    subject = learner(inner_lr=inner_lr)
    before = {name: value.clone() for name, value in subject.params.items()}
    metrics_of(subject, 2)
    assert equal_trees(subject.params, before)
    assert subject.skipped_updates == 2


def test_rewards_that_never_differ_give_no_update():
    family = OneStepFamily(2, (0.0, 1.0), lambda actions, tasks: torch.full(actions.shape, 3.0))
    policy = CategoricalMLPPolicy(1, 2, (3,))
    subject = MetaLearner(family, policy, LearnerConfig(meta_batch_size=2), num_threads=1)
    before = subject.params
    (metrics,) = metrics_of(subject, 1)
    assert metrics["return/step_0"] == metrics["return/step_1"] == 3.0
    assert metrics["gradient_norm"] < 1e-5 and metrics["kl"] <= 0.01
    for name in before:
        torch.testing.assert_close(subject.params[name], before[name], rtol=0, atol=0.5)


# Reported numbers.


def test_metrics_are_what_the_recorded_rollouts_say():
    subject = learner()
    theta = subject.params
    (metrics,) = metrics_of(subject, 1)
    env = subject.family.batch(subject.family.sample_tasks(3, "train", 0), 4)
    data = adapt_on_rollouts(
        env, subject.inner, theta, num_steps=2,
        noise_key=(TRAINING, 0, 0), settings=AdvantageSettings(), chunks=TaskChunks(1, 1),
    )  # fmt: skip
    steps = 0
    for k, rollout in enumerate(data.rollouts):
        returns = []
        for i in range(3):
            sums = [float(r[v].sum()) for r, v in zip(rollout.rewards[i], rollout.valid[i], strict=True)]
            returns.append(sum(sums) / len(sums))
        assert metrics[f"return/step_{k}"] == pytest.approx(sum(returns) / 3, rel=1e-5)
        steps += int(rollout.valid.sum())
        std = data.trajectory[k]["log_std"].exp().mean()
        assert metrics[f"std/step_{k}"] == pytest.approx(float(std), rel=1e-5)
        entropy = (data.trajectory[k]["log_std"] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1).mean()
        assert metrics[f"entropy/step_{k}"] == pytest.approx(float(entropy), rel=1e-5)
    assert metrics["env_steps"] == steps == subject.env_steps
    assert 0 < metrics["kl"] <= 0.01 and metrics["line_search/accepted"] == 1.0


def test_an_adaptation_curve_has_a_column_per_step_and_intervals_over_tasks():
    family = PointFamily(min_length=1)
    policy = GaussianMLPPolicy(2, 2, (4,))
    params = {name: value.detach() for name, value in policy.named_parameters()}
    tasks = family.sample_tasks(5, "test")
    curve, data = evaluate_adaptation(
        family, policy_inner_loop(policy), params, tasks, num_steps=3,
        noise_key=(2, 0), settings=AdvantageSettings(), episodes_per_task=3, chunks=TaskChunks(2, 1),
        keep_rollouts=True,
    )  # fmt: skip
    assert curve.returns.shape == (5, 4) and curve.env_steps == data.env_steps
    for k, rollout in enumerate(data.rollouts):
        torch.testing.assert_close(curve.returns[:, k], rollout.mean_return().double())
    torch.testing.assert_close(curve.mean, curve.returns.sum(0) / 5)
    sd = (curve.returns - curve.mean).square().sum(0).div(4).sqrt()
    torch.testing.assert_close(curve.ci95, 1.96 * sd / math.sqrt(5))
    assert all(torch.equal(data.trajectory[0][n][i], params[n]) for n in params for i in range(5))
    seeds_differ = [
        not torch.equal(a.observations[:, :, 0], data.rollouts[0].observations[:, :, 0]) for a in data.rollouts
    ]
    assert seeds_differ == [False, True, True, True], "every step collects fresh rollouts"


def test_zero_inner_steps_collect_once_and_train_plain_trpo():
    subject = learner(num_inner_steps=0)
    metrics = metrics_of(subject, 2)
    assert "return/step_1" not in metrics[0] and metrics[0]["line_search/accepted"] == 1.0


def test_settings_of_advantages_and_budgets_reach_every_rollout():
    config = LearnerConfig(gamma=0.5, gae_lambda=0.3, bootstrap_truncated=True)
    assert config.advantage_settings() == AdvantageSettings(0.5, 0.3, True)
    family, policy = PointFamily(min_length=1), GaussianMLPPolicy(2, 2, (4,))
    params = {name: value.detach() for name, value in policy.named_parameters()}
    for settings in (AdvantageSettings(), config.advantage_settings()):
        data = adapt_on_rollouts(
            family.batch(family.sample_tasks(3), 4), policy_inner_loop(policy), params, num_steps=1,
            noise_key=(0, 0), settings=settings, steps_per_task=20,
        )  # fmt: skip
        for rollout, estimate in zip(data.rollouts, data.advantages, strict=True):
            expected = advantages(
                rollout,
                gamma=settings.gamma,
                gae_lambda=settings.gae_lambda,
                bootstrap_truncated=settings.bootstrap_truncated,
            )
            assert torch.equal(estimate, expected)
            assert bool((rollout.valid.flatten(1).sum(-1) >= 20).all())
            assert bool((rollout.valid.flatten(1).sum(-1) < 20 + 6).all())
    subject = learner(gae_lambda=0.3, gamma=0.5, bootstrap_truncated=True)
    assert metrics_of(subject, 1)[0]["gradient_norm"] != metrics_of(learner(), 1)[0]["gradient_norm"]


def test_adapting_to_one_task_gives_an_agent_with_the_parameters_of_the_same_inner_loop():
    subject = learner()
    metrics_of(subject, 1)
    before = {name: value.clone() for name, value in subject.params.items()}
    task = subject.family.sample_tasks(1, "test")[0]
    agent = subject.adapt(task, num_steps=2, episodes=5, seed=3)
    data = adapt_on_rollouts(
        subject.family.batch(task.unsqueeze(0), 5), subject.inner, subject.params,
        num_steps=2, noise_key=(EVALUATION, 3), settings=AdvantageSettings(),
    )  # fmt: skip
    for name, value in agent.params.items():
        torch.testing.assert_close(value, data.trajectory[-1][name][0], rtol=1e-6, atol=1e-7)
        assert not torch.equal(value, before[name])
    assert equal_trees(subject.params, before) and subject.iteration == 1
    assert equal_trees(subject.adapt(task, num_steps=0).params, before)


def test_a_learner_for_a_family_has_a_policy_of_its_sizes_that_the_seed_decides():
    a, b, c = (MetaLearner.for_family(PointFamily(), seed=seed, **CONFIG) for seed in (0, 0, 1))
    assert a.params["mean.layers.0.weight"].shape == (100, 2) and a.params["mean.layers.2.weight"].shape == (2, 100)
    assert equal_trees(a.params, b.params) and not equal_trees(a.params, c.params)


# Families whose answer is known.


def linear_bandit(bias=0.0):
    """One logit per arm: theta is the pair (weight, bias) of each, both seeing the constant observation 1."""
    policy = CategoricalMLPPolicy(1, 2, ())
    with torch.no_grad():
        policy.logits.layers[0].weight.zero_()
        policy.logits.layers[0].bias.copy_(torch.tensor([0.0, bias]))
    return policy


def logit_difference(params):
    """Arm 1 minus arm 0, per task."""
    logits = params["logits.layers.0.weight"].sum(-1) + params["logits.layers.0.bias"]
    return logits[..., 1] - logits[..., 0]


def test_one_inner_step_on_a_bandit_moves_the_logits_by_its_closed_form():
    """With a share q of pulls right, normalised advantages are sqrt((1-q)/q) and -sqrt(q/(1-q)), their mean 0: the step
    on weight and bias each is alpha sqrt(q(1-q)) (e_right - e_wrong): the difference moves by 4 alpha sqrt(q(1-q)).
    """
    alpha, policy, family = 0.7, linear_bandit(0.4), two_armed_bandit()
    params = expand_tasks({name: value.detach() for name, value in policy.named_parameters()}, 1)
    data = adapt_on_rollouts(
        family.batch(family.published_tasks(), 200), policy_inner_loop(policy, inner_lr=alpha),
        {n: v[0] for n, v in params.items()}, num_steps=1, noise_key=(0, 0), settings=AdvantageSettings(),
    )  # fmt: skip
    q = data.rollouts[0].rewards.mean((1, 2)).double()
    assert q.tolist() == pytest.approx([1 / (1 + math.exp(0.4)), 1 / (1 + math.exp(-0.4))], abs=0.12)
    right = torch.tensor([-1.0, 1.0]).double()
    expected = 0.4 + 4 * alpha * right * (q * (1 - q)).sqrt()
    torch.testing.assert_close(logit_difference(data.trajectory[1]).double(), expected, rtol=1e-5, atol=1e-6)


def test_a_biased_bandit_policy_learns_the_only_optimal_start():
    """A linear policy can only choose its logit difference d. One step from d reaches sigmoid(+-d + 4 alpha s(d)),
    s = sqrt(p(1-p)), with mean largest at d = 0: sigmoid(2 alpha) after the step, 1/2 before it.
    """
    alpha = 1.0
    config = LearnerConfig(
        meta_batch_size=4, episodes_per_task=150, inner_lr=alpha, max_kl=0.02, chunk_size=4, cg_iters=4
    )
    subject = MetaLearner(two_armed_bandit(), linear_bandit(2.0), config, num_threads=1)
    history = metrics_of(subject, 25)
    d = float(logit_difference(subject.params))
    assert abs(d) < 0.4
    optimum = 1 / (1 + math.exp(-2 * alpha))
    start = 0.5 * (1 / (1 + math.exp(-2 - 4 * alpha * 0.324)) + 1 / (1 + math.exp(2 - 4 * alpha * 0.324)))
    assert history[0]["return/step_1"] == pytest.approx(start, abs=0.06)
    last = [m["return/step_1"] for m in history[-5:]]
    # 5 x 600 pulls: standard error 0.006; finite samples of the support cost a little.
    assert sum(last) / 5 == pytest.approx(optimum, abs=0.03)
    assert all(m["return/step_0"] == pytest.approx(0.5, abs=0.1) for m in history), (
        "balanced tasks: 1/2 before adapting"
    )


def test_a_bandit_policy_with_features_to_scale_reaches_near_certainty_in_one_step():
    """A hidden layer can enlarge its own inner step, up to a return of 1 after it; before it the values add up to 1.

    Kept on, training would drift off again: the meta-gradient does not see that a prior that always pulls one arm
    leaves nothing to learn from (the sampling term that E-MAML adds). So the test asks for the best iteration.
    """
    policy = CategoricalMLPPolicy(1, 2, (8,))
    config = LearnerConfig(
        meta_batch_size=4, episodes_per_task=100, inner_lr=0.3, max_kl=0.01, chunk_size=4, cg_iters=5
    )
    subject = MetaLearner(two_armed_bandit(), policy, config, num_threads=1)
    history = metrics_of(subject, 30)
    assert history[0]["return/step_1"] < 0.85
    assert max(m["return/step_1"] for m in history) > 0.97
    assert all(m["return/step_0"] == pytest.approx(0.5, abs=0.125) for m in history)


def gaussian_target_params(subject):
    params = subject.params
    mean = float(params["mean.layers.0.weight"].sum() + params["mean.layers.0.bias"])
    return mean, math.exp(float(params["log_std"]))


def closed_form_after_one_step(mean, std, goal, alpha):
    """a = mu + sigma e, R = -(a - g)^2: R - E R = 2 (g - mu) sigma e - sigma^2 (e^2 - 1), of variance
    s^2 = 4 (g - mu)^2 sigma^2 + 2 sigma^4. The inner gradient is E[A e / sigma] = 2 (g - mu) / s for mu (which
    weight and bias move both) and E[A (e^2 - 1)] = -2 sigma^2 / s for log sigma. The return is -(mu' - g)^2 - sigma'^2.
    """
    s = math.sqrt(4 * (goal - mean) ** 2 * std**2 + 2 * std**4)
    new_mean = mean + 2 * alpha * 2 * (goal - mean) / s
    new_std = std * math.exp(-2 * alpha * std**2 / s)
    return -((new_mean - goal) ** 2) - new_std**2


def target_curve(policy, params, alpha):
    family = target_family()
    return evaluate_adaptation(
        family, policy_inner_loop(policy, inner_lr=alpha), params, family.published_tasks(), num_steps=1,
        noise_key=(2, 0), settings=AdvantageSettings(), episodes_per_task=4000,
    )[0].returns  # fmt: skip


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.4, 0.3), (-0.2, 1.0)])
def test_one_inner_step_towards_a_target_has_its_closed_form_return(mean, std):
    policy = GaussianMLPPolicy(1, 1, (), init_std=std)
    params = {name: torch.zeros_like(value) for name, value in policy.named_parameters()}
    params |= {"mean.layers.0.bias": torch.tensor([mean]), "log_std": torch.tensor([math.log(std)])}
    returns = target_curve(policy, params, 0.1)
    for row, goal in zip(returns.tolist(), (-1.0, 1.0), strict=True):
        assert row[0] == pytest.approx(-((mean - goal) ** 2) - std**2, abs=0.08)
        assert row[1] == pytest.approx(closed_form_after_one_step(mean, std, goal, 0.1), abs=0.08)


def test_meta_training_on_targets_finds_a_start_from_which_one_step_arrives():
    """Goals -1 and 1: no single policy does better than -1 before adapting; after one step the closed form's best, over
    the standard deviation at mean 0, is what can be reached.
    """
    alpha = 0.1
    best = max(closed_form_after_one_step(0.0, std / 1000, 1.0, alpha) for std in range(50, 1500))
    policy = GaussianMLPPolicy(1, 1, ())
    with torch.no_grad():
        policy.mean.layers[0].weight.fill_(0.3)
        policy.mean.layers[0].bias.fill_(0.2)
    config = LearnerConfig(
        meta_batch_size=4, episodes_per_task=100, inner_lr=alpha, max_kl=0.05, chunk_size=4, cg_iters=4
    )
    subject = MetaLearner(target_family(), policy, config, num_threads=1)
    metrics_of(subject, 60)
    mean, std = gaussian_target_params(subject)
    returns = target_curve(policy, subject.params, alpha)
    assert float(returns[:, 0].mean()) <= -1.0 + 0.02
    predicted = sum(closed_form_after_one_step(mean, std, goal, alpha) for goal in (-1.0, 1.0)) / 2
    assert float(returns[:, 1].mean()) == pytest.approx(predicted, abs=0.05)
    assert float(returns[:, 1].mean()) == pytest.approx(best, abs=0.02)
