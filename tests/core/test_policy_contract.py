"""What a policy must be, and that nothing of it is lost, frozen or moved behind its back."""

import copy
import functools
import gc
import os
import random
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map
from toys import PointFamily, double_params, equal_trees, finite_difference

from metarl.agent import Agent
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.meta_learner import MetaLearner
from metarl.collect import collect
from metarl.evaluation import evaluate_adaptation
from metarl.functional import initial_params, per_task
from metarl.inner_loop import InnerLoop
from metarl.noise import TaskNoise
from metarl.ops import gaussian
from metarl.ops.gaussian import Gaussian
from metarl.parallel import TaskChunks
from metarl.policies import CategoricalMLPPolicy, GaussianMLPPolicy, check_policy
from metarl.policy_gradient import policy_inner_loop
from metarl.rollout_adaptation import AdvantageSettings, _check_replay, adapt_on_rollouts
from metarl.types import Rollout

SMALL = LearnerConfig(meta_batch_size=3, episodes_per_task=3, cg_iters=2)


class Wrapped(nn.Module):
    """A Gaussian policy with something in front of it."""

    distribution, action_dim = gaussian, 2

    def __init__(self, **parts):
        super().__init__()
        self.inner = GaussianMLPPolicy(2, 2, (4,))
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, observations):
        return self.inner(self.see(observations))

    def see(self, observations):
        return observations


class Normalised(Wrapped):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("std", torch.ones(2))

    def see(self, observations):
        return (observations - self.mean) / self.std


def learner(policy=None, config=SMALL, **options):
    return MetaLearner(PointFamily(), policy or GaussianMLPPolicy(2, 2, (4,)), config, num_threads=1, **options)


def per_task_params(module, num_tasks=3):
    return {n: v.detach() + 0.3 * torch.randn(num_tasks, *v.shape) for n, v in module.named_parameters()}


# Buffers


def test_a_call_sees_the_modules_buffers_flags_and_settings_as_they_are_now():
    policy, observations = Normalised(), torch.randn(3, 5, 2)
    params = per_task_params(policy)
    plain = per_task(policy)(params, observations)
    policy.mean.copy_(torch.tensor([1.0, -2.0]))
    policy.std = torch.tensor([2.0, 0.5])
    expected = per_task(policy.inner)(
        {n.removeprefix("inner."): v for n, v in params.items()}, policy.see(observations)
    )
    torch.testing.assert_close(per_task(policy)(params, observations), expected)
    assert not torch.equal(plain.mean, expected.mean)
    one = {n: v[:1] for n, v in params.items()}
    torch.testing.assert_close(per_task(policy)(one, observations[:1]).mean, expected.mean[:1])
    policy.inner.min_log_std = 5.0
    assert bool((per_task(policy)(params, observations).log_std == 5.0).all())


def test_collection_losses_agent_and_checkpoint_have_the_same_normaliser():
    policy = Normalised()
    subject = learner(policy)
    before = subject.adapt([0.3, -0.2], num_steps=1)
    acted = before.act([0.3, -0.2])
    subject.iterate()
    policy.mean.copy_(torch.tensor([3.0, -1.0]))
    policy.std.copy_(torch.tensor([5.0, 2.0]))
    after = subject.adapt([0.3, -0.2], num_steps=1)
    assert not equal_trees(before.params, after.params), "what was collected saw the new statistics"
    assert np.array_equal(before.act([0.3, -0.2]), acted), "an agent keeps the ones it was made with"
    mean = per_task(policy)({n: v[None] for n, v in after.params.items()}, torch.tensor([[[0.3, -0.2]]])).mean
    np.testing.assert_allclose(after.act([0.3, -0.2]), mean[0, 0].numpy(), rtol=1e-6)
    state, rest = copy.deepcopy(subject.state_dict()), [subject.iterate()["return/step_1"] for _ in range(2)]
    resumed = learner(Normalised())
    resumed.load_state_dict(state)
    assert torch.equal(resumed.policy.mean, policy.mean)
    assert [resumed.iterate()["return/step_1"] for _ in range(2)] == rest
    assert equal_trees(resumed.params, subject.params)
    policy.mean.zero_()
    assert float(state["constants"]["mean"][0]) == 3.0, "a state is not changed by what happens later"


