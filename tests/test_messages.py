"""Messages match their definitions and reach their receivers."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.distributions import Gaussian
from perla.nets.messages import Messages

AGENTS, ACTIONS, HIDDEN, LATENT, BATCH = 3, 4, 6, 5, 7
FLOOR, PRUNE = 0.5, 0.6


@pytest.fixture(scope="module")
def messages():
    """With weights large enough that the attention to some receivers is small."""

    @jax.jit
    def create(key):
        made = Messages.create(
            key, agents=AGENTS, features=HIDDEN, actions=ACTIONS, latent=LATENT, attention=8,
            hidden_size=16, floor=FLOOR, prune=PRUNE, init="torch",
        )  # fmt: skip
        return jax.tree.map(lambda x: 3 * x, made)

    return create(jax.random.key(0))


@pytest.fixture(scope="module")
def hidden():
    return np.random.default_rng(1).normal(size=(BATCH, AGENTS, HIDDEN)).astype(np.float32)


@jax.jit
def parts(messages, hidden, key):
    """The addition to the utilities, the attention weights and the messages."""
    sent = messages(hidden, key)
    weight = messages.attention(hidden, sent.latents).probs
    return sent.received, weight, contents(messages, hidden, sent.latents)


def contents(messages, hidden, z):
    """mᵢⱼ(hⱼ, zᵢⱼ), one by one."""
    receiver = jnp.broadcast_to(hidden[:, None], (*z.shape[:-1], HIDDEN))
    inputs = jnp.concatenate([receiver, z], -1)
    first, last = messages.message.layers
    return last(jax.nn.relu(first(inputs)))


def summed(weight, message, agent):
    """Σᵢ αᵢⱼ mᵢⱼ over the others."""
    others = [i for i in range(AGENTS) if i != agent]
    return sum(weight[:, i, agent, None] * message[:, i, agent] for i in others)


def test_shapes(messages, hidden):
    added, weight, message = parts(messages, hidden, jax.random.key(1))
    assert added.shape == (BATCH, AGENTS, ACTIONS)
    assert weight.shape == (BATCH, AGENTS, AGENTS)
    assert message.shape == (BATCH, AGENTS, AGENTS, ACTIONS)
    models = jax.jit(lambda hidden: messages.models(hidden))(hidden)
    assert models.shape == (BATCH, AGENTS, AGENTS, LATENT)
    assert models.deviation.min() == pytest.approx(FLOOR**0.5), "the floor holds the smallest"
    assert models.deviation.max() > FLOOR**0.5


def test_attention_is_over_the_other_agents_only(messages, hidden):
    _, weight, _ = parts(messages, hidden, jax.random.key(1))
    np.testing.assert_array_equal(np.diagonal(weight, axis1=-2, axis2=-1), 0.0)
    np.testing.assert_allclose(weight.sum(-1), 1.0, rtol=1e-5)


def test_utilities_move_by_the_weighted_messages_of_the_others(messages, hidden):
    added, weight, message = map(np.asarray, parts(messages, hidden, jax.random.key(1)))
    for agent in range(AGENTS):
        expected = summed(weight, message, agent)
        np.testing.assert_allclose(added[:, agent], expected, rtol=1e-4, atol=1e-5)


def test_greedy_agents_do_not_send_messages_of_small_weight(messages, hidden):
    added, weight, message = map(np.asarray, parts(messages, hidden, None))
    counts = weight >= PRUNE / AGENTS
    others = ~np.eye(AGENTS, dtype=bool)
    assert not counts[:, others].all()
    assert counts[:, others].any()
    for agent in range(AGENTS):
        expected = summed(np.where(counts, weight, 0.0), message, agent)
        np.testing.assert_allclose(added[:, agent], expected, rtol=1e-4, atol=1e-5)


def test_messages_depend_on_the_receivers_hidden_layer(messages, hidden):
    """mᵢⱼ depends on hᵢ through zᵢⱼ alone: given z, only hⱼ matters."""
    z = jax.random.normal(jax.random.key(2), (BATCH, AGENTS, AGENTS, LATENT))
    senders = jnp.broadcast_to(  # `[sender, batch, i, j]`: attention weight 1 for one sender
        jnp.eye(AGENTS)[:, None, :, None], (AGENTS, BATCH, AGENTS, AGENTS)
    )
    read = jax.jit(lambda hidden: jax.lax.map(partial(messages.received, hidden, z), senders))
    changed = hidden.copy()
    changed[:, 0] += 1.0
    differs = np.abs(np.asarray(read(changed) - read(hidden))).max((1, 3)) > 1e-6
    np.testing.assert_array_equal(differs, np.arange(AGENTS)[None].repeat(AGENTS, 0) == 0)


def test_the_noise_is_a_function_of_the_key(messages, hidden):
    once, again, other = (parts(messages, hidden, jax.random.key(k))[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, other)


def test_the_divergence_is_that_of_gaussians():
    rng = np.random.default_rng(0)
    mean, other_mean = rng.normal(size=(2, LATENT))
    deviation, other_deviation = rng.uniform(0.5, 2.0, size=(2, LATENT))
    p = Gaussian(jnp.asarray(mean), jnp.asarray(deviation))
    q = Gaussian(jnp.asarray(other_mean), jnp.asarray(other_deviation))
    x = mean + deviation * rng.normal(size=(400_000, LATENT))

    def log_prob(mean, deviation):
        return (-0.5 * ((x - mean) / deviation) ** 2 - np.log(deviation)).sum(-1)

    sampled = (log_prob(mean, deviation) - log_prob(other_mean, other_deviation)).mean()
    assert p.divergence(q) == pytest.approx(sampled, rel=0.01)
    assert p.divergence(p) == pytest.approx(0.0, abs=1e-6)


def test_the_divergence_depends_on_the_other_agents_actions(messages, hidden):
    """Agent i's term changes with aⱼ, j ≠ i, and not with its own action."""

    @jax.jit
    def divergence(hidden, action):
        return messages.divergence(hidden, messages.models(hidden), action)

    action = np.zeros((BATCH, AGENTS), np.int32)
    own = action.copy()
    own[:, 0] = 1
    before, after = np.asarray(divergence(hidden, action)), np.asarray(divergence(hidden, own))
    assert (before > 0).all()
    np.testing.assert_allclose(after[:, 0], before[:, 0], rtol=1e-5)
    assert (np.abs(after[:, 1:] - before[:, 1:]) > 1e-5).all()


def test_only_the_attention_learns_from_its_entropy(messages, hidden):
    @jax.jit
    def entropy(messages, hidden):
        return messages.entropy(hidden, messages(hidden, jax.random.key(1)).latents).mean()

    _, weight, _ = map(np.asarray, parts(messages, hidden, jax.random.key(1)))
    expected = -(weight * np.log(np.where(weight > 0, weight, 1.0))).sum(-1).mean()
    assert entropy(messages, hidden) == pytest.approx(expected, rel=1e-4)
    of_messages, of_hidden = jax.jit(jax.grad(entropy, argnums=(0, 1)))(messages, hidden)
    moved = {
        name: any((leaf != 0).any() for leaf in jax.tree.leaves(getattr(of_messages, name)))
        for name in ("latent", "inference", "message", "query", "key")
    }
    assert moved == dict.fromkeys(("latent", "inference", "message"), False) | {
        "query": True, "key": True}  # fmt: skip
    np.testing.assert_array_equal(of_hidden, 0.0)
