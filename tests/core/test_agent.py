"""An adapted policy in a user's hands."""

import numpy as np
import pytest
import torch

from metarl.agent import Agent
from metarl.functional import initial_params
from metarl.policies import CategoricalMLPPolicy, GaussianMLPPolicy


def agent(policy):
    params = {name: value + 0.3 for name, value in initial_params(policy).items()}
    return Agent(policy, params), params


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3)])
def test_without_a_generator_it_acts_with_the_mode_under_its_own_parameters(shape):
    observation = np.random.default_rng(0).normal(size=shape)  # float64, as Gymnasium gives it
    for policy in (GaussianMLPPolicy(3, 2, (4,)), CategoricalMLPPolicy(3, 4, (4,))):
        subject, params = agent(policy)
        expected = torch.func.functional_call(policy, params, (torch.tensor(observation, dtype=torch.float32),))
        action = subject.act(observation)
        assert isinstance(action, np.ndarray)
        np.testing.assert_array_equal(action, policy.distribution.mode(expected).detach().numpy())
        assert action.shape == ((*shape[:-1], 2) if isinstance(policy, GaussianMLPPolicy) else shape[:-1])


def test_with_a_generator_it_samples_repeatably_from_the_distribution():
    policy = GaussianMLPPolicy(3, 2, (4,), init_std=0.5)
    subject = Agent(policy, initial_params(policy))
    observations = np.zeros((20_000, 3))
    first, again = (subject.act(observations, torch.Generator().manual_seed(1)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first.std(0), 0.5, rtol=5 / 40_000**0.5)
    np.testing.assert_allclose(first.mean(0), subject.act(observations[0]), atol=5 * 0.5 / 20_000**0.5)


def test_acting_changes_neither_the_module_nor_the_parameters():
    policy = GaussianMLPPolicy(3, 2, (4,))
    subject, params = agent(policy)
    before = initial_params(policy)
    subject.act(np.ones(3), torch.Generator())
    assert all(torch.equal(value, before[name]) for name, value in policy.named_parameters())
    assert all(torch.equal(subject.params[name], params[name]) for name in params)


def test_actions_stay_within_the_limit_and_choices_have_none():
    policy = GaussianMLPPolicy(3, 2, (4,), init_std=3.0)
    params = initial_params(policy)
    observations, free = np.zeros((500, 3)), Agent(policy, params)
    limited = Agent(policy, params, action_limit=0.5)
    actions = [subject.act(observations, torch.Generator().manual_seed(0)) for subject in (free, limited)]
    assert np.abs(actions[0]).max() > 1.0
    np.testing.assert_array_equal(actions[1], actions[0].clip(-0.5, 0.5))
    chooser = CategoricalMLPPolicy(3, 4, (4,))
    choices = Agent(chooser, initial_params(chooser), action_limit=0.5).act(observations, torch.Generator())
    assert choices.max() == 3


@pytest.mark.parametrize(
    ("observation", "says"),
    [(np.full(3, np.nan), "not finite"), (np.zeros(2), "does not take"), ([np.inf] * 3, "finite")],
)
def test_an_observation_that_the_policy_does_not_take_is_refused(observation, says):
    with pytest.raises(ValueError, match=says):
        agent(GaussianMLPPolicy(3, 2, (4,)))[0].act(observation)
