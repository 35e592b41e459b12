"""The expectation over a₋ᵢ: enumeration against brute force, sampling against enumeration."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from perla.algos.actor_critic import create_critic
from perla.algos.values import create_value
from perla.distributions import Categorical, Gaussian
from perla.envs.protocol import Observation, Spec
from perla.errors import UserError
from perla.flops import work
from perla.marginal.estimators import (
    ENTRY,
    ClosedForm,
    Enumeration,
    IndependentSamples,
    LatinSamples,
    MomentMatching,
    create_estimator,
    create_fixed_estimator,
)
from perla.marginal.joint_actions import Draws, average, latin_hypercube, zero_sum
from perla.methods.aggregators import Max
from perla.methods.estimators import Analytic, Auto, Exact, Sampled
from perla.methods.estimators import Gaussian as GaussianForm
from perla.methods.parts import one_each
from perla.methods.recipes import make
from perla.methods.values import Embedded, Multilinear, Network
from perla.nets.body import Body
from perla.nets.critics import Critic, leave_one_out
from perla.nets.critics import Multilinear as MultilinearCritic
from perla.nets.moments import SMALLEST, rectified

STATES, AGENTS, ACTIONS, SEEN = 4, 3, 3, 5
KEY = jax.random.key(0)
LATIN = partial(Sampled, sampler="latin")
SPEC = Spec("random", AGENTS, SEEN, 7, (ACTIONS,) * AGENTS, 10, "common")

CRITICS = {
    "-".join(settings): settings
    for settings in [
        ("mlp", "local", "shared", "state-value", "last"),
        ("mlp", "local", "shared", "state-value", "first"),
        ("mlp", "global", "separate", "action-value", "last"),
        ("mlp", "global", "separate", "action-value", "first"),
        ("gru", "global", "shared", "action-value", "last"),
        ("gru", "local", "separate", "state-value", "first"),
        ("mlp", "local", "shared", "action-value", "multilinear"),
        ("gru", "global", "separate", "state-value", "multilinear"),
    ]
}
PLAIN, *_ = CRITICS.values()


def draw(settings, policy, key, rows=None) -> Draws:
    """The weighted joint actions of the estimator with these settings."""
    estimator = create_fixed_estimator(settings, policy.batch[-1], policy.choices)
    return estimator.draw(policy, key, rows)


def expectation(settings, f, policy, key, **memory):
    """The average of f by the estimator with these settings."""
    estimator = create_fixed_estimator(settings, policy.batch[-1], policy.choices)
    return estimator.expectation(f, policy, key, **memory)


def estimate(settings, critic, context, policy, key, *schedule):
    """The estimate of the value with these settings."""
    return create_value(settings, SPEC).estimate(critic, context, policy, key, *schedule)


def critic_model(name):
    return Multilinear(rank=6) if name == "multilinear" else Network(action_fusion=name)


def masked_policy(key, *batch):
    key_logits, key_mask = jax.random.split(key)
    logits = 2 * jax.random.normal(key_logits, (*batch, AGENTS, ACTIONS))
    avail = jax.random.bernoulli(key_mask, 0.6, logits.shape).at[..., 1].set(True)
    return Categorical.masked(logits, avail)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def random_critic(core, base, sharing, form, joins):
    """A critic, and its context at a few random states."""
    value = Embedded(critic_input=base, critic_form=form, critic_model=critic_model(joins))
    config = make(
        "ippo", hidden_size=8, critic_network=core, parameter_sharing=sharing, value=value
    )
    key_net, key_obs, key_state, key_memory = jax.random.split(jax.random.key(0), 4)
    critic = create_critic(config, SPEC, key_net)
    observation = Observation(
        jax.random.normal(key_obs, (1, STATES, AGENTS, SEEN)),
        jax.random.normal(key_state, (1, STATES, SPEC.state)),
        jnp.ones((1, STATES, AGENTS, ACTIONS), bool),
    )
    memory = jax.random.normal(key_memory, critic.body.initial_state((STATES,)).shape)
    context, _ = critic.context(observation, memory, jnp.zeros((1, STATES), bool))
    return critic, context[0]


@pytest.fixture(scope="module", params=CRITICS.values(), ids=CRITICS.keys())
def critic(request):
    return random_critic(*request.param)


@pytest.fixture(scope="module")
def policy():
    return masked_policy(jax.random.key(7), STATES)


def enumerate_others(critic, context, policy):
    """Σ π₋ᵢ(a₋ᵢ) Qᵢ(s, ·, a₋ᵢ), one joint action of the others and one agent at a time."""
    probs = np.asarray(policy.probs, np.float64)
    table = np.array(list(itertools.product(range(ACTIONS), repeat=AGENTS)))
    each = [critic.joint(context, jnp.asarray(joint, jnp.int32)) for joint in table]
    q = np.stack([np.asarray(one, np.float64) for one in each], 1)
    total = np.zeros((STATES, AGENTS, q.shape[-1]))
    for s, i, (j, joint) in itertools.product(range(STATES), range(AGENTS), enumerate(table)):
        if joint[i] == 0:  # the agent's own entry plays no role: count one value of it
            others = [m for m in range(AGENTS) if m != i]
            total[s, i] += np.prod([probs[s, m, joint[m]] for m in others]) * q[s, j, i]
    return total


# --- Enumeration --------------------------------------------------------------------------------


@pytest.mark.parametrize("agents", [2, 3, 4])
@pytest.mark.parametrize("actions", [2, 3, 4])
def test_one_table_enumerates_the_others_for_every_agent(agents, actions):
    table = zero_sum(agents, actions)
    everything = sorted(itertools.product(range(actions), repeat=agents - 1))
    for agent in range(agents):
        others = np.delete(table, agent, axis=1)
        assert sorted(map(tuple, others.tolist())) == everything


def test_a_lone_agent_has_one_empty_joint_action_of_others():
    policy = Categorical.masked(jnp.zeros((2, 1, 5)), jnp.ones((2, 1, 5), bool))
    draws = draw(Exact(), policy, jax.random.key(0))
    assert draws.actions.shape == (1, 1)
    np.testing.assert_array_equal(draws.weights, 1.0)


def test_exact_is_the_sum_over_all_joint_actions_of_the_others(critic, policy):
    net, context = critic
    draws = draw(Exact(), policy, KEY)
    mean = average(partial(net.joint, context), draws)
    np.testing.assert_allclose(mean, enumerate_others(net, context, policy), atol=1e-5)


def test_an_estimate_is_the_average_and_what_it_says_of_the_state(critic, policy):
    net, context = critic
    value = Embedded(critic_form="action-value", estimator=Exact())
    estimated = jax.jit(partial(estimate, value))(net, context, policy, jax.random.key(0))
    expected = enumerate_others(net, context, policy)
    np.testing.assert_allclose(estimated.action_values, expected, atol=1e-5)
    worth = (np.asarray(policy.probs) * expected).sum(-1)
    np.testing.assert_allclose(estimated.value, worth, atol=1e-5)


def spread(net, context, policy):
    """The deviation of the critic over the others' joint actions."""
    draws = draw(Exact(), policy, KEY)
    q = np.stack([np.asarray(net.joint(context, joint)) for joint in draws.actions])
    weights = np.asarray(draws.weights)[..., None]
    return np.sqrt((weights * (q - (weights * q).sum(0)) ** 2).sum(0))


