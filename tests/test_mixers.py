"""Mixers are what they are defined to be."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perla.nets import mixers

AGENTS, ACTIONS, STATE, STATES = 3, 4, 5, 20
NOTHING = np.zeros((STATES, AGENTS), np.int32)
PAYOFF = np.array([[8.0, -12.0, -12.0], [-12.0, 0.0, 0.0], [-12.0, 0.0, 0.0]], np.float32)
"""The one-step game of QTRAN, QPLEX and WQMIX."""


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


call = jax.jit(lambda mixer, *inputs: mixer(*inputs))


def monotonic(seed):
    return _monotonic(jax.random.key(seed))


@jax.jit
def _monotonic(key):
    return mixers.Monotonic.create(
        key, agents=AGENTS, state=STATE, embed=32, hypernet=64, init="torch"
    )


def duplex(seed, agents=AGENTS, state=STATE, actions=ACTIONS):
    return _duplex(jax.random.key(seed), agents, state, actions)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _duplex(key, agents, state, actions):
    return mixers.Duplex.create(
        key, agents=agents, state=state, actions=actions,
        kernels=4, layers=2, hidden=16, init="torch",
    )  # fmt: skip


def test_alone_nothing_is_mixed():
    q = normal(0, STATES, AGENTS)
    np.testing.assert_array_equal(call(mixers.Alone(), q, q, NOTHING, normal(1, STATES, STATE)), q)


def test_vdn_is_the_sum():
    q = normal(0, STATES, AGENTS)
    total = call(mixers.Sum(), q, q, NOTHING, normal(1, STATES, STATE))
    np.testing.assert_allclose(total, np.asarray(q).sum(-1)[:, None], rtol=1e-6)


def slopes(mixer, chosen, state):
    """The gradient of every Q_tot in the chosen utilities."""
    best, action = jnp.zeros_like(chosen), jnp.zeros(chosen.shape, int)
    return _slopes(mixer, chosen, best, action, state)


_slopes = jax.jit(jax.grad(lambda mixer, *inputs: mixer(*inputs).sum(), argnums=1))


@pytest.mark.parametrize("seed", range(3))
def test_qmix_rises_with_every_utility(seed):
    q, state = 3 * normal(seed, STATES, AGENTS), 3 * normal(9, STATES, STATE)
    slope = slopes(monotonic(seed), q, state)
    assert (slope >= 0).all()
    assert (slope > 0).any()
    assert not np.allclose(slope[0], slope[1]), "the state decides how much"


@jax.jit
def parts(mixer, s):
    return mixer.W1(s), mixer.b1(s), mixer.w2(s), mixer.V(s)


def test_qmix_is_its_equation():
    mixer, q, s = monotonic(0), normal(0, AGENTS), normal(1, STATE)
    W1, b1, w2, V = map(np.asarray, parts(mixer, s))
    h = np.abs(W1).reshape(AGENTS, 32).T @ np.asarray(q) + b1
    h = np.where(h > 0, h, np.expm1(h))
    np.testing.assert_allclose(call(mixer, q, q, NOTHING[0], s), np.abs(w2) @ h + V, rtol=1e-5)


def test_the_central_value_is_bound_to_nothing():
    mixer = mixers.Central.create(
        jax.random.key(0), agents=AGENTS, state=STATE, hidden=16, init="torch"
    )
    q, state = normal(0, STATES, AGENTS), normal(1, STATES, STATE)
    slope = slopes(mixer, q, state)
    assert (slope > 0).any()
    assert (slope < 0).any()


@jax.jit
def joint_values(mixer, utilities, state):
    """Q_tot of every joint action `[action, …]` by enumeration."""
    agents, actions = utilities.shape
    joint = jnp.array(list(itertools.product(range(actions), repeat=agents)))
    chosen = utilities[jnp.arange(agents)[None], joint]
    best = jnp.broadcast_to(utilities.max(-1), chosen.shape)
    states = jnp.broadcast_to(state, (len(joint), *state.shape))
    return mixer(chosen, best, joint, states)[:, 0].reshape((actions,) * agents)


@pytest.mark.parametrize("seed", range(8))
def test_qplex_leaves_the_best_joint_action_to_the_agents(seed):
    utilities, state = 3 * normal(seed, AGENTS, ACTIONS), 3 * normal(seed + 50, STATE)
    values = joint_values(duplex(seed), utilities, state)
    best = np.unravel_index(values.argmax(), values.shape)
    np.testing.assert_array_equal(best, utilities.argmax(-1))


@jax.jit
def duplex_parts(mixer, action, state):
    return jnp.abs(mixer.w(state)), mixer.b(state), mixer.weights(action, state)


def test_qplex_weighs_advantages():
    """Σᵢ Q′ᵢ + Σᵢ (λᵢ − 1) A′ᵢ = Σᵢ V′ᵢ + Σᵢ λᵢ A′ᵢ, and the utilities' gradient is that of
    Σᵢ Q′ᵢ."""
    mixer, utilities, state = duplex(0), normal(0, AGENTS, ACTIONS), normal(1, STATE)
    action = np.array([0, 3, 1], np.int32)
    chosen, best = utilities[np.arange(AGENTS), action], utilities.max(-1)
    w, b, weight = map(np.asarray, duplex_parts(mixer, action, state))
    assert (weight > 0).all()
    expected = (w * best + b + weight * w * (chosen - best)).sum()
    np.testing.assert_allclose(call(mixer, chosen, best, action, state)[0], expected, rtol=1e-4)
    np.testing.assert_allclose(_slopes(mixer, chosen, best, action, state), w, rtol=1e-4)


def fit(mixer, table, utilities, rate=3e-3, steps=3000):
    """The utilities and the mixer that come nearest to a payoff table of two agents, from these
    utilities on."""
    state = np.ones(1, np.float32)
    optimiser = optax.chain(
        optax.clip_by_global_norm(10.0), optax.adam(optax.linear_schedule(rate, 0.0, steps))
    )

    def loss(learnt):
        return ((joint_values(*learnt, state) - table) ** 2).mean()

    @jax.jit
    def train(learnt):
        def step(carry, _):
            learnt, memory = carry
            steps, memory = optimiser.update(jax.grad(loss)(learnt), memory)
            return (optax.apply_updates(learnt, steps), memory), None

        (learnt, _), _ = jax.lax.scan(step, (learnt, optimiser.init(learnt)), length=steps)
        return learnt

    mixer, utilities = train((mixer, utilities))
    return utilities, joint_values(mixer, utilities, state)


@pytest.mark.parametrize("table", [PAYOFF, 4 * normal(8, 3, 3), 4 * normal(9, 3, 3)])
def test_qplex_fits_any_payoff_table(table):
    """Given utilities that are clearly highest at the best joint action. From utilities that tie
    it may not get there: they learn through Σᵢ Q′ᵢ alone, which knows no more than VDN does."""
    best = np.array(np.unravel_index(table.argmax(), table.shape))
    start = 0.1 * normal(0, 2, len(table)) + 5 * np.eye(len(table), dtype=np.float32)[best]
    utilities, values = fit(duplex(0, 2, 1, 3), table, start)
    np.testing.assert_allclose(values, table, atol=0.1)
    np.testing.assert_array_equal(utilities.argmax(-1), best)


def test_vdn_cannot():
    utilities, values = fit(mixers.Sum(), PAYOFF, 0.1 * normal(0, 2, len(PAYOFF)), rate=3e-2)
    # Row and column means, less the grand mean, are the best that a sum can do.
    rows, columns = PAYOFF.mean(1, keepdims=True), PAYOFF.mean(0, keepdims=True)
    np.testing.assert_allclose(values, rows + columns - PAYOFF.mean(), atol=0.05)
    assert (utilities.argmax(-1) != 0).all()
