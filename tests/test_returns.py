"""Returns: hand-worked numbers, and a slow reference that adds rewards one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.returns import lambda_returns, n_step, successors

GAMMA = 0.9
STEPS = 12


def bits(*which: int, length: int) -> jax.Array:
    return jnp.array([t in which for t in range(length)])


@pytest.fixture(params=range(5))
def window(request):
    """Random rewards, values v′ and ends (terminations and truncations alike)."""
    rng = np.random.default_rng(request.param)
    rewards, following = rng.normal(size=(2, STEPS)).astype(np.float32)
    return rewards, following, rng.random(STEPS) < 0.25


def slow_n_step(rewards, following, ended, n):
    """Add n rewards, or fewer if the episode or the window ends, then the value of what follows."""
    targets = []
    for start in range(len(rewards)):
        total, discount = 0.0, 1.0
        for t in range(start, start + n):
            total += discount * rewards[t]
            discount *= GAMMA
            if ended[t] or t == len(rewards) - 1:
                break
        targets.append(total + discount * following[t])
    return np.array(targets)


def slow_lambda(rewards, following, ended, lam):
    """(1 − λ) Σₙ λⁿ⁻¹ G⁽ⁿ⁾, the weight of all n beyond the end falling to the last."""
    targets = []
    for start in range(len(rewards)):
        last = next((t for t in range(start, len(rewards)) if ended[t]), len(rewards) - 1)
        most = last - start + 1
        weights = [(1 - lam) * lam ** (n - 1) for n in range(1, most)] + [lam ** (most - 1)]
        each = [slow_n_step(rewards, following, ended, n)[start] for n in range(1, most + 1)]
        targets.append(np.dot(weights, each))
    return np.array(targets)


# --- By hand ------------------------------------------------------------------------------------


def test_two_steps_by_hand():
    # One episode of three steps ends in the middle of the window: 1 + ½·2 + ¼·10, and so on.
    targets = n_step(
        jnp.array([1.0, 2.0, 3.0, 4.0]),
        jnp.array([8.0, 10.0, 0.0, 20.0]),
        bits(2, length=4),
        gamma=0.5,
        n=2,
    )
    np.testing.assert_allclose(targets, [1 + 1 + 2.5, 2 + 1.5 + 0, 3, 4 + 10])


def test_lambda_by_hand():
    # Backwards with γ = λ = ½: 4 + ½·20 = 14; 2 + ½(½·8 + ½·14) = 7.5; 1 + ½(½·4 + ½·7.5) = 3.875.
    targets = lambda_returns(
        jnp.array([1.0, 2.0, 4.0]),
        jnp.array([4.0, 8.0, 20.0]),
        bits(length=3),
        gamma=0.5,
        lam=0.5,
    )
    np.testing.assert_allclose(targets, [3.875, 7.5, 14])


def test_a_termination_is_worth_nothing_and_a_truncation_its_final_observation():
    following = successors(
        jnp.array([10.0, 11.0, 12.0, 13.0, 14.0]),
        jnp.array([20.0, 21.0, 22.0, 23.0]),
        terminated=bits(1, length=4),
        truncated=bits(2, length=4),
    )
    np.testing.assert_array_equal(following, [11, 0, 22, 14])


def test_an_episode_that_terminates_at_its_limit_is_worth_nothing():
    both = bits(0, length=1)
    assert successors(jnp.array([1.0, 2.0]), jnp.array([3.0]), both, both) == 0


# --- Against the slow reference -----------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, STEPS, 3 * STEPS])
def test_n_step_adds_n_rewards_and_a_value(window, n):
    targets = n_step(*map(jnp.asarray, window), gamma=GAMMA, n=n)
    np.testing.assert_allclose(targets, slow_n_step(*window, min(n, STEPS)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_lambda_returns_mix_all_n(window, lam):
    targets = lambda_returns(*map(jnp.asarray, window), gamma=GAMMA, lam=lam)
    np.testing.assert_allclose(targets, slow_lambda(*window, lam), rtol=1e-4, atol=1e-5)


def test_one_step_is_lambda_zero(window):
    window = tuple(map(jnp.asarray, window))
    np.testing.assert_allclose(
        n_step(*window, gamma=GAMMA, n=1), lambda_returns(*window, gamma=GAMMA, lam=0.0), rtol=1e-5
    )


def test_many_steps_are_lambda_one(window):
    window = tuple(map(jnp.asarray, window))
    np.testing.assert_allclose(
        n_step(*window, gamma=GAMMA, n=STEPS),
        lambda_returns(*window, gamma=GAMMA, lam=1.0),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_advantage_is_the_discounted_sum_of_errors(window):
    """Gₜ − V(sₜ) = Σₖ (γλ)ᵏ δₜ₊ₖ up to the episode's end   (Schulman et al., 2016, Eq. 16)."""
    rewards, _, ended = window
    lam = 0.7
    values = np.random.default_rng(9).normal(size=STEPS + 1).astype(np.float32)
    following = np.where(ended, 0.0, values[1:])
    targets = lambda_returns(
        jnp.asarray(rewards), jnp.asarray(following), jnp.asarray(ended), gamma=GAMMA, lam=lam
    )
    errors = rewards + GAMMA * following - values[:-1]
    for start in range(STEPS):
        total = 0.0
        for k, t in enumerate(range(start, STEPS)):
            total += (GAMMA * lam) ** k * errors[t]
            if ended[t]:
                break
        np.testing.assert_allclose(targets[start] - values[start], total, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "returns", [lambda *w: n_step(*w, gamma=GAMMA, n=4),
                lambda *w: lambda_returns(*w, gamma=GAMMA, lam=0.9)], ids=["n-step", "lambda"]
)  # fmt: skip
def test_nothing_leaks_across_the_end_of_an_episode(returns):
    rewards, following = jax.random.normal(jax.random.key(0), (2, 8))
    ended = bits(3, length=8)
    later = returns(rewards.at[4:].add(100.0), following.at[4:].add(100.0), ended)
    np.testing.assert_array_equal(later[:4], returns(rewards, following, ended)[:4])
