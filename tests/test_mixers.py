"""Mixers match their definitions."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perla.distributions import MASKED_LOGIT
from perla.nets import mixers
from perla.nets.mixers import MixerInput, MixerStep

AGENTS, ACTIONS, STATE, STATES = 3, 4, 5, 20
NOTHING = np.zeros((STATES, AGENTS), np.int32)
PAYOFF = np.array([[8.0, -12.0, -12.0], [-12.0, 0.0, 0.0], [-12.0, 0.0, 0.0]], np.float32)
"""The one-step game of QTRAN, QPLEX and WQMIX."""


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def value_of(mixer, chosen, best, action, state):
    """The value of a mixer that does not use the agents' hidden layers."""
    return mixer(MixerInput(chosen, best, action, state, jnp.zeros((*chosen.shape, 0))))


call = jax.jit(value_of)


def qmix(seed):
    return _qmix(jax.random.key(seed))


@jax.jit
def _qmix(key):
    return mixers.QMIXMixer.create(
        key, agents=AGENTS, state=STATE, embed=32, hypernet=64, init="torch"
    )


def qplex(seed, agents=AGENTS, state=STATE, actions=ACTIONS):
    return _qplex(jax.random.key(seed), agents, state, actions)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _qplex(key, agents, state, actions):
    return mixers.QPLEXMixer.create(
        key, agents=agents, state=state, actions=actions,
        kernels=4, layers=2, hidden_size=16, init="torch",
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1))
def create_orthogonal(kind, settings, key):
    """A newly initialised mixer with orthogonal weights."""
    return kind.create(key, state=STATE, init="orthogonal", **dict(settings))


LARGE = 5 * normal(8, STATES, STATE)
"""Unnormalised states."""


@pytest.mark.parametrize("embed", [8, 32, 128])
def test_qmix_starts_near_zero_with_a_slope_near_one(embed):
    settings = (("agents", AGENTS), ("embed", embed), ("hypernet", 64))
    mixer = create_orthogonal(mixers.QMIXMixer, settings, jax.random.key(0))
    nothing = np.zeros((STATES, AGENTS), np.float32)
    assert abs(call(mixer, nothing, nothing, NOTHING, LARGE)).max() < 0.5
    slope = slopes(mixer, nothing, LARGE)
    assert 0.5 < slope.mean() < 5.0, "for every width"


def test_qplex_starts_as_the_sum():
    settings = (
        ("agents", AGENTS), ("actions", ACTIONS), ("kernels", 10), ("layers", 3),
        ("hidden_size", 64),
    )  # fmt: skip
    mixer = create_orthogonal(mixers.QPLEXMixer, settings, jax.random.key(0))
    q = normal(0, STATES, AGENTS)
    total = call(mixer, q, q + 1, NOTHING, LARGE)
    np.testing.assert_allclose(total, q.sum(-1, keepdims=True), atol=0.3)


def test_iql_does_not_mix():
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


_slopes = jax.jit(jax.grad(lambda *inputs: value_of(*inputs).sum(), argnums=1))


@pytest.mark.parametrize("seed", range(3))
def test_qmix_is_monotonic_in_every_utility(seed):
    q, state = 3 * normal(seed, STATES, AGENTS), 3 * normal(9, STATES, STATE)
    slope = slopes(qmix(seed), q, state)
    assert (slope >= 0).all()
    assert (slope > 0).any()
    assert not np.allclose(slope[0], slope[1]), "the slope depends on the state"


@jax.jit
def parts(mixer, s):
    return mixer.W1(s), mixer.b1(s), mixer.w2(s), mixer.V(s)


def test_qmix_is_its_equation():
    mixer, q, s = qmix(0), normal(0, AGENTS), normal(1, STATE)
    W1, b1, w2, V = map(np.asarray, parts(mixer, s))
    h = np.abs(W1).reshape(AGENTS, 32).T @ np.asarray(q) + b1
    h = np.where(h > 0, h, np.expm1(h))
    np.testing.assert_allclose(call(mixer, q, q, NOTHING[0], s), np.abs(w2) @ h + V, rtol=1e-5)