def test_no_module_is_kept_alive_and_no_module_is_changed():
    policy = GaussianMLPPolicy(2, 2, (4,))
    before, gone = copy.deepcopy(policy.state_dict()), weakref.ref(policy)
    subject = learner(policy)
    subject.iterate()
    subject.adapt([0.1, 0.2]).act([0.0, 0.0])
    assert equal_trees(policy.state_dict(), before)
    del policy, subject
    gc.collect()
    assert gone() is None


def test_a_module_can_be_called_from_threads_while_somebody_else_uses_it():
    policy, observations = Normalised(), torch.randn(3, 50, 2)
    wanted = [(p := per_task_params(policy), per_task(policy)(p, observations).mean) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: per_task(policy)(pair[0], observations).mean, wanted * 10))
    assert all(torch.equal(a, b) for a, (_, b) in zip(found, wanted * 10, strict=True))


def test_a_method_that_was_assigned_to_a_module_computes_with_the_parameters_given():
    policy = GaussianMLPPolicy(2, 2, (4,))
    policy.forward = policy.forward
    params, observations = per_task_params(policy), torch.randn(3, 5, 2)
    expected = per_task(GaussianMLPPolicy(2, 2, (4,)))(params, observations)
    assert torch.equal(per_task(policy)(params, observations).mean, expected.mean)


# Frozen parameters


@pytest.mark.parametrize("wrap", [False, True], ids=["task axis of its own", "vmap"])
@pytest.mark.parametrize("frozen", ["mean.layers.0.weight", "mean.layers.0.bias", "log_std"])
def test_a_frozen_parameter_is_used_but_never_moved_and_the_rest_learns(wrap, frozen):
    policy = Wrapped() if wrap else GaussianMLPPolicy(2, 2, (4,))
    name = f"inner.{frozen}" if wrap else frozen
    parameter = dict(policy.named_parameters())[name].requires_grad_(False)
    parameter.add_(0.1)
    before = parameter.clone()
    subject = learner(policy, LearnerConfig(**{**vars(SMALL), "learned_lr": "shared"}))
    assert not any(name in key for key in subject.params)
    start = {n: v.clone() for n, v in subject.params.items()}
    assert subject.iterate()["line_search/accepted"] == 1.0
    assert not any(torch.equal(start[n], subject.params[n]) for n in start if not n.startswith("inner_lr"))
    agent = subject.adapt([0.1, 0.2])
    assert torch.equal(parameter, before) and name not in agent.params and torch.equal(agent.constants[name], before)
    assert torch.equal(subject.state_dict()["constants"][name], before)


def test_the_inner_step_with_a_frozen_parameter_is_the_gradient_by_the_others():
    policy = GaussianMLPPolicy(2, 2, (3,)).double()
    policy.log_std.requires_grad_(False).fill_(-0.7)
    x, goal = torch.randn(1, 5, 2, dtype=torch.float64), torch.randn(1, 5, 2, dtype=torch.float64)

    def loss(params, batch):
        return -gaussian.log_prob(per_task(policy)(params, x), goal).mean(-1)

    meta = {n: v for n, v in double_params(policy).items() if n != "log_std"}
    theta = InnerLoop(policy, loss, inner_lr=0.3).adapt(meta, [None], 1, 1)[-1]
    gradient = finite_difference(lambda p: loss({n: v[None] for n, v in p.items()}, None).sum(), meta)
    assert set(theta) == set(meta)
    for name, value in meta.items():
        torch.testing.assert_close(theta[name][0], value - 0.3 * gradient[name], rtol=1e-6, atol=1e-8)


def test_a_policy_without_anything_to_learn_is_refused():
    with pytest.raises(ValueError, match="nothing to learn"):
        learner(GaussianMLPPolicy(2, 2, (4,)).requires_grad_(False))


# Randomness, memory, other rows


class OverTime(Wrapped):
    """Takes the rows for a sequence."""

    def __init__(self):
        super().__init__(gru=nn.GRU(2, 2))

    def see(self, observations):
        return self.gru(observations.reshape(-1, 2))[0].reshape(observations.shape)


class Remembers(Wrapped):
    def see(self, observations):
        self.last = observations + 0.5 * getattr(self, "last", 0.0)
        return self.last


