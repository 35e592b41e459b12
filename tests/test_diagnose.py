"""`perla diagnose`: its estimates against enumeration, and what it prints, writes and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import host_envs
import perla
from exact_noise import Play, exact, of_congestion, of_matrix, random_game
from marks import cases, slow
from perla.algos.ppo import Algorithm
from perla.analysis.stats import Score
from perla.cli import main
from perla.envs import registry
from perla.envs.protocol import Observation
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops.rollout import begin
from perla.methods.recipes import make
from perla.variance import diagnosis
from perla.variance.branches import equal
from perla.variance.components import ESTIMATORS
from perla.variance.critic import FixedLearner
from perla.variance.diagnosis import PARTS, means, measure, percent, ratio
from perla.variance.states import events_of_earlier

LAMBDAS = (0.0, 0.9, 1.0)
SMALL = {"hidden_size": 16, "actor_network": "mlp", "num_envs": 64, "init": "torch"}


# --- Against enumeration ------------------------------------------------------------------------


def matrix(name):
    env = perla.make(f"matrix:{name}")
    return env, of_matrix(env)


def congestion(agents, others):
    env = perla.make(f"congestion:n{agents}-others{others}", resources=2, limit=3)
    return env, of_congestion(env)


def markov(seed, **sizes):
    game = random_game(seed, **sizes)
    return Play(game), game


GAMES = {
    "one step": (partial(matrix, "climbing"), None, 2**14),
    "three agents, four steps, rollouts of two": (partial(matrix, "random-n3-a2-s1-t4"), 2, 2**14),
    "congestion of three": (partial(congestion, 3, 0.5), None, 2**16),
    "markov game": (partial(markov, 0), None, 2**15),
    "markov game of three": (partial(markov, 5, agents=3, actions=2, limit=3), None, 2**16),
}
"""Each with the length of its rollouts (None: whole episodes) and the number of visits."""


def untrained(env, **settings):
    """A new learner with random policies and values, and its environments."""
    config = make("ippo", **SMALL, **settings)
    algorithm = Algorithm(config, env.spec)
    learner = algorithm.init(jax.random.key(1))
    envs = AutoReset(env, config.num_envs)
    return FixedLearner(algorithm, learner), begin(envs, learner.actor, jax.random.key(2))


def tables(fixed, game):
    """The policy `[state, agent, action]` and the critic's values `[state, agent]`."""
    states = len(game.start)
    avail = jnp.ones((states, game.agents, game.actions), bool)
    seen = Observation(jnp.asarray(game.obs, jnp.float32), jnp.eye(states), avail)
    first = fixed.actor.initial_state((states,))
    policy, _ = fixed.actor(seen, first, jnp.ones(states, bool))
    hidden_state = fixed.learner.critic.body.initial_state((states,))
    values = jax.vmap(lambda p, o, h: fixed.bootstrap(p, p.mode(), o, h)[0])
    return np.asarray(policy.probs, float), np.asarray(values(policy, seen, hidden_state), float)


def in_learners_units(fixed, game):
    rewards = fixed.learner.rewards
    scale = float(rewards.deviation)
    reward = (game.reward - float(rewards.mean)) / scale
    return replace(game, reward=reward, deviation=game.deviation / scale)


@pytest.mark.parametrize("game", cases(GAMES, "congestion of three", "markov game of three"))
def test_the_estimates_are_those_of_enumeration(game):
    """Within 10%, and of those that are tiny within 1% of the whole."""
    create, length, states = game
    env, game = create()
    fixed, runner_state = untrained(env, rollout_length=length)
    visits, components = measure(
        env, fixed, runner_state, jax.random.key(3), states=states, lambdas=LAMBDAS
    )
    found = means(visits, components, np.ones((1, len(visits.now))))
    policy, value = tables(fixed, game)
    game = in_learners_units(fixed, game)
    for i, lam in enumerate(LAMBDAS):
        expected = exact(game, policy, value, gamma=0.99, lam=lam, length=length)
        square = sum(expected[name] for name in PARTS)
        assert expected["whole"] == pytest.approx(square - expected["critic"], rel=1e-6)
        wholes = dict.fromkeys((*PARTS, "whole", "error"), square)
        wholes |= dict.fromkeys(map("noise_{}".format, ESTIMATORS), expected["noise_critic"])
        wholes["signal"] = expected["noise_critic"]
        assert set(wholes) == set(expected) == set(found)
        for name, whole in wholes.items():
            estimate = np.broadcast_to(found[name][0], len(LAMBDAS))[i]
            assert estimate == pytest.approx(expected[name], rel=0.1, abs=0.01 * whole), (lam, name)