def test_the_central_value_is_unrestricted():
    mixer = mixers.CentralMixer.create(
        jax.random.key(0), agents=AGENTS, state=STATE, hidden_size=16, init="torch"
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
    return value_of(mixer, chosen, best, joint, states)[:, 0].reshape((actions,) * agents)


@pytest.mark.parametrize("seed", range(8))
def test_qplex_has_the_agents_best_actions_as_its_best_joint_action(seed):
    utilities, state = 3 * normal(seed, AGENTS, ACTIONS), 3 * normal(seed + 50, STATE)
    values = joint_values(qplex(seed), utilities, state)
    best = np.unravel_index(values.argmax(), values.shape)
    np.testing.assert_array_equal(best, utilities.argmax(-1))


@jax.jit
def qplex_parts(mixer, action, state):
    return jnp.abs(mixer.w(state)), mixer.b(state), mixer.weights(action, state)


def test_qplex_weighs_advantages():
    """Σᵢ Q′ᵢ + Σᵢ (λᵢ − 1) A′ᵢ = Σᵢ V′ᵢ + Σᵢ λᵢ A′ᵢ, and the utilities' gradient is that of
    Σᵢ Q′ᵢ."""
    mixer, utilities, state = qplex(0), normal(0, AGENTS, ACTIONS), normal(1, STATE)
    action = np.array([0, 3, 1], np.int32)
    chosen, best = utilities[np.arange(AGENTS), action], utilities.max(-1)
    w, b, weight = map(np.asarray, qplex_parts(mixer, action, state))
    assert (weight > 0).all()
    expected = (w * best + b + weight * w * (chosen - best)).sum()
    np.testing.assert_allclose(call(mixer, chosen, best, action, state)[0], expected, rtol=1e-4)
    np.testing.assert_allclose(_slopes(mixer, chosen, best, action, state), w, rtol=1e-4)


def fit(mixer, table, utilities, rate=3e-3, steps=3000):
    """The utilities and joint values after regression to a payoff table of two agents."""
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
    """From utilities whose maximum is clearly at the best joint action, and some of the initial
    mixers. From tied utilities it may fail: their gradient comes through Σᵢ Q′ᵢ alone, as in VDN;
    and tables with ties may leave the regression at a bad end."""
    best = np.array(np.unravel_index(table.argmax(), table.shape))
    start = 0.1 * normal(0, 2, len(table)) + 5 * np.eye(len(table), dtype=np.float32)[best]
    several = jax.tree.map(lambda *leaves: np.stack(leaves), *(qplex(s, 2, 1, 3) for s in range(8)))
    utilities, values = jax.vmap(lambda mixer: fit(mixer, table, start))(several)
    closest = np.abs(values - table[None]).max((1, 2)).argmin()
    np.testing.assert_allclose(values[closest], table, atol=0.1)
    np.testing.assert_array_equal(utilities[closest].argmax(-1), best)


def test_vdn_cannot():
    utilities, values = fit(mixers.VDNMixer(), PAYOFF, 0.1 * normal(0, 2, len(PAYOFF)), rate=3e-2)
    # Row and column means, less the grand mean, are the best that a sum can do.
    rows, columns = PAYOFF.mean(1, keepdims=True), PAYOFF.mean(0, keepdims=True)
    np.testing.assert_allclose(values, rows + columns - PAYOFF.mean(), atol=0.05)
    assert (utilities.argmax(-1) != 0).all()


# --- QTRAN --------------------------------------------------------------------------------------

FEATURES = 6


@functools.cache
def qtran():
    """A QTRAN mixer, utilities `[state, agent, action]`, and its input at random joint actions."""
    create = jax.jit(lambda key: mixers.QTRANMixer.create(
        key, features=FEATURES, actions=ACTIONS, state=STATE, hidden_size=8,
        init="torch"))  # fmt: skip
    utilities = jnp.asarray(normal(0, STATES, AGENTS, ACTIONS))
    action = jnp.asarray(np.random.default_rng(3).integers(ACTIONS, size=(STATES, AGENTS)))
    state, hidden = jnp.asarray(normal(1, STATES, STATE)), normal(2, STATES, AGENTS, FEATURES)
    return create(jax.random.key(0)), utilities, action, state, jnp.asarray(hidden)


def inputs_at(action, utilities, state, hidden):
    """The mixer's input at a joint action."""
    chosen = taken(utilities, action)
    return MixerInput(chosen, utilities.max(-1), action, state, hidden)


def taken(utilities, action):
    return jnp.take_along_axis(utilities, action[..., None], -1)[..., 0]


@jax.jit
def compared(mixer, utilities, action, state, hidden):
    """Q(s, a), V(s), D(s, a), and D of every agent's unilateral deviations."""
    inputs = inputs_at(action, utilities, state, hidden)
    return (
        mixer(inputs)[:, 0],
        mixer.V(state)[:, 0],
        mixer.gap(inputs)[:, 0],
        mixer.unilateral_gaps(inputs, utilities),
    )


def test_qtrans_gap_is_the_sum_less_the_joint_value():
    _, utilities, action, *_ = qtran()
    Q, V, gap, _ = map(np.asarray, compared(*qtran()))
    assert len(np.unique(Q)) == STATES
    expected = np.asarray(taken(utilities, action)).sum(-1) + V - Q
    np.testing.assert_allclose(gap, expected, rtol=1e-4, atol=1e-5)


def test_qtrans_unilateral_gaps_are_the_gaps_of_the_deviations():
    mixer, utilities, action, state, hidden = qtran()
    *_, gaps = compared(*qtran())
    for agent, other in itertools.product(range(AGENTS), range(ACTIONS)):
        deviation = action.at[:, agent].set(other)
        _, _, expected, _ = compared(mixer, utilities, deviation, state, hidden)
        np.testing.assert_allclose(gaps[:, agent, other], expected, rtol=1e-4, atol=1e-5)


def test_qtrans_gaps_have_no_gradient_in_the_joint_value():
    mixer, utilities, *rest = qtran()

    @jax.jit
    @jax.jacrev
    def slopes(parameters):
        return [x.sum() for x in compared(*parameters, *rest)]

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
    """Both: D(s, ā) = 0. Base: D(s, a) ≥ 0. Alt: for every agent, the least D over its unilateral
    deviations to available actions is 0."""
    mixer, utilities, action, state, hidden = qtran()
    rng = np.random.default_rng(4)
    avail = (rng.random(utilities.shape) < 0.5) | (np.eye(ACTIONS, dtype=bool)[action])
    greedy = jnp.asarray(np.where(avail, utilities, MASKED_LOGIT).argmax(-1))

    @jax.jit
    def violations(mixer, action, greedy, avail):
        at_taken, at_greedy = (inputs_at(a, utilities, state, hidden) for a in (action, greedy))
        return mixer.violations(MixerStep(at_taken, at_greedy, utilities, avail))

    at_greedy, elsewhere = violations(replace(mixer, condition=condition), action, greedy, avail)
    _, _, expected, _ = compared(mixer, utilities, greedy, state, hidden)
    np.testing.assert_allclose(at_greedy[:, 0], expected, rtol=1e-4, atol=1e-5)
    _, _, gap, every = map(np.asarray, compared(*qtran()))
    if condition == "base":
        assert (gap > 0).any()
        assert (gap < 0).any()
        np.testing.assert_allclose(elsewhere[:, 0], np.minimum(gap, 0), rtol=1e-4, atol=1e-5)
    else:
        least = np.where(avail, every, np.inf).min(-1)
        assert (least != every.min(-1)).any()
        np.testing.assert_allclose(elsewhere, least, rtol=1e-4, atol=1e-5)


def test_qtrans_loss_terms_are_its_weighted_violations():
    mixer, utilities, action, state, hidden = qtran()
    mixer = replace(mixer, opt_coef=0.5, nopt_coef=3.0)
    at = inputs_at(action, utilities, state, hidden)
    step = MixerStep(at, at, utilities, jnp.ones(utilities.shape, bool))

    @jax.jit
    def values(mixer, step):
        terms = mixer.losses(step, jnp.square)
        return {name: term.values for name, term in terms.items()}, mixer.violations(step)

    found, (at_greedy, elsewhere) = values(mixer, step)
    coefs = {name: term.coef for name, term in mixer.losses(step, jnp.square).items()}
    assert coefs == {"opt_loss": 0.5, "nopt_loss": 3.0}
    np.testing.assert_allclose(found["opt_loss"], at_greedy**2, rtol=1e-5)
    np.testing.assert_allclose(found["nopt_loss"], elsewhere**2, rtol=1e-5)
