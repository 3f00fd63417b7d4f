"""Meta-reinforcement learning in PyTorch: inner loops on sampled rollouts, meta-updates on what comes out of them."""

from metarl.adaptation import adapt
from metarl.agent import Agent
from metarl.algorithms.config import LearnerConfig
from metarl.algorithms.meta_learner import MetaLearner
from metarl.evaluation import AdaptationCurve, evaluate_adaptation
from metarl.policies import CategoricalMLPPolicy, GaussianMLPPolicy
from metarl.shadowing import warn_if_envs_is_shadowed
from metarl.types import Rollout

__all__ = [
    "AdaptationCurve",
    "Agent",
    "CategoricalMLPPolicy",
    "GaussianMLPPolicy",
    "LearnerConfig",
    "MetaLearner",
    "Rollout",
    "adapt",
    "evaluate_adaptation",
]

warn_if_envs_is_shadowed()