class Counts(Wrapped):
    def __init__(self):
        super().__init__(calls=[])

    def see(self, observations):
        self.calls.append(None)
        return observations * len(self.calls)


class Noisy(Wrapped):
    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def see(self, observations):
        return observations + self.noise(observations)


class UpdatesItself(Normalised):
    def see(self, observations):
        self.mean.mul_(0.9).add_(0.1 * observations.detach().reshape(-1, 2).mean(0))
        return super().see(observations)


class Whitens(Wrapped):
    def see(self, observations):
        return observations - observations.reshape(-1, 2).mean(0)


class Front(Wrapped):
    def see(self, observations):
        return self.part(observations)


IMPURE = {
    "F.dropout": (lambda: Noisy(lambda x: nn.functional.dropout(x, 0.5)), "random"),
    "nn.Dropout": (lambda: Front(part=nn.Dropout(0.5)), "random"),
    "RReLU": (lambda: Front(part=nn.RReLU()), "random"),
    "torch.randn": (lambda: Noisy(torch.randn_like), "random"),
    "NumPy": (lambda: Noisy(lambda x: np.random.rand()), "again"),
    "a counter": (Counts, "again"),
    "hidden state": (Remembers, "again"),
    "a running normaliser in forward": (UpdatesItself, "changes its mean"),
    "batch norm": (lambda: Front(part=nn.BatchNorm1d(2)), "changes its part.running_mean"),
    "a GRU over rows": (OverTime, "others beside it"),
    "the mean over rows": (Whitens, "others beside it"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "says"), IMPURE.values(), ids=IMPURE.keys())
def test_what_is_no_function_of_one_observation_is_refused_when_the_learner_is_made(make, says):
    with pytest.raises(ValueError, match=says):
        learner(make())


class Held(Wrapped):
    """Its layers stand beside its registered parts once more; `hold` says how."""

    def __init__(self, hold):
        super().__init__(layers=nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2)]))
        self.held = hold(self)

    def see(self, observations):
        first, second = self.held() if callable(self.held) else self.held
        return second(first(observations).tanh())

    def in_order(self, turned):
        return self.layers


HELD = {
    "a list": lambda self: list(self.layers),
    "a tuple": lambda self: tuple(self.layers),
    "a dictionary of lists": lambda self: {"all": list(self.layers)}["all"],
    "a method": lambda self: functools.partial(self.in_order, False),
}


@pytest.mark.parametrize("hold", HELD.values(), ids=HELD.keys())
def test_layers_that_are_reached_beside_the_registered_parts_compute_with_the_parameters_given(hold):
    policy = Held(hold)
    check_policy(policy, 2, 2)
    learnt = learner(policy)
    before = dict(learnt.params)
    assert learnt.iterate()["skipped_updates"] == 0
    assert all(not torch.equal(value, before[name]) for name, value in learnt.params.items())


class Weights(Wrapped):
    """Its layers' weights in a list."""

    def __init__(self):
        super().__init__(layer=nn.Linear(2, 2))
        self.weights = [self.layer.weight]

    def see(self, observations):
        return observations @ self.weights[0]


class Detached(Wrapped):
    @torch.no_grad()
    def forward(self, observations):
        return self.inner(observations)


OUT_OF_REACH = {
    "a function": (lambda: Held(lambda self: lambda: self.layers), "past its own parts"),
    "a list of weights": (Weights, "past its own parts"),
    "a compiled module": (lambda: Front(part=torch.compile(nn.Linear(2, 2), backend="eager")), "past its own parts"),
    "no gradient": (Detached, "no gradient"),
    "a lock": (lambda: Front(part=nn.Identity(), lock=threading.Lock()), "cannot be copied"),
}  # fmt: skip


