"""From a method's settings to its learner: the one place that knows them all."""

from __future__ import annotations

from perla.algos import ppo, td
from perla.algos.protocol import Algorithm
from perla.envs.protocol import Spec
from perla.methods.ppo import PPO
from perla.methods.recipes import Method


def create(config: Method, spec: Spec) -> Algorithm:
    """The learner with these settings for a world; `UserError` where they do not fit."""
    return ppo.Algorithm(config, spec) if isinstance(config, PPO) else td.Algorithm(config, spec)