@pytest.mark.parametrize("estimator", [Exact(), Sampled(num_samples=7), LATIN(num_samples=7)])
def test_weights_sum_to_one_and_masked_actions_weigh_nothing(estimator, policy):
    draws = draw(estimator, policy, jax.random.key(1))
    np.testing.assert_allclose(draws.weights.sum(0), 1.0, rtol=1e-5)
    actions = draws.actions if draws.actions.ndim == 3 else draws.actions[:, None]
    actions = jnp.broadcast_to(actions, draws.weights.shape)
    chosen = jax.nn.one_hot(actions, ACTIONS)
    possible = jnp.einsum("jsma,sma->jsm", chosen, (policy.probs > 0).astype(float)) > 0
    for agent in range(AGENTS):
        impossible = ~jnp.delete(possible, agent, axis=-1).all(-1)
        assert (jnp.where(impossible, draws.weights[..., agent], 0.0) == 0).all()


# --- In closed form -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CRITICS if "multilinear" in name])
def test_a_multilinear_critics_average_is_its_value_at_the_probabilities(name, policy):
    net, context = random_critic(*CRITICS[name])
    expected = enumerate_others(net, context, policy)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(net.expected(context, policy.probs), expected, atol=1e-5)
    value = Embedded(critic_form=CRITICS[name][3], critic_model=Multilinear(rank=6))
    estimated = estimate(value, net, context, policy, KEY)
    np.testing.assert_allclose(estimated.action_values, expected, atol=1e-5)


