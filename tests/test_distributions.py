"""Policies: what may not be chosen never is, and all numbers are those of the textbook."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from perla.distributions import Categorical, Gaussian, Squashed, inverse_cdf

ALMOST_ONE = np.nextafter(np.float32(1), np.float32(0))


@st.composite
def masked_logits(draw, actions=6):
    """Logits of one distribution, and a mask that leaves at least one action."""
    logit = st.floats(-30, 30, width=32)
    logits = np.array(draw(st.lists(logit, min_size=actions, max_size=actions)), np.float32)
    available = draw(st.sets(st.integers(0, actions - 1), min_size=1))
    return logits, np.isin(np.arange(actions), list(available))


def reference(logits, avail):
    """The softmax over the available actions, in double precision."""
    probs = np.zeros(len(logits))
    probs[avail] = scipy.special.softmax(logits[avail].astype(float))
    return probs


@settings(max_examples=40, deadline=None)
@given(masked_logits())
def test_probabilities_are_the_softmax_over_what_is_available(case):
    logits, avail = case
    probs = np.asarray(Categorical.masked(jnp.asarray(logits), jnp.asarray(avail)).probs)
    np.testing.assert_allclose(probs, reference(logits, avail), atol=1e-6)
    assert (probs[~avail] == 0).all()


@settings(max_examples=40, deadline=None)
@given(masked_logits())
def test_entropy_log_prob_and_mode_are_those_of_the_softmax(case):
    logits, avail = case
    policy = Categorical.masked(jnp.asarray(logits), jnp.asarray(avail))
    expected = reference(logits, avail)
    np.testing.assert_allclose(policy.entropy(), scipy.stats.entropy(expected), atol=1e-4)
    for action in np.flatnonzero(avail):
        log_prob = policy.log_prob(jnp.int32(action))
        np.testing.assert_allclose(
            log_prob, logits[action] - scipy.special.logsumexp(logits[avail]), atol=1e-4
        )
    assert expected[int(policy.mode())] == pytest.approx(expected.max(), abs=1e-6)
    assert avail[int(policy.mode())]


def test_an_unavailable_action_costs_no_entropy_and_no_gradient():
    avail = jnp.array([True, False, True])

    def entropy(logits):
        return Categorical.masked(logits, avail).entropy()

    gradient = jax.grad(entropy)(jnp.array([0.3, 50.0, -0.2]))
    assert np.isfinite(gradient).all()
    assert gradient[1] == 0
    assert gradient[0] != 0


MASKS = {
    "all": [1, 1, 1, 1, 1, 1, 1, 1],
    "leading masked": [0, 0, 0, 1, 1, 1, 1, 1],
    "trailing masked": [1, 1, 1, 1, 1, 0, 0, 0],
    "the last masked": [1, 1, 1, 1, 1, 1, 1, 0],
    "holes": [0, 1, 0, 0, 1, 0, 1, 0],
    "only the first": [1, 0, 0, 0, 0, 0, 0, 0],
    "only the last": [0, 0, 0, 0, 0, 0, 0, 1],
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_a_masked_action_is_never_drawn(mask):
    avail = jnp.array(mask, bool)
    logits = jax.random.normal(jax.random.key(0), (20_000, 8)) * 5
    policy = Categorical.masked(logits, jnp.broadcast_to(avail, logits.shape))
    drawn = np.asarray(policy.sample(jax.random.key(1)))
    assert set(drawn) <= set(np.flatnonzero(mask))


@pytest.mark.parametrize("u", [0.0, 1e-45, 1e-7, 1 - 2**-23, ALMOST_ONE])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_a_masked_action_is_not_at_the_ends_of_the_quantiles(mask, u):
    logits = jax.random.normal(jax.random.key(2), (5_000, 8))
    avail = jnp.broadcast_to(jnp.array(mask, bool), logits.shape)
    drawn = inverse_cdf(Categorical.masked(logits, avail).probs, jnp.full(len(logits), u))
    assert set(np.asarray(drawn)) <= set(np.flatnonzero(mask))


@pytest.mark.parametrize("actions", [8, 31])
def test_a_masked_action_is_not_at_any_quantile_between_its_neighbours(actions):
    key_logits, key_mask = jax.random.split(jax.random.key(actions))
    logits = jax.random.normal(key_logits, (1_000, actions))
    avail = jax.random.bernoulli(key_mask, 0.5, logits.shape).at[:, actions // 2].set(True)
    probs = Categorical.masked(logits, avail).probs
    edges = probs.cumsum(-1)
    u = jnp.concatenate([edges, jnp.nextafter(edges, jnp.zeros_like(edges))], -1)
    each = jnp.broadcast_to(probs[:, None], (*u.shape, actions))
    drawn = inverse_cdf(each, jnp.minimum(u, ALMOST_ONE))
    assert jnp.take_along_axis(avail, drawn, -1).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=6), st.floats(0, 1, exclude_max=True))
def test_quantiles_are_those_of_the_cumulative_distribution(weights, u):
    probs = np.array(weights, float) / sum(weights)
    if np.abs(probs.cumsum() - u).min() < 1e-5:  # too near an edge to call in single precision
        return
    action = inverse_cdf(jnp.asarray(probs, jnp.float32), jnp.float32(u))
    assert int(action) == np.searchsorted(probs.cumsum(), u, side="right")


def test_draws_are_as_frequent_as_they_are_probable():
    logits = jnp.array([0.0, -1.0, 1.5, 0.3, 2.0])
    policy = Categorical.masked(logits, jnp.array([True, True, False, True, True]))
    draws = 50_000
    keys = jax.random.split(jax.random.key(3), draws)
    counts = np.bincount(jax.vmap(policy.sample)(keys), minlength=5)
    assert counts[2] == 0
    expected = reference(np.asarray(logits), np.array([1, 1, 0, 1, 1], bool)) * draws
    possible = expected > 0
    assert scipy.stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-3


def test_draws_of_a_batch_are_independent():
    policy = Categorical.masked(jnp.zeros((20_000, 2, 3)), jnp.ones((20_000, 2, 3), bool))
    drawn = np.asarray(policy.sample(jax.random.key(4)))
    table = np.zeros((3, 3))
    np.add.at(table, (drawn[:, 0], drawn[:, 1]), 1)
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_a_relaxed_draw_is_a_draw_that_passes_the_gradient_of_a_softmax():
    logits, avail = jnp.array([0.0, -1.0, 1.5, 0.3]), jnp.array([True, True, False, True])
    key, temperature = jax.random.key(5), 0.7

    def relaxed(logits, key):
        return Categorical.masked(logits, avail).relaxed(key, temperature)

    draws = jax.vmap(relaxed, (None, 0))(logits, jax.random.split(key, 20_000))
    assert set(np.unique(draws)) == {0.0, 1.0}
    np.testing.assert_array_equal(draws.sum(-1), 1.0)
    np.testing.assert_allclose(
        draws.mean(0), Categorical.masked(logits, avail).probs, atol=0.015, rtol=0
    )

    noisy = np.where(avail, logits + jax.random.gumbel(key, (4,)), -np.inf) / temperature
    soft = np.exp(noisy - noisy.max())
    soft /= soft.sum()
    # ∂yⱼ/∂zₖ = yⱼ (δⱼₖ − yₖ) / T
    expected = (np.diag(soft) - np.outer(soft, soft)) / temperature
    np.testing.assert_allclose(jax.jacobian(relaxed)(logits, key), expected, atol=1e-6)
    assert relaxed(logits, key).argmax() == soft.argmax()


# --- Gaussian -----------------------------------------------------------------------------------

GAUSSIAN = Gaussian(jnp.array([[0.5, -2.0], [3.0, 0.0]]), jnp.array([[0.1, 1.0], [2.0, 0.5]]))
BY_SCIPY = scipy.stats.norm(np.asarray(GAUSSIAN.mean, float), np.asarray(GAUSSIAN.deviation, float))


def test_gaussian_against_scipy():
    action = jnp.array([[0.4, -1.0], [5.0, 0.7]])
    log_probs = BY_SCIPY.logpdf(np.asarray(action, float)).sum(-1)
    np.testing.assert_allclose(GAUSSIAN.log_prob(action), log_probs, rtol=1e-5)
    np.testing.assert_allclose(GAUSSIAN.entropy(), BY_SCIPY.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(GAUSSIAN.mode(), GAUSSIAN.mean)


@pytest.mark.parametrize("u", [1e-6, 0.1, 0.5, 0.99])
def test_gaussian_quantiles(u):
    found = GAUSSIAN.quantile(jnp.full(GAUSSIAN.shape, u))
    np.testing.assert_allclose(found, BY_SCIPY.ppf(u), rtol=1e-4, atol=1e-5)


def test_gaussian_quantiles_are_finite_at_the_ends():
    for u in (0.0, np.nextafter(np.float32(1), np.float32(0)), 1.0):
        assert jnp.isfinite(GAUSSIAN.quantile(jnp.full(GAUSSIAN.shape, u, jnp.float32))).all()


def test_gaussian_draws_are_differentiable_in_the_parameters():
    draws = jax.vmap(GAUSSIAN.sample)(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(draws.mean(0), GAUSSIAN.mean, atol=0.05)
    np.testing.assert_allclose(draws.std(0), GAUSSIAN.deviation, rtol=0.03)
    slope = jax.grad(
        lambda mean: Gaussian(mean, GAUSSIAN.deviation).sample(jax.random.key(0)).sum()
    )
    np.testing.assert_allclose(slope(GAUSSIAN.mean), 1.0)


def test_a_dimension_that_there_is_not_counts_for_nothing():
    avail = jnp.array([[True, False], [False, True]])
    policy = Gaussian.masked(GAUSSIAN.mean, GAUSSIAN.deviation, avail)
    other = Gaussian.masked(GAUSSIAN.mean + 1, 2 * GAUSSIAN.deviation, avail)
    action, present = jnp.array([[0.4, 9.0], [9.0, 0.7]]), np.asarray(avail)
    log_probs = np.where(present, BY_SCIPY.logpdf(np.asarray(action, float)), 0).sum(-1)
    np.testing.assert_allclose(policy.log_prob(action), log_probs, rtol=1e-5)
    entropy = np.where(present, BY_SCIPY.entropy(), 0).sum(-1)
    np.testing.assert_allclose(policy.entropy(), entropy, rtol=1e-5)
    # KL = log 2 + (σ² + 1) / 8σ² − ½ in the one dimension that there is.
    variance = np.array([0.1, 0.5]) ** 2
    divergence = np.log(2) + (variance + 1) / (8 * variance) - 0.5
    np.testing.assert_allclose(policy.divergence(other), divergence, rtol=1e-5)
    for drawn in (policy.sample(jax.random.key(0)), policy.quantile(jnp.full((2, 2), 0.9))):
        assert (drawn[~present] == 0).all()
        assert (drawn[present] != 0).all()

    def sums(mean, deviation):
        policy = Gaussian.masked(mean, deviation, avail)
        return (policy.log_prob(action) + policy.entropy() + policy.divergence(other)).sum()

    for slope in jax.grad(sums, (0, 1))(GAUSSIAN.mean, GAUSSIAN.deviation):
        assert jnp.isfinite(slope).all()
        assert (slope[~present] == 0).all()


def test_a_score_is_the_gradient_of_the_log_probability():
    action = jnp.array([[0.4, -1.0], [5.0, 0.7]])

    def log_prob(mean, log_deviation):
        return Gaussian(mean, jnp.exp(log_deviation)).log_prob(action).sum()

    slopes = jax.grad(log_prob, (0, 1))(GAUSSIAN.mean, jnp.log(GAUSSIAN.deviation))
    np.testing.assert_allclose(
        GAUSSIAN.score(action), np.concatenate(slopes, -1), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("mean", "deviation"), [(0.3, 0.5), (-1.0, 0.1), (0.0, 1.5)])
def test_squashed_against_integration(mean, deviation):
    """Of a = tanh u by the rule of change of variables, integrated over u."""
    policy = Squashed(Gaussian(jnp.array([mean, 0.0]), jnp.array([deviation, 0.0])))
    u = np.linspace(mean - 10 * deviation, mean + 10 * deviation, 20_001)
    weights = scipy.stats.norm(mean, deviation).pdf(u) * (u[1] - u[0])
    log_density = scipy.stats.norm(mean, deviation).logpdf(u) + 2 * np.log(np.cosh(u))
    np.testing.assert_allclose(policy.entropy(), -(weights * log_density).sum(), atol=2e-3)
    moments = [(weights * np.tanh(u)).sum(), 0, (weights * np.tanh(u) ** 2).sum(), 0]
    np.testing.assert_allclose(policy.moments, moments, atol=5e-4)
    near = mean + np.array([-1.0, 0.0, 1.0]) * deviation
    for at in near:
        action = jnp.array([np.tanh(at), 0.0])
        expected = scipy.stats.norm(mean, deviation).logpdf(at) + 2 * np.log(np.cosh(at))
        np.testing.assert_allclose(policy.log_prob(action), expected, rtol=1e-3)
    np.testing.assert_allclose(policy.mode(), [np.tanh(mean), 0], rtol=1e-6)
    drawn = jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 2_000))
    np.testing.assert_allclose(drawn.mean(0), moments[:2], atol=0.05)
    assert (jnp.abs(drawn) < 1).all()
