"""Meta-reinforcement learning in PyTorch: inner loops on sampled rollouts, meta-updates on what comes out of them."""

from metarl.adaptation import adapt
from metarl.agent import Agent
from metarl.algorithms.maml_trpo import MAMLTRPO, MAMLTRPOConfig
from metarl.evaluation import AdaptationCurve, evaluate_adaptation
from metarl.policies import CategoricalMLPPolicy, GaussianMLPPolicy
from metarl.types import Rollout

__all__ = [
    "MAMLTRPO",
    "AdaptationCurve",
    "Agent",
    "CategoricalMLPPolicy",
    "GaussianMLPPolicy",
    "MAMLTRPOConfig",
    "Rollout",
    "adapt",
    "evaluate_adaptation",
]