@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_gaussian_policies_have_a_closed_form_too(sharing):
    """Of a critic quadratic in each of the others' actions and multilinear over them."""
    key_net, key_effects, key_policy, key_draws = jax.random.split(KEY, 4)
    body = Body.create(
        key_net, agents=AGENTS, features=SEEN, outputs=7, core="mlp", hidden_size=8, num_layers=2,
        gain=1.0, init="orthogonal", norm=False, ids=True,
        parameter_groups=one_each(AGENTS) if sharing == "separate" else None,
    )  # fmt: skip
    dimensions = 2
    critic = MultilinearCritic.create(
        key_effects, Critic(body, "local", 0), inputs=2 * dimensions, rank=6
    )
    observation = Observation(jax.random.normal(KEY, (1, STATES, AGENTS, SEEN)), KEY, KEY)
    initial_state = body.initial_state((STATES,))
    context, _ = critic.context(observation, initial_state, jnp.zeros((1, STATES), bool))
    mean, log_deviation = jax.random.normal(key_policy, (2, STATES, AGENTS, dimensions))
    policy = Gaussian(mean, jnp.exp(log_deviation - 1))
    closed = critic.expected(context[0], policy.moments)

    @jax.jit
    def sampled(key):
        f = partial(critic.joint, context[0])
        return expectation(Sampled(num_samples=1_000), f, policy, key)

    found = np.asarray(jax.lax.map(sampled, jax.random.split(key_draws, 100)))
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (error > 0).all()
    assert (np.abs(found.mean(0) - closed) < 4.5 * error).all()


def test_products_leave_one_out_without_dividing():
    factors = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    factors[2, 0, 1] = factors[3, 0, 1] = 0.0
    expected = np.stack([np.delete(factors, i, 0).prod(0) for i in range(5)])
    np.testing.assert_allclose(leave_one_out(jnp.asarray(factors)), expected, rtol=1e-5)
    np.testing.assert_array_equal(leave_one_out(jnp.ones((1, 3))), 1.0)
    gradient = jax.grad(lambda x: leave_one_out(x).sum())(jnp.asarray(factors))
    assert jnp.isfinite(gradient).all()


def test_a_closed_form_must_be_there():
    assert create_estimator(Auto(), 20, 6, form="multilinear") == ClosedForm()
    three = Sampled(num_samples=3)
    assert create_estimator(three, 2, 2, form="multilinear") == IndependentSamples(3)
    with pytest.raises(UserError, match=r"no closed form; use critic_model 'multilinear'"):
        create_estimator(Analytic(), 2, 2)


# --- Moment matching ----------------------------------------------------------------------------


def test_the_average_of_a_rectified_gaussian():
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=200), rng.uniform(0.01, 4, size=200)
    # 20,000 equally likely points of each Gaussian.
    points = np.asarray(jax.scipy.special.ndtri((np.arange(20_000) + 0.5) / 20_000))
    x = mean[:, None] + np.sqrt(variance)[:, None] * points
    average, vjp = jax.vjp(rectified, jnp.float32(mean), jnp.float32(variance))
    by_mean, by_variance = vjp(jnp.ones(200))
    np.testing.assert_allclose(average, np.maximum(x, 0).mean(1), atol=1e-4)
    np.testing.assert_allclose(by_mean, (x > 0).mean(1), atol=1e-4)
    # d/dσ² E f(μ + σ ε) = E f'(x) ε / 2σ
    expected = ((x > 0) * points).mean(1) / (2 * np.sqrt(variance))
    np.testing.assert_allclose(by_variance, expected, atol=2e-3)
    certain = rectified(jnp.array([-2.0, 0.0, 3.0]), jnp.full(3, SMALLEST))
    np.testing.assert_allclose(certain, [0, 0, 3], atol=1e-5)


MATCHED = ["mlp-local-shared-state-value-last", "mlp-global-separate-action-value-last"]


