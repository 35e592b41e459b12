"""Mixers are what they are defined to be."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perla.algos import td
from perla.distributions import IMPOSSIBLE
from perla.envs.protocol import Observation
from perla.methods.td import QTRANMixer
from perla.nets import mixers
from perla.nets.actors import Views

AGENTS, ACTIONS, STATE, STATES = 3, 4, 5, 20
NOTHING = np.zeros((STATES, AGENTS), np.int32)
PAYOFF = np.array([[8.0, -12.0, -12.0], [-12.0, 0.0, 0.0], [-12.0, 0.0, 0.0]], np.float32)
"""The one-step game of QTRAN, QPLEX and WQMIX."""


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ask(mixer, chosen, best, action, state):
    """What a mixer says that does not ask what the utilities are read off."""
    return mixer(chosen, best, action, state, jnp.zeros((*chosen.shape, 0)))


call = jax.jit(ask)


def monotonic(seed):
    return _monotonic(jax.random.key(seed))


@jax.jit
def _monotonic(key):
    return mixers.QMIXMixer.create(
        key, agents=AGENTS, state=STATE, embed=32, hypernet=64, init="torch"
    )


def duplex(seed, agents=AGENTS, state=STATE, actions=ACTIONS):
    return _duplex(jax.random.key(seed), agents, state, actions)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _duplex(key, agents, state, actions):
    return mixers.QPLEXMixer.create(
        key, agents=agents, state=state, actions=actions,
        kernels=4, layers=2, hidden=16, init="torch",
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1))
def beginning(kind, settings, key):
    """A fresh mixer with orthogonal weights."""
    return kind.create(key, state=STATE, init="orthogonal", **dict(settings))


LARGE = 5 * normal(8, STATES, STATE)
"""States as they come."""


@pytest.mark.parametrize("embed", [8, 32, 128])
def test_qmix_begins_near_zero_and_not_steep(embed):
    settings = (("agents", AGENTS), ("embed", embed), ("hypernet", 64))
    mixer = beginning(mixers.QMIXMixer, settings, jax.random.key(0))
    nothing = np.zeros((STATES, AGENTS), np.float32)
    assert abs(call(mixer, nothing, nothing, NOTHING, LARGE)).max() < 0.5
    slope = slopes(mixer, nothing, LARGE)
    assert 0.5 < slope.mean() < 5.0, "however wide it is"


def test_qplex_begins_as_the_sum():
    settings = (
        ("agents", AGENTS), ("actions", ACTIONS), ("kernels", 10), ("layers", 3), ("hidden", 64),
    )  # fmt: skip
    mixer = beginning(mixers.QPLEXMixer, settings, jax.random.key(0))
    q = normal(0, STATES, AGENTS)
    total = call(mixer, q, q + 1, NOTHING, LARGE)
    np.testing.assert_allclose(total, q.sum(-1, keepdims=True), atol=0.3)


def test_alone_nothing_is_mixed():
    q = normal(0, STATES, AGENTS)
    np.testing.assert_array_equal(
        call(mixers.IQLMixer(), q, q, NOTHING, normal(1, STATES, STATE)), q
    )


def test_vdn_is_the_sum():
    q = normal(0, STATES, AGENTS)
    total = call(mixers.VDNMixer(), q, q, NOTHING, normal(1, STATES, STATE))
    np.testing.assert_allclose(total, np.asarray(q).sum(-1)[:, None], rtol=1e-6)


def slopes(mixer, chosen, state):
    """The gradient of every Q_tot in the chosen utilities."""
    best, action = jnp.zeros_like(chosen), jnp.zeros(chosen.shape, int)
    return _slopes(mixer, chosen, best, action, state)


_slopes = jax.jit(jax.grad(lambda *inputs: ask(*inputs).sum(), argnums=1))


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
    return ask(mixer, chosen, best, joint, states)[:, 0].reshape((actions,) * agents)


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
            learnt, hidden_state = carry
            steps, hidden_state = optimiser.update(jax.grad(loss)(learnt), hidden_state)
            return (optax.apply_updates(learnt, steps), hidden_state), None

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
    utilities, values = fit(mixers.VDNMixer(), PAYOFF, 0.1 * normal(0, 2, len(PAYOFF)), rate=3e-2)
    # Row and column means, less the grand mean, are the best that a sum can do.
    rows, columns = PAYOFF.mean(1, keepdims=True), PAYOFF.mean(0, keepdims=True)
    np.testing.assert_allclose(values, rows + columns - PAYOFF.mean(), atol=0.05)
    assert (utilities.argmax(-1) != 0).all()


# --- QTRAN --------------------------------------------------------------------------------------

KNOWN = 6


@functools.cache
def moments():
    """A transformed mixer, and what it is told: utilities `[state, agent, action]`, actions, states
    and what the utilities are read off."""
    create = jax.jit(lambda key: mixers.QTRANMixer.create(
        key, known=KNOWN, actions=ACTIONS, state=STATE, hidden=8, init="torch"))  # fmt: skip
    told = (
        normal(0, STATES, AGENTS, ACTIONS),
        np.random.default_rng(3).integers(ACTIONS, size=(STATES, AGENTS)),
        normal(1, STATES, STATE),
        normal(2, STATES, AGENTS, KNOWN),
    )
    return create(jax.random.key(0)), *map(jnp.asarray, told)


def taken(utilities, action):
    return jnp.take_along_axis(utilities, action[..., None], -1)[..., 0]


@jax.jit
def compared(mixer, utilities, action, state, hidden):
    """Q(s, a), V(s), D(s, a), and D of every agent's alternatives."""
    chosen = taken(utilities, action)
    return (
        mixer(chosen, chosen, action, state, hidden)[:, 0],
        mixer.V(state)[:, 0],
        mixer.gap(chosen, action, state, hidden)[:, 0],
        mixer.gaps(utilities, chosen, action, state, hidden),
    )