class Expanded(Wrapped):
    """A parameter of one number for all, and one that only some values fit."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5).expand(2))
        self.covariance = nn.Parameter(0.01 * torch.eye(2))

    def see(self, observations):
        return observations * self.scale @ torch.linalg.cholesky(self.covariance)


def test_looking_at_a_policy_only_reads_it():
    policy = Expanded()
    loss = policy(torch.zeros(3, 2)).mean.sum()
    check_policy(policy, 2, 2)
    loss.backward()
    shared, versions = GaussianMLPPolicy(2, 2, (4,)), [value._version for value in policy.parameters()]
    with ThreadPoolExecutor(4) as threads:
        learners = list(threads.map(lambda _: learner(shared), range(12)))
    assert all(equal_trees(each.params, learners[0].params) for each in learners)
    assert [value._version for value in policy.parameters()] == versions


@pytest.mark.parametrize(("make", "says"), OUT_OF_REACH.values(), ids=OUT_OF_REACH.keys())
def test_a_policy_whose_parameters_cannot_be_learnt_is_refused_and_as_it_was(make, says):
    policy = make()
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    with pytest.raises(ValueError, match=says):
        learner(policy)
    assert equal_trees(dict(policy.named_parameters()), before)


def test_evaluation_mode_makes_functions_of_dropout_and_batch_norm():
    for part in (nn.Dropout(0.5), nn.BatchNorm1d(2)):
        check_policy(Front(part=part).eval(), 2, 2)


@pytest.mark.parametrize("make", [OverTime, Whitens], ids=["a GRU over rows", "the mean over rows"])
def test_replaying_a_collection_finds_what_computes_otherwise_then(make):
    policy, family = make(), PointFamily()
    with pytest.raises(ValueError, match="steps it has recorded differ by"):
        adapt_on_rollouts(
            family.batch(family.sample_tasks(2), 3), policy_inner_loop(policy), initial_params(policy),
            num_steps=0, noise_key=(0, 0), settings=AdvantageSettings(),
        )  # fmt: skip


def test_large_numbers_that_cancel_are_replayed_to_rounding():
    """Observations of hundred thousands: what a unit's sum leaves may be as small as its rounding."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        policy = GaussianMLPPolicy(8, 6, (100, 100), "relu", generator=generator)
        params = per_task_params(policy, 4)
        observations = 1e4 * torch.randn(4, 10, 200, 8, generator=generator).cumsum(2)
        # As a collection does it: all worlds at one time, then at the next.
        steps = [per_task(policy)(params, observations[:, :, t]) for t in range(200)]
        recorded = tree_map(lambda *of_times: torch.stack(of_times, 2), *steps)
        shape = observations.shape[:3]
        numbers, valid = torch.zeros(shape), torch.ones(shape, dtype=torch.bool)
        rollout = Rollout(
            observations=observations, actions=recorded.mean, rewards=numbers, terminated=~valid, truncated=~valid,
            valid=valid, final_observation=observations[:, :, -1], log_prob=numbers, dist_params=recorded,
        )  # fmt: skip
        _check_replay(policy, params, rollout)
        recorded.mean[0, 0, 7] += 0.01 * recorded.mean[0, 0].abs().max()
        with pytest.raises(ValueError, match=r"differ by 0\.0"):
            _check_replay(policy, params, rollout)


class Angle:
    """A distribution of one number: actions are points near the unit circle."""

    @staticmethod
    def draw_noise(shape, action_dim, generator):
        return torch.randn(*shape, action_dim, generator=generator)

    @staticmethod
    def mode(angle):
        return torch.stack([angle.cos(), angle.sin()], -1)

    @staticmethod
    def sample(angle, noise):
        return Angle.mode(angle) + 0.1 * noise

    @staticmethod
    def log_prob(angle, action):
        return -50.0 * (action - Angle.mode(angle)).square().sum(-1)

    @staticmethod
    def entropy(angle):
        return torch.zeros_like(angle)

    @staticmethod
    def kl(old, new):
        return 50.0 * (Angle.mode(old) - Angle.mode(new)).square().sum(-1)


class Points(nn.Module):
    distribution, action_dim = Angle, 2

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, observations):
        return self.layer(observations).squeeze(-1)


def test_a_distribution_of_one_number_trains():
    config = LearnerConfig(meta_batch_size=3, episodes_per_task=3, outer_optimizer="adam")
    learnt = MetaLearner(PointFamily(), Points(), config)
    before = dict(learnt.params)
    assert learnt.iterate()["skipped_updates"] == 0
    assert not equal_trees(learnt.params, before)