@pytest.mark.parametrize("name", MATCHED)
def test_moment_matching_has_the_mean_and_variance_of_the_others_embeddings(name):
    """Held against the enumeration of all joint actions."""
    net, context = random_critic(*CRITICS[name])
    policy = masked_policy(jax.random.key(4), STATES)
    draws = draw(Exact(), policy, KEY)
    # Far above zero the ReLU is the identity, and its average is the pre-activations' mean.
    above = net.expected(context + 100.0, policy.probs)
    each = jax.vmap(partial(net.last_hidden, context + 100.0))(draws.actions)
    weights = draws.weights[..., None]
    mean = (weights * each).sum(0)
    np.testing.assert_allclose(above, mean, rtol=1e-5)
    variance = (weights * (each - mean[None]) ** 2).sum(0)
    x = mean - 100.0
    expected = rectified(x, jnp.maximum(variance, SMALLEST))
    np.testing.assert_allclose(net.expected(context, policy.probs), expected, atol=1e-3)


def test_moment_matching_is_closer_than_100_independent_samples():
    agents, actions = 6, 4
    key_net, key_context, key_policy = jax.random.split(KEY, 3)
    body = Body.create(
        key_net, agents=agents, features=SEEN, extra_inputs=agents * actions, outputs=1, core="mlp",
        hidden_size=32, num_layers=2, gain=1.0, init="orthogonal", norm=False, ids=True,
        parameter_groups=None,
    )  # fmt: skip
    net = Critic(body, "local", actions)
    context = jax.random.normal(key_context, (STATES, agents, 32))
    policy = Categorical(
        jax.nn.log_softmax(jax.random.normal(key_policy, (STATES, agents, actions)))
    )
    f = partial(net.last_hidden, context)
    exact = net.output_head(expectation(Exact(), f, policy, KEY))

    def squared_error(average):
        return ((net.output_head(average) - exact) ** 2).mean()

    def sampled(key):
        return squared_error(expectation(Sampled(), f, policy, key))

    independent = jax.lax.map(sampled, jax.random.split(KEY, 50)).mean()
    assert squared_error(net.expected(context, policy.probs)) < 0.2 * independent


@pytest.mark.parametrize("name", MATCHED)
def test_moment_matching_has_the_gradient_of_its_value(name):
    net, context = random_critic(*CRITICS[name])
    policy = masked_policy(jax.random.key(4), STATES)

    def value(context, scale):
        rows = jax.tree.map(lambda x: scale * x, net)
        return jnp.sin(rows.expected(jnp.asarray(context), policy.probs)).sum()

    # Shorter steps drown in the rounding of 32-bit numbers.
    check_grads(value, (context, 1.3), order=1, modes=["rev"], rtol=0.005, eps=1e-2)


def test_no_average_depends_on_the_own_policy():
    net, context = random_critic(*PLAIN)
    probs = masked_policy(jax.random.key(4), STATES).probs
    before = net.expected(context, probs)
    for agent in range(AGENTS):
        after = net.expected(context, probs.at[:, agent].set(1 / ACTIONS))
        np.testing.assert_allclose(after[:, agent], before[:, agent], atol=1e-5)
        assert not np.allclose(np.delete(after, agent, 1), np.delete(before, agent, 1), atol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"critic_model": Network(action_fusion="first")},
        {"critic_model": Multilinear()},
        {"aggregator": Max(), "regress": "joint"},
    ],
)
def test_moment_matching_is_refused_where_it_has_no_meaning(wrong):
    with pytest.raises(UserError, match=r"estimator 'gaussian': averages a critic_model 'network'"):
        create_value(Embedded(estimator=GaussianForm(), **wrong), SPEC)
    with pytest.raises(UserError, match=r"and no layer_norm"):
        create_value(Embedded(estimator=GaussianForm()), SPEC, layer_norm=True)


# --- What a critic sees -------------------------------------------------------------------------


def test_no_agent_sees_its_own_action(critic):
    net, context = critic
    actions = jax.random.randint(jax.random.key(2), (STATES, AGENTS), 0, ACTIONS)
    before = net.joint(context, actions)
    for agent in range(AGENTS):
        changed = actions.at[..., agent].set((actions[..., agent] + 1) % ACTIONS)
        after = net.joint(context, changed)
        np.testing.assert_allclose(after[..., agent, :], before[..., agent, :], atol=1e-5)
        others = jnp.delete(after - before, agent, axis=-2)
        assert (jnp.abs(others).max(axis=(0, 2)) > 1e-3).all(), "the others must see it"


