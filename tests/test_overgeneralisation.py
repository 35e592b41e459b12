"""Policy gradients through fitted critics of matrix games: mean and optimistic aggregators."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from perla.envs.registry import make_env
from perla.experiments.matrix.fitted_critic import outcomes, threshold
from perla.loops.anakin import Trainer
from perla.methods import recipes as methods
from perla.methods.aggregators import Entropic, Max, Mean
from perla.methods.estimators import FEW


def game(agents, actions):
    return make_env(f"matrix:overgeneralisation-n{agents}-a{actions}")


@pytest.mark.parametrize(("agents", "found"), [(2, 0.375), (3, 0.4365), (5, 0.468), (20, 0.493)])
def test_the_mean_prefers_action_0_above_a_threshold(agents, found):
    assert threshold(agents) == pytest.approx(found, abs=6e-4)
    p = threshold(agents)
    assert 20 * p ** (agents - 1) == pytest.approx(12 * (1 - p) ** (agents - 1))


def test_the_mean_stays_safe_and_the_best_is_found():
    mean, optimistic = outcomes(game(2, 3), (Mean(), Max()), data=("uniform", "balanced"), seeds=3)
    np.testing.assert_array_equal(mean, np.zeros((2, 3)))
    np.testing.assert_array_equal(optimistic, np.full((2, 3), 8.0))


def test_a_critic_knows_no_more_than_it_was_shown():
    """3,200 samples of ten agents' 59,049 joint actions hardly contain the best one. Optimism then
    cannot find it, once the critic has fitted its data. (Before, agents with equal policies may all
    choose it by chance.)"""
    (earned,) = outcomes(
        game(10, 3), (Max(),), estimator=FEW, data=("uniform",), seeds=8, collections=100
    )
    np.testing.assert_array_equal(earned, np.zeros((1, 8)))


@pytest.mark.slow
@pytest.mark.parametrize(("agents", "actions"), [(2, 3), (2, 15), (3, 3), (5, 3)])
def test_twenty_seeds(agents, actions):
    earned = outcomes(game(agents, actions), (Mean(), Max(), Entropic(eta=1.0)))
    mean, best, entropic = (earned == 8).sum((1, 2))
    assert mean <= 1
    assert best >= 19
    assert entropic >= 19


# --- The learners themselves --------------------------------------------------------------------

LEARNERS = ("ippo", "mappo", "coma", "perla-ippo", "perla-mappo")
STARTS = {0.25: 0.0, 0.3: 0.0, 1 / 3: 0.0, 0.45: 8.0, 0.5: 8.0}
"""P(action 0) of every agent at first, and what is earned at last: p* is 0.375."""
UPDATES = 300


@pytest.mark.slow
@pytest.mark.parametrize("algo", LEARNERS)
def test_learners_end_on_their_side_of_the_threshold(algo):
    """Batches of 1024 plays and small steps, so that the gradient decides and not its noise."""
    config = methods.make(
        algo,
        num_envs=1024,
        rollout_length=1,
        actor_network="mlp",
        hidden_size=16,
        lr=2e-3,
        critic_lr=1e-2,
    )
    steps = UPDATES * config.num_envs
    trainer = Trainer(
        game(2, 3), config, seeds=tuple(range(20)), steps=steps, eval_episodes=1, vectorise=True
    )

    def last_bias(progress):
        return progress.learner.actor.body.net.head.layers[-1].bias

    for start, expected in STARTS.items():
        (progress,) = trainer.init()
        probs = jnp.array([start, (1 - start) / 2, (1 - start) / 2])
        bias = jnp.broadcast_to(jnp.log(probs), last_bias(progress).shape)
        _, rows = trainer.advance([eqx.tree_at(last_bias, progress, bias)], steps)
        earned = [row["return"] for row in rows]
        assert sum(value == expected for value in earned) >= 18, f"from {start:.2f}: {earned}"