@pytest.mark.parametrize("discrete", [False, True])
def test_the_same_collection_of_an_ordinary_policy_is_replayed(discrete):
    policy = CategoricalMLPPolicy(2, 2, (4,)) if discrete else GaussianMLPPolicy(2, 2, (4,))
    family = PointFamily(discrete=discrete, min_length=1)
    params = per_task_params(policy, 2)
    rollout = collect(family.batch(family.sample_tasks(2), 3), policy, params, TaskNoise((0,), 2))
    again = per_task(policy)(params, rollout.observations)
    assert torch.equal(
        policy.distribution.log_prob(again, rollout.actions)[rollout.valid], rollout.log_prob[rollout.valid]
    )


class Reshaped(Wrapped):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, observations):
        return self.change(self.inner(observations))


MISFITS = {
    "observations": (lambda: GaussianMLPPolicy(3, 2, (4,)), "observations \\[row, 2\\]"),
    "actions": (lambda: GaussianMLPPolicy(2, 3, (4,)), "action_dim is 3; the task family's is 2"),
    "a tensor": (lambda: Reshaped(lambda d: d.mean), "gives a Tensor"),
    "one row": (lambda: Reshaped(lambda d: Gaussian(d.mean, d.log_std[0])), "a row for each"),
    "one column": (lambda: Reshaped(lambda d: Gaussian(d.mean[..., :1], d.log_std)), "a row for each"),
    "NaN": (lambda: Reshaped(lambda d: Gaussian(d.mean * torch.nan, d.log_std)), "not finite"),
    "no distribution": (lambda: nn.Linear(2, 2), "no attribute 'distribution'"),
}


@pytest.mark.parametrize(("make", "says"), MISFITS.values(), ids=MISFITS.keys())
def test_a_policy_that_does_not_fit_the_family_is_refused_before_its_first_step(make, says):
    with pytest.raises(ValueError, match=says):
        learner(make())


def test_a_policy_whose_parameters_are_not_finite_is_refused():
    policy = GaussianMLPPolicy(2, 2, (4,))
    policy.log_std.data[0] = torch.inf
    with pytest.raises(ValueError, match="log_std holds a number that is not finite"):
        learner(policy)


@pytest.mark.parametrize("wrong", [lambda x: x.sum(), lambda x: x[:, None], lambda x: x[:1]])
def test_an_inner_loss_that_is_not_one_number_per_task_is_refused(wrong):
    policy = GaussianMLPPolicy(2, 2, (4,))
    inner = InnerLoop(policy, lambda params, batch: wrong(params["log_std"].sum(-1)))
    with pytest.raises(ValueError, match=r"must be \[task\] = \[3\]"):
        inner.adapt(initial_params(policy), [None], 3, 1)


# Modules that vmap does not know


class Sequence(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.part, self.head = (
            getattr(nn, kind)(3, 4, **({} if "Cell" in kind else {"batch_first": True})),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        if not isinstance(self.part, nn.RNNCellBase):
            return self.head(self.part(x)[0][:, -1])
        state = None
        for t in range(x.shape[1]):
            state = self.part(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        x = x[:, -1]
        return self.a(x) if float(x.sum()) > 0 else self.b(x)


KINDS = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]


@pytest.mark.parametrize(
    "make", [*(lambda kind=kind: Sequence(kind) for kind in KINDS), Branches], ids=[*KINDS, "branches"]
)
@pytest.mark.parametrize("tasks", [1, 3])
def test_any_module_is_exact_for_any_number_of_tasks(make, tasks):
    module = make().double()
    x = torch.randn(tasks, 4, 5, 3, dtype=torch.float64)
    meta = double_params(module)
    params = {n: v + 0.1 * torch.randn(tasks, *v.shape, dtype=v.dtype) for n, v in meta.items()}
    outputs = per_task(module)(params, x)
    for i in range(tasks):
        alone = copy.deepcopy(module)
        alone.load_state_dict({n: v[i] for n, v in params.items()})
        torch.testing.assert_close(outputs[i], alone(x[i]).detach())

    def loss(params, batch):
        return per_task(module)(params, batch).square().flatten(1).mean(-1)

    inner = InnerLoop(module, loss, inner_lr=0.1)

    def meta_loss(meta):
        return loss(inner.adapt(meta, [x], tasks, 1)[-1], x + 0.1).sum()

    leaves = {n: v.clone().requires_grad_() for n, v in meta.items()}
    gradients = torch.autograd.grad(meta_loss(leaves), list(leaves.values()), materialize_grads=True)
    direction = {n: torch.randn_like(v) for n, v in meta.items()}
    up, down = (meta_loss({n: v + e * direction[n] for n, v in meta.items()}) for e in (1e-5, -1e-5))
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction.values(), strict=True))
    assert slope == pytest.approx(float(up - down) / 2e-5, rel=1e-5)