def test_qtran_compares_a_sum_with_the_joint_value():
    _, utilities, action, *_ = moments()
    Q, V, gap, _ = map(np.asarray, compared(*moments()))
    assert len(np.unique(Q)) == STATES
    expected = np.asarray(taken(utilities, action)).sum(-1) + V - Q
    np.testing.assert_allclose(gap, expected, rtol=1e-4, atol=1e-5)


def test_qtran_knows_what_other_actions_would_have_changed():
    mixer, utilities, action, state, hidden = moments()
    *_, gaps = compared(*moments())
    for agent, other in itertools.product(range(AGENTS), range(ACTIONS)):
        instead = action.at[:, agent].set(other)
        _, _, expected, _ = compared(mixer, utilities, instead, state, hidden)
        np.testing.assert_allclose(gaps[:, agent, other], expected, rtol=1e-4, atol=1e-5)


def test_qtrans_joint_value_is_fixed_where_a_sum_is_held_to_it():
    mixer, utilities, *rest = moments()

    @jax.jit
    @jax.jacrev
    def slopes(learnt):
        return [x.sum() for x in compared(*learnt, *rest)]

    def moved(part):
        return any((leaf != 0).any() for leaf in jax.tree.leaves(part))

    learns = [
        [moved(part) for part in (of_mixer.e, of_mixer.Q, of_mixer.V, of_utilities)]
        for of_mixer, of_utilities in slopes((mixer, utilities))
    ]
    assert learns == [
        [True, True, False, False],  # Q(s, a)
        [False, False, True, False],  # V(s)
        [False, False, True, True],  # D(s, a)
        [False, False, True, True],  # D(s, a′ᵢ, a₋ᵢ)
    ]


@pytest.mark.parametrize("condition", ["base", "alt"])
def test_qtrans_conditions(condition):
    """Both: D(s, ā) = 0. Base: D(s, a) ≥ 0. Alt: for every agent, the least D of what it might have
    done instead is 0, over the actions available."""
    mixer, utilities, action, state, hidden = moments()
    rng = np.random.default_rng(4)
    avail = (rng.random(utilities.shape) < 0.5) | (np.eye(ACTIONS, dtype=bool)[action])
    greedy = jnp.asarray(np.where(avail, utilities, IMPOSSIBLE).argmax(-1))

    @jax.jit
    def off(mixer, action, greedy, avail):
        observation = Observation(jnp.zeros((STATES, AGENTS, 1)), state, avail)
        views = Views(utilities, hidden)
        return td.gaps(QTRANMixer(condition=condition), mixer, views, action, greedy, observation)

    at_best, elsewhere = off(mixer, action, greedy, avail)
    _, _, expected, _ = compared(mixer, utilities, greedy, state, hidden)
    np.testing.assert_allclose(at_best[:, 0], expected, rtol=1e-4, atol=1e-5)
    _, _, gap, every = map(np.asarray, compared(*moments()))
    if condition == "base":
        assert (gap > 0).any()
        assert (gap < 0).any()
        np.testing.assert_allclose(elsewhere[:, 0], np.minimum(gap, 0), rtol=1e-4, atol=1e-5)
    else:
        least = np.where(avail, every, np.inf).min(-1)
        assert (least != every.min(-1)).any()
        np.testing.assert_allclose(elsewhere, least, rtol=1e-4, atol=1e-5)
