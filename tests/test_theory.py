"""The paper's theorems on random games."""

import itertools
from typing import get_args

import numpy as np
import pytest

from perla.experiments.theory import convergence, random_games
from perla.methods.estimators import Sampled


@pytest.fixture(scope="module")
def game():
    return random_games.random_game(0, states=3, agents=3, actions=2)


def test_values_solve_the_bellman_equation(game):
    q = game.values
    v = game.average(q)
    np.testing.assert_allclose(q, game.reward + game.gamma * game.transition @ v, rtol=1e-12)


def test_averages_are_sums_over_joint_actions(game):
    q = game.values
    for agent in range(3):
        expected = np.zeros((3, 2))
        for joint in itertools.product(range(2), repeat=3):
            others = [m for m in range(3) if m != agent]
            weight = np.prod([game.policy[:, m, joint[m]] for m in others], axis=0)
            expected[:, joint[agent]] += weight * q[(slice(None), *joint)]
        np.testing.assert_allclose(game.average(q, agent), expected, rtol=1e-12)
    own = (game.policy[:, 1] * game.average(q, 1)).sum(-1)
    np.testing.assert_allclose(game.average(q), own, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 10, 100])
@pytest.mark.parametrize("critic", ["true", "random"])
def test_theorem_1(game, critic, k):
    q = game.values
    if critic == "random":
        q = np.random.default_rng(1).normal(size=q.shape)
    found = random_games.sampled_values(game, q, k, draws=20_000, seed=k)
    variance = found.var()
    error = np.sqrt(((found - found.mean()) ** 4).mean() - variance**2) / np.sqrt(len(found))
    assert abs(variance - random_games.predicted_variance(game, q, k)) < 4 * error


@pytest.fixture(scope="module")
def estimates(game):
    return random_games.gradients(
        game, game.values, (1, 10), trajectories=20_000, length=30, seed=0
    )


def test_theorem_3(estimates):
    for perla in estimates.perla.values():
        difference = estimates.centralised - perla
        error = difference.std(0) / np.sqrt(len(difference))
        assert (np.abs(difference.mean(0)) < 4 * error + 1e-6).all()
    assert np.abs(estimates.centralised.mean(0)).max() > 0.01


def test_theorems_4_and_5(game, estimates):
    base = random_games.total_variance(estimates.decentralised)
    q = game.values
    excess = {k: random_games.total_variance(g) - base for k, g in estimates.perla.items()}
    assert 0 < excess[1] <= random_games.bound(game, q, 1)
    assert 0 < excess[10] <= random_games.bound(game, q, 10)
    assert excess[1] / excess[10] == pytest.approx(10, rel=0.2), "it is in proportion to 1/K"
    assert random_games.total_variance(estimates.centralised) - base <= random_games.bound(
        game, q, 1
    )


def test_the_error_falls_as_one_over_root_k(game):
    ks = [1, 4, 16, 64, 256]
    errors = [
        random_games.error(game, game.values, Sampled(num_samples=k), 400, seed=k) for k in ks
    ]
    assert np.polyfit(np.log(ks), np.log(errors), 1)[0] == pytest.approx(-0.5, abs=0.05)


def test_the_norm_of_the_gradient_is_that_of_finite_differences():
    """The gradient of the return with respect to softmax logits, by Q itself and differences."""
    game = random_games.random_game(3, states=2, agents=2, actions=2)
    logits = np.log(game.policy)

    def expected_return(logits):
        policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        moved = game._replace(policy=policy)
        return moved.average(moved.values).mean()

    step, differences = 1e-5, []
    for index in np.ndindex(logits.shape):
        change = np.zeros_like(logits)
        change[index] = step
        difference = expected_return(logits + change) - expected_return(logits - change)
        differences.append(difference / (2 * step))
    found = convergence.gradient_norm(game)
    np.testing.assert_allclose(found, np.linalg.norm(differences), rtol=1e-6)


@pytest.mark.parametrize("kind", get_args(convergence.Kind))
def test_actor_critics_approach_an_optimum(kind):
    """The exact gradient shrinks, though none of them sees it."""
    game = random_games.random_game(0, states=2, agents=2, actions=2)
    first, last = convergence.gradient_norms(game, kind, 3, (1, 3_000), seed=0)
    assert last < 0.25 * first
