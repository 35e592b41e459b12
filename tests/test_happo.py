"""HAPPO: agents update in turn, with advantages weighted by the earlier agents' ratios."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import probes
from perla.algos import ppo
from perla.envs.protocol import Spec
from perla.envs.wrappers import AutoReset
from perla.errors import UserError
from perla.loops.rollout import begin, rollout
from perla.methods.recipes import make
from test_ppo import random_batch

SMALL = probes.PLAIN | {"hidden_size": 8, "init": "torch", "lr": 0.05, "max_grad_norm": 0.1}
SPEC = Spec("random", 3, 3, 4, (5, 5, 5), 10, "common")
EPOCHS = 3
ORDERS = [(0, 1, 2), (2, 0, 1)]


@pytest.fixture(scope="module")
def sequential():
    """A learner, and its policies after turns in any order, which may leave agents out."""
    config = make("happo", **SMALL, update_epochs=EPOCHS)
    algorithm = ppo.Algorithm(config, SPEC)
    learner = jax.jit(algorithm.init)(jax.random.key(0))
    batch = random_batch(spec=SPEC)

    @jax.jit
    def turns(order):
        schedule = algorithm.schedule(learner, jnp.zeros(()))
        key = jax.random.key(1)
        return algorithm.update_sequentially(learner, batch, order, key, schedule)[0]

    return config, learner, batch, turns


def own(tree, agent):
    return jax.tree.map(lambda x: x[agent], tree)


def one_by_one(config, learner, batch, order):
    """The same by a plain loop: {agent: actor}."""
    optimiser = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(config.lr))
    valid = batch.valid[..., None]
    joint_ratio, found = jnp.ones(batch.valid.shape), {}

    def log_prob(actor, agent):
        obs, state, avail, _ = batch.observation
        alone = type(batch.observation)(obs[:, :, [agent]], state, avail[:, :, [agent]])
        policy, _ = actor.unroll(alone, batch.hidden_state[0][:, [agent]], batch.is_first)
        log_probs = policy.log_probs[:, :, 0]
        entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
        return pick(log_probs, batch.action[..., agent]), entropy

    def pick(log_probs, action):
        return jnp.take_along_axis(log_probs, action[..., None], -1)[..., 0]

    for agent in order:
        old = pick(batch.policy.log_probs[:, :, agent], batch.action[..., agent])
        advantage = batch.advantage[..., agent]
        loss_mask = advantage[batch.valid]
        advantage = (advantage - loss_mask.mean()) / loss_mask.std()

        def loss(actor, agent=agent, old=old, advantage=advantage, joint_ratio=joint_ratio):
            new, entropy = log_prob(actor, agent)
            ratio = jnp.exp(new - old)
            clipped = jnp.clip(ratio, 0.8, 1.2)
            gain = joint_ratio * jnp.minimum(ratio * advantage, clipped * advantage)
            gain = gain + config.ent_coef * entropy
            return -jnp.where(valid[..., 0], gain, 0.0).sum() / valid.sum()

        actor = own(learner.actor.unstack(), agent)
        state = optimiser.init(actor)
        for _ in range(config.update_epochs):
            steps, state = optimiser.update(jax.jit(jax.grad(loss))(actor), state)
            actor = optax.apply_updates(actor, steps)
        joint_ratio = joint_ratio * jnp.exp(log_prob(actor, agent)[0] - old)
        found[agent] = actor
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_turns_are_a_plain_loop_over_agents(sequential, order):
    config, learner, batch, turns = sequential
    actors = turns(jnp.array(order)).actor.unstack()
    for agent, expected in one_by_one(config, learner, batch, order).items():
        for a, b in zip(
            jax.tree.leaves(own(actors, agent)), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=2e-4)


def test_who_goes_first_makes_a_difference_to_the_others_alone(sequential):
    _, _, _, turns = sequential
    alone, first, later = (
        turns(jnp.array(order)).actor.unstack() for order in ((2,), *ORDERS[::-1])
    )
    assert eqx.tree_equal(own(alone, 2), own(first, 2))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), own(first, 2), own(later, 2))
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_an_agent_moves_only_in_its_own_turn(sequential):
    _, learner, _, turns = sequential
    after = turns(jnp.array([1]))
    before = learner.actor.unstack(), learner.actor_optimiser
    now = after.actor.unstack(), after.actor_optimiser
    for agent in (0, 2):
        assert eqx.tree_equal(own(now, agent), own(before, agent))
    changed = jax.tree.map(lambda a, b: (a != b).any(), own(now, 1), own(before, 1))
    assert all(jax.tree.leaves(changed[0]))
    counts = optax.tree.get(after.actor_optimiser, "count")
    np.testing.assert_array_equal(counts, [0, EPOCHS, 0])


@functools.cache
def updated(algo, world, num_minibatches):
    """A learner of one key, and what updates by several others make of it."""
    config = make(
        algo, **SMALL, num_envs=6, rollout_length=4, num_minibatches=num_minibatches,
        parameter_sharing="critic", refresh_advantages=True,
    )  # fmt: skip
    algorithm = ppo.Algorithm(config, world.spec)
    copies = AutoReset(world, config.num_envs)

    @jax.jit
    def run(keys):
        key = jax.random.key(0)
        learner = algorithm.init(key)
        scene = begin(copies, learner.actor, key)
        _, steps, _ = rollout(copies, learner.actor, scene, key, config.rollout_length)
        return jax.lax.map(lambda key: algorithm.update(learner, steps, key, jnp.zeros(())), keys)

    return run(jax.random.split(jax.random.key(1), 6))


def alone(algo):
    return updated(algo, probes.MATCH, 2)


def together(algo):
    return updated(algo, probes.TOGETHER, 1)


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_with_one_agent_happo_is_mappo():
    (ours, metrics), (theirs, expected) = alone("happo"), alone("mappo")
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, atol=1e-4, err_msg=name)
    assert_close((ours.actor, ours.critic), (theirs.actor, theirs.critic))


@pytest.mark.slow
def test_the_critic_is_mappos():
    (ours, _), (theirs, _) = together("happo"), together("mappo")
    assert ours.critic.body.parameter_groups is None
    assert_close(ours.critic, theirs.critic)


def test_either_order_comes():
    """Nothing else in these updates is random."""
    actors = jax.tree.leaves(together("happo")[0].actor)
    outcomes = {b"".join(np.asarray(x[key]).tobytes() for x in actors) for key in range(6)}
    assert len(outcomes) == 2


# --- What does not fit --------------------------------------------------------------------------


def test_actors_that_are_one_cannot_take_turns():
    with pytest.raises(
        UserError, match=r"order = sequential: .*use parameter_sharing critic or separate"
    ):
        make("happo", parameter_sharing="shared")


def test_without_a_clip_nothing_bounds_the_weights():
    with pytest.raises(UserError, match=r"order = sequential with clip_eps = none: .*set clip_eps"):
        make("maa2c", order="sequential", parameter_sharing="separate")