# adapt(), evaluation, devices, forks


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_steps": -1}, "num_steps is -1"), ({"num_steps": 1.5}, "num_steps is 1.5"),
        ({"num_steps": True}, "num_steps is True"), ({"episodes": 0}, "episodes is 0"), ({"seed": -1}, "seed is -1"),
        ({"task": "goal"}, "task is 'goal'; one task of this family is 2 number"),
        ({"task": torch.zeros(2, 2)}, r"not an array of shape \[2, 2\]"),
    ],
)  # fmt: skip
def test_adapt_refuses_numbers_that_make_no_sense(options, says):
    with pytest.raises(ValueError, match=says):
        learner().adapt(**{"task": [0.1, 0.2], **options})


@pytest.mark.parametrize("observation", ["ab", None, [[1.0], [1.0, 2.0]]])
def test_what_is_no_observation_is_told(observation):
    policy = GaussianMLPPolicy(2, 2, (4,))
    with pytest.raises(ValueError, match="is no observation"):
        Agent(policy, initial_params(policy)).act(observation)


def test_adapt_hands_back_no_agent_where_anything_was_not_finite():
    poison = {"on": False}
    family = PointFamily(poison=lambda task, episode, t: poison["on"] and episode == 1)
    subject = MetaLearner(family, GaussianMLPPolicy(2, 2, (4,)), SMALL, num_threads=1)
    assert np.isfinite(subject.adapt([0.1, 0.2], episodes=3).act([0.0, 0.0])).all()
    poison["on"] = True
    with pytest.raises(ValueError, match="not finite"):
        subject.adapt([0.1, 0.2], episodes=3)
    poison["on"] = False
    far = learner(config=LearnerConfig(inner_lr=1e38))
    far.params["mean.layers.1.weight"].fill_(3e38)  # the next step is beyond float32
    with pytest.raises(ValueError, match="not finite"):
        far.adapt([0.1, 0.2], episodes=3)
    with pytest.raises(ValueError, match="not all finite"):
        Agent(subject.policy, {n: v * torch.nan for n, v in subject.params.items()})


def test_an_evaluation_refuses_worlds_that_are_not_its_own():
    subject = learner()
    tasks = subject.family.sample_tasks(2, "test")
    with pytest.raises(ValueError, match="5 worlds per task on cpu; this evaluation takes 3 on cpu"):
        evaluate_adaptation(
            subject.family, subject.inner, subject.params, tasks, num_steps=1, noise_key=(2, 0),
            settings=AdvantageSettings(), episodes_per_task=3, env=subject.family.batch(tasks, 5),
        )  # fmt: skip


def test_a_device_may_be_named_or_given():
    named, given = learner(device="cpu"), learner(device=torch.device("cpu"))
    assert (given.chunks.chunk_size, given.chunks.num_threads) == (named.chunks.chunk_size, named.chunks.num_threads)
    named.iterate(), given.iterate()
    assert equal_trees(named.params, given.params)


def test_the_programs_own_random_numbers_are_left_alone():
    def states():
        return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    torch_state, numpy_state, python_state = states()
    subject = learner()
    subject.iterate()
    subject.adapt([0.1, 0.2]).act([0.0, 0.0])
    CategoricalMLPPolicy(2, 2, (4,)), learner(Wrapped())
    after = states()
    assert torch.equal(after[0], torch_state) and np.array_equal(after[1], numpy_state) and after[2] == python_state


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_work_in_a_forked_child():
    chunks = TaskChunks(1, num_threads=2)
    assert chunks.map_items(lambda i: i * i, [1, 2, 3]) == [1, 4, 9]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks with threads
        child = os.fork()
    if child == 0:
        import signal

        signal.alarm(20)  # a hang ends here
        os._exit(chunks.map_items(lambda i: i * i, [1, 2, 3]) != [1, 4, 9])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
