"""`perla.marginalise`: anyone's critic, averaged as it should be, or refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perla
from perla.distributions import Categorical, Gaussian
from perla.errors import UserError
from perla.methods.aggregators import Entropic, Max, UpperQuantile
from perla.methods.estimators import Analytic, Exact, Sampled

BATCH, AGENTS, ACTIONS, SEEN = 4, 3, 3, 5
KEY = jax.random.key(0)
LOGITS = 2 * jax.random.normal(jax.random.key(1), (BATCH, AGENTS, ACTIONS))
SEES = jax.random.normal(jax.random.key(2), (BATCH, AGENTS, SEEN))
WEIGHTS = {
    "sees": jax.random.normal(jax.random.key(3), (SEEN, 8)),
    "acts": jax.random.normal(jax.random.key(4), (AGENTS * ACTIONS, 8)),
    "out": jax.random.normal(jax.random.key(5), (8, 2)),
}


def network(weights, joint, *, own=False):
    """`[batch, agent, out]`: a plain network of the observation and the one-hot joint action."""
    chosen = jax.nn.one_hot(joint, ACTIONS)[..., None, :, :]
    mask = jnp.ones((AGENTS, AGENTS)) if own else 1 - jnp.eye(AGENTS)
    seen = mask[None, ..., None] * chosen
    seen = seen.reshape(BATCH, AGENTS, -1)
    return jnp.tanh(SEES @ weights["sees"] + seen @ weights["acts"]) @ weights["out"]


def enumerated(f, policy, *, own=None):
    """Σ π₋ᵢ(a₋ᵢ) f(a)ᵢ, one joint action at a time."""
    probs = np.asarray(policy.probs)
    total = np.zeros((BATCH, AGENTS, 2))
    for joint in itertools.product(range(ACTIONS), repeat=AGENTS):
        for i in range(AGENTS):
            if joint[i] != 0:  # The agent's own entry plays no role: count one value of it.
                continue
            full = np.tile(joint, (BATCH, 1))
            if own is not None:
                full[:, i] = own[:, i]
            weight = np.prod([probs[:, m, joint[m]] for m in range(AGENTS) if m != i], axis=0)
            total[:, i] += weight[:, None] * np.asarray(f(jnp.asarray(full)))[:, i]
    return total


def test_a_critic_of_the_others_is_averaged_over_their_policies():
    policy = Categorical(jax.nn.log_softmax(LOGITS))
    expected = enumerated(lambda joint: network(WEIGHTS, joint), policy)
    found = perla.marginalise(lambda joint: network(WEIGHTS, joint), LOGITS, KEY, Exact())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = perla.marginalise(lambda joint: network(WEIGHTS, joint), policy, KEY)
    np.testing.assert_array_equal(again, found)


def test_a_critic_that_takes_the_own_action_is_given_it():
    own = jax.random.randint(KEY, (BATCH, AGENTS), 0, ACTIONS)
    policy = Categorical(jax.nn.log_softmax(LOGITS))

    def critic(joint):
        return network(WEIGHTS, joint, own=True)

    expected = enumerated(critic, policy, own=np.asarray(own))
    found = jax.jit(lambda: perla.marginalise(critic, LOGITS, KEY, Exact(), own=own))()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_is_differentiable_in_the_critics_parameters_and_in_the_policies():
    def loss(weights, logits):
        def critic(joint):
            return network(weights, joint)[..., 0]

        return perla.marginalise(critic, logits, KEY, Exact()).sum()

    by_weights, by_logits = jax.jit(jax.grad(loss, argnums=(0, 1)))(WEIGHTS, LOGITS)
    assert all(jnp.abs(g).max() > 0 for g in by_weights.values())
    step = 1e-2 * by_logits / jnp.linalg.norm(by_logits)
    rise = loss(WEIGHTS, LOGITS + step) - loss(WEIGHTS, LOGITS - step)
    assert float(rise) == pytest.approx(2e-2 * float(jnp.linalg.norm(by_logits)), rel=1e-2)


def test_gaussian_policies_are_drawn_and_carry_gradients():
    """E (Σ_{m≠i} aₘ)² = (Σ μ)² + Σ σ²"""
    mean = jnp.arange(1.0, 1 + BATCH * AGENTS).reshape(BATCH, AGENTS, 1) / 4
    deviation = jnp.full((BATCH, AGENTS, 1), 0.5)

    def critic(joint):
        return (joint.sum(-2, keepdims=True) - joint)[..., 0] ** 2

    def value(mean, deviation):
        estimator = Sampled(num_samples=1009, sampler="latin")
        return perla.marginalise(critic, Gaussian(mean, deviation), KEY, estimator)

    others = (mean.sum(-2, keepdims=True) - mean)[..., 0]
    np.testing.assert_allclose(value(mean, deviation), others**2 + 2 * 0.25, rtol=0.03)
    slope = jax.grad(lambda mean: value(mean, deviation).sum())(mean)[..., 0]
    np.testing.assert_allclose(slope, 2 * (others.sum(-1, keepdims=True) - others), rtol=0.03)


@pytest.mark.parametrize("jitted", [False, True])
def test_a_critic_that_reads_its_own_entry_is_refused(jitted):
    def value(weights):
        return perla.marginalise(lambda joint: network(weights, joint, own=True), LOGITS, KEY)

    with pytest.raises(UserError, match=r"agent 0's own action.*1 − eye.*`own`"):
        (jax.jit(value) if jitted else value)(WEIGHTS)


def test_a_mask_that_is_traced_can_be_vouched_for():
    def value(mask, check):
        def critic(joint):
            chosen = jax.nn.one_hot(joint, ACTIONS).sum(-1)[..., None, :]
            return (mask[None] * chosen).sum(-1)

        return perla.marginalise(critic, LOGITS, KEY, check=check)

    mask = 1 - jnp.eye(AGENTS)
    np.testing.assert_allclose(jax.jit(value, static_argnums=1)(mask, False), 2.0, rtol=1e-5)
    np.testing.assert_allclose(value(mask, True), 2.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"critic": lambda joint: jnp.zeros((AGENTS, BATCH))},
            r"\(3, 4\).*expected.*\(4, 3\)",
        ),
        ({"critic": lambda joint: jnp.zeros(())}, r"makes \(\)"),
        ({"policies": jnp.zeros(3), "critic": lambda joint: jnp.zeros(())}, r"shape \(\)"),
        ({"own": jnp.zeros((BATCH, AGENTS + 1), int)}, r"own of shape \(4, 4\)"),
        (
            {
                "policies": Gaussian(jnp.zeros((BATCH, AGENTS, 1)), jnp.ones((BATCH, AGENTS, 1))),
                "critic": lambda joint: jnp.zeros((BATCH, AGENTS)),
                "estimator": Exact(),
            },
            "continuous actions cannot be enumerated",
        ),
        (
            {
                "policies": jnp.zeros((20, ACTIONS)),
                "critic": lambda joint: jnp.zeros(20),
                "estimator": Exact(),
            },
            "1,162,261,467 joint actions",
        ),
        ({"estimator": Analytic()}, "nothing is known of this critic; use 'sampled'"),
        ({"estimator": Sampled(num_samples="auto")}, "num_samples = auto: only a training run"),
        (
            {"estimator": Sampled(num_samples=5, gradient_samples=2), "aggregator": Max()},
            "gradient_samples = 2: only the mean takes its gradient from a part",
        ),
    ],
)
def test_what_cannot_be_is_refused(change, says):
    arguments = {
        "critic": lambda joint: network(WEIGHTS, joint),
        "policies": LOGITS,
        "key": KEY,
    }
    with pytest.raises(UserError, match=says):
        perla.marginalise(**arguments | change)


def test_a_bound_on_memory_changes_nothing_but_the_order():
    def value(**settings):
        return perla.marginalise(
            lambda joint: network(WEIGHTS, joint), LOGITS, KEY,
            Sampled(num_samples=11, sampler="latin"), **settings,
        )  # fmt: skip

    np.testing.assert_allclose(value(memory=1e-3), value(), atol=1e-6)


def test_there_is_one_sample_at_least():
    with pytest.raises(UserError, match="num_samples = 0"):
        Sampled(num_samples=0)


@pytest.mark.parametrize("aggregator", [Entropic(eta=2.0), UpperQuantile(quantile=0.9), Max()])
def test_the_optimistic_ones_are_above_the_mean(aggregator):
    def value(*rest):
        return perla.marginalise(lambda joint: network(WEIGHTS, joint), LOGITS, KEY, Exact(), *rest)

    assert (value(aggregator) >= value() - 1e-5).mean() > 0.9
