"""Learners by their settings."""

from __future__ import annotations

from perla.algos import maddpg, ppo, td
from perla.algos.protocol import Algorithm
from perla.envs.protocol import Spec
from perla.methods.maddpg import DDPG
from perla.methods.method import Method
from perla.methods.ppo import PPO
from perla.methods.td import TD


def create(config: Method, spec: Spec) -> Algorithm:
    """The learner with these settings for an environment; `UserError` where they do not fit."""
    match config:
        case PPO():
            return ppo.Algorithm(config, spec)
        case TD():
            return td.Algorithm(config, spec)
        case DDPG():
            return maddpg.Algorithm(config, spec)
        case _:
            return config.create(spec)