# --- Sampling -----------------------------------------------------------------------------------


def repeated(estimator, net, context, policy, repeats):
    """`repeats` independent estimates of Q̂."""

    @jax.jit
    def one(key):
        return average(partial(net.joint, context), draw(estimator, policy, key))

    return np.asarray(jax.lax.map(one, jax.random.split(jax.random.key(0), repeats)))


def test_sampling_is_unbiased_and_its_error_falls_as_one_over_root_k(policy):
    net, context = random_critic(*PLAIN)
    deviation = spread(net, context, policy)
    exact = enumerate_others(net, context, policy)
    ks, errors = [1, 4, 16, 64, 256], []
    for k in ks:
        estimates = repeated(Sampled(num_samples=k), net, context, policy, repeats=400)
        bias = np.abs(estimates.mean(0) - exact)
        assert (bias <= 4.5 * deviation / np.sqrt(k * 400) + 1e-5).all()
        errors.append(np.sqrt(((estimates - exact) ** 2).mean()))
    slope = np.polyfit(np.log(ks), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize("strata", [1, 2, 5, 6, 23])
def test_strata_are_unbiased_and_no_worse_than_as_many_independent_draws(strata, policy):
    net, context = random_critic(*PLAIN)
    exact = enumerate_others(net, context, policy)
    deviation = spread(net, context, policy)
    estimates = repeated(LATIN(num_samples=strata), net, context, policy, repeats=1_000)
    bias = np.abs(estimates.mean(0) - exact)
    assert (bias <= 4.5 * deviation / np.sqrt(strata * 1_000) + 1e-5).all()
    independent = (deviation**2).mean() / strata
    variance = ((estimates - exact) ** 2).mean()
    # Owen (1997): never more than K / (K − 1) of it; the closer to a sum of one-agent terms, the
    # less.
    assert variance <= 1.1 * independent * strata / max(strata - 1, 1)
    if strata == 23:
        assert variance < 0.2 * independent


@pytest.mark.parametrize("strata", [5, 23, 24])
def test_every_action_comes_in_its_share_of_the_strata_to_within_one(strata, policy):
    draws = draw(LATIN(num_samples=strata), policy, KEY)
    counts = jax.nn.one_hot(draws.actions, ACTIONS).sum(0)
    assert (np.abs(counts - strata * policy.probs) < 1 + 1e-4).all()


def test_which_strata_meet_is_random():
    """Of one agent, any two draws are in any two different strata; those of two agents are
    independent."""
    k, states = 5, 20_000
    points = jax.jit(latin_hypercube, static_argnums=1)(KEY, (k, states, 2)).swapaxes(0, 1)
    assert 0 <= points.min() <= points.max() < 1
    strata = np.floor(np.asarray(points) * k).astype(int)
    np.testing.assert_array_equal(
        np.sort(strata, 1), np.broadcast_to(np.arange(k)[:, None], strata.shape)
    )
    for j in range(1, k):
        pairs = np.zeros((k, k))
        np.add.at(pairs, (strata[:, 0, 0], strata[:, j, 0]), 1 / states)
        np.testing.assert_allclose(pairs, (1 - np.eye(k)) / (k * (k - 1)), atol=0.008)
    first, second = np.zeros((k, k)), np.zeros((k * k, k * k))
    np.add.at(first, (strata[:, 0, 0], strata[:, 0, 1]), 1 / states)
    np.testing.assert_allclose(first, 1 / k**2, atol=0.008)
    both = strata[:, 0] * k + strata[:, 1]  # where an agent's first two draws are
    np.add.at(second, (both[:, 0], both[:, 1]), 1 / states)
    np.testing.assert_allclose(second, np.outer(second.sum(1), second.sum(0)), atol=0.002)


@pytest.mark.parametrize("k", [97, 100])
def test_what_is_a_sum_over_the_others_is_all_but_exact(k, policy):
    """At most a draw of each agent's K is not where its probability says."""
    worth = jax.random.normal(KEY, (AGENTS, ACTIONS))

    def summed(actions):
        each = worth[jnp.arange(AGENTS), actions]
        return (each.sum(-1, keepdims=True) - each)[..., None]

    def variance(estimator):
        def one(key):
            return average(summed, draw(estimator, policy, key))

        return jax.lax.map(one, jax.random.split(KEY, 2_000)).var(0).mean()

    assert variance(LATIN(num_samples=k)) < variance(Sampled(num_samples=k)) / 20


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_variance_of_the_sampled_critic_is_that_of_theorem_1(k):
    """Var(Q̂) = Var(Q)/K + (K − 1)/K · Var(Q̃), over states, own actions and draws."""
    states, repeats = 8, 4_000
    key_policy, key_game, key_draws, key_own = jax.random.split(jax.random.key(11), 4)
    policy = masked_policy(key_policy, states)
    game = jax.random.normal(key_game, (states, ACTIONS, ACTIONS, ACTIONS))  # Q of the first agent
    pi = np.asarray(policy.probs, np.float64)
    table = np.asarray(game, np.float64)

    joint = np.einsum("sa,sb,sc->sabc", pi[:, 0], pi[:, 1], pi[:, 2]) / states
    marginal = np.einsum("sabc,sb,sc->sa", table, pi[:, 1], pi[:, 2])
    own = pi[:, 0] / states
    mean = (joint * table).sum()
    var_q = (joint * table**2).sum() - mean**2
    var_marginal = (own * marginal**2).sum() - mean**2
    assert (own * marginal).sum() == pytest.approx(mean)

    @jax.jit
    @jax.vmap
    def estimates(key_draws, key_own):
        draws = draw(Sampled(num_samples=k), policy, key_draws)
        own_action = policy.sample(key_own)[:, 0]

        def values(actions):
            q = game[jnp.arange(states), own_action, actions[:, 1], actions[:, 2]]
            return jnp.broadcast_to(q[:, None, None], (states, AGENTS, 1))

        return average(values, draws)[:, 0, 0]

    q_hat = estimates(jax.random.split(key_draws, repeats), jax.random.split(key_own, repeats))
    predicted = var_q / k + (k - 1) / k * var_marginal
    assert np.var(np.asarray(q_hat, np.float64)) == pytest.approx(predicted, rel=0.05)


def test_draws_follow_the_policies(policy):
    draws = draw(Sampled(num_samples=20_000), policy, jax.random.key(5))
    frequencies = jax.nn.one_hot(draws.actions, ACTIONS).mean(0)
    np.testing.assert_allclose(frequencies, policy.probs, atol=0.02)
    assert (frequencies[policy.probs == 0] == 0).all()


# --- Part by part -------------------------------------------------------------------------------


def memory_of(count, policy):
    """MiB that `count` joint actions take."""
    return count * ENTRY * np.prod(policy.shape) / 2**20


@pytest.mark.parametrize("estimator", [Exact(), LATIN(num_samples=11), LATIN(num_samples=12)])
@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_parts_add_up_to_the_whole(estimator, at_once, policy):
    net, context = random_critic(*PLAIN)
    whole = average(partial(net.joint, context), draw(estimator, policy, KEY))
    parts = expectation(
        estimator, partial(net.joint, context), policy, KEY, memory=memory_of(at_once, policy)
    )
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_independent_draws_come_in_parts_that_are_as_good(policy):
    net, context = random_critic(*PLAIN)
    memory = memory_of(4, policy)

    @jax.jit
    def one(key):
        f = partial(net.joint, context)
        return expectation(Sampled(num_samples=10), f, policy, key, memory=memory)

    found = np.asarray(jax.lax.map(one, jax.random.split(KEY, 2_000)))
    deviation = spread(net, context, policy)
    exact = enumerate_others(net, context, policy)
    assert (np.abs(found.mean(0) - exact) <= 4.5 * deviation / np.sqrt(20_000) + 1e-5).all()
    np.testing.assert_allclose(
        found.var(0).mean(), (deviation**2).mean() / 10, rtol=0.1
    )  # as of ten that have nothing to do with each other


@pytest.mark.parametrize("estimator", [Sampled(num_samples=12), LATIN(num_samples=11)])
def test_the_gradient_may_flow_through_fewer_draws_than_the_value_has(estimator, policy):
    """The value is that of all draws; the gradient is unbiased, and costs only its own draws."""
    net, context = random_critic(*PLAIN)
    fewer = estimator.replace(gradient_samples=3)

    def loss(context, estimator, key):
        return expectation(estimator, partial(net.joint, context), policy, key).sum()

    draws = [draw(estimator, policy, KEY, rows) for rows in (jnp.arange(3), jnp.arange(3, 12))]
    value = sum(average(partial(net.joint, context), part).sum() for part in draws)
    assert loss(context, fewer, KEY) == pytest.approx(float(value), rel=1e-5)

    @partial(jax.jit, static_argnums=0)
    def gradients(estimator):
        keys = jax.random.split(KEY, 3_000)
        found = jax.lax.map(lambda key: jax.grad(loss)(context, estimator, key), keys)
        return found.mean(0), found.std(0, ddof=1) / len(keys) ** 0.5

    (mean, _), (fewer_mean, error) = gradients(Exact()), gradients(fewer)
    assert (jnp.abs(fewer_mean - mean) <= 4.5 * error + 1e-5).all()
    assert (error > 0).any()

    def flops(estimator):
        return work(jax.grad(lambda x: loss(x, estimator, KEY)), context).flops

    assert estimator.num_samples == 11 or flops(fewer) < flops(estimator)


def test_gradients_cannot_flow_through_more_draws_than_there_are():
    with pytest.raises(UserError, match="gradient_samples = 6: at most num_samples = 5"):
        Sampled(num_samples=5, gradient_samples=6)


# --- What it costs ------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_where_actions_join_last_a_joint_action_costs_no_layer(sharing, policy):
    """All but the look-up of an action's row is one product with the head, however many joint
    actions there are; where they join first, every joint action costs a layer."""
    width, states = 64, STATES * AGENTS

    def cost(joins, k):
        value = Embedded(
            critic_model=Network(action_fusion=joins), estimator=Sampled(num_samples=k)
        )
        config = make("ippo", hidden_size=width, parameter_sharing=sharing, value=value)
        net = create_critic(config, SPEC, jax.random.key(0))
        context = jnp.zeros((STATES, AGENTS, width))
        key = jax.random.key(1)
        loss = jax.grad(lambda net: estimate(value, net, context, policy, key).value.sum())
        return work(loss, net).flops

    def of_one_more(joins):
        return (cost(joins, 60) - cost(joins, 20)) / 40

    look_up = 2 * states * AGENTS * ACTIONS * width
    layer = 2 * states * width**2
    assert of_one_more("last") <= 3 * look_up < layer
    assert of_one_more("first") >= 3 * layer  # forward, and twice backward


# --- Which estimator ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agents", "actions", "expected"),
    [
        (1, 6, Enumeration(1, 6)),
        (2, 100, Enumeration(2, 100)),
        (2, 101, LatinSamples(17)),
        (3, 10, Enumeration(3, 10)),
        (3, 11, LatinSamples(17)),
        (10, 6, LatinSamples(17)),
    ],
)
def test_auto_is_exact_where_the_joint_actions_are_few(agents, actions, expected):
    auto = Auto(max_joint_actions=100)
    assert create_estimator(auto, agents, actions) == expected
    matched = expected if isinstance(expected, Enumeration) else MomentMatching()
    assert create_estimator(auto, agents, actions, form="gaussian") == matched


@pytest.mark.parametrize(("agents", "actions"), [(1, 5), (2, 3), (4, 2)])
def test_the_critic_is_evaluated_as_often_as_the_estimator_says(agents, actions):
    policy = Categorical.masked(jnp.zeros((agents, actions)), jnp.ones((agents, actions), bool))
    counts = {Exact(): actions ** (agents - 1), Sampled(num_samples=9): 9, LATIN(num_samples=7): 7}
    for estimator, count in counts.items():
        draws: Draws = draw(estimator, policy, jax.random.key(0))
        assert draws.actions.shape[0] == count


def test_a_choice_that_was_made_stands():
    assert create_estimator(Sampled(num_samples=3), 2, 2) == IndependentSamples(3)
    assert create_estimator(LATIN(num_samples=3), 2, 2) == LatinSamples(3)
    assert create_estimator(Exact(), 4, 5) == Enumeration(4, 5)


def test_enumerating_too_much_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"10 agents with 6 actions have 10,077,696") as refusal:
        create_estimator(Exact(), 10, 6)
    assert "\n" not in str(refusal.value)
