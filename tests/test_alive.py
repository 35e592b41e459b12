"""Agents that no longer take part: what they see and do changes nothing that is learnt."""

from __future__ import annotations

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from perla.algos import create
from perla.algos.alive import mask_dead_agents
from perla.algos.normalise import mean, variance
from perla.algos.replay import sequences
from perla.distributions import Categorical, Gaussian
from perla.envs.protocol import Observation
from perla.errors import UserError
from perla.methods.recipes import make
from test_ppo import collect, learner_of

WORLD = probes.MORTAL
SMALL = {
    "num_envs": 8,
    "rollout_length": 6,
    "hidden_size": 8,
    "actor_network": "mlp",
    "num_layers": 1,
    "init": "torch",
}
KEY = jax.random.key(4)


def observed(alive):
    shape = np.shape(alive)
    avail = jnp.ones((*shape, 2), bool)
    return Observation(jnp.zeros((*shape, 1)), jnp.zeros((*shape[:-1], 1)), avail, alive)


# --- The parts ----------------------------------------------------------------------------------


def test_means_are_over_the_steps_of_those_that_take_part():
    x = jax.random.normal(KEY, (7, 3, 2))
    alive = jax.random.bernoulli(KEY, 0.6, x.shape)
    loss_mask = np.asarray(x)[np.asarray(alive)]
    np.testing.assert_allclose(mean(x, alive), loss_mask.mean(), rtol=1e-5)
    np.testing.assert_allclose(variance(x, alive), loss_mask.var(), rtol=1e-5)
    assert mean(x, jnp.zeros(x.shape, bool)) == 0


def test_who_takes_no_part_does_one_thing_for_sure():
    avail = jnp.array([[False, True, True], [True, True, True]])
    policy = Categorical.masked(jnp.zeros((2, 3)), avail, jnp.array([False, True]))
    np.testing.assert_allclose(policy.probs, [[0, 1, 0], [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_allclose(policy.entropy(), [0, np.log(3)], rtol=1e-6)
    one = jnp.ones((2, 3))
    still = Gaussian.masked(one, one, avail, jnp.array([False, True]))
    np.testing.assert_array_equal(still.sample(KEY)[0], 0.0)
    assert still.log_prob(one)[0] == still.entropy()[0] == 0


@pytest.mark.parametrize("algo", ["vdn", "cw-qmix", "maic-qplex", "qtran-alt", "coma", "maddpg"])
def test_no_method_has_them_do_another(algo):
    algorithm = create.create(make(algo, **SMALL), WORLD.spec)
    actor = jax.jit(algorithm.init)(KEY).actor
    seen = observed(jnp.tile(jnp.array([True, False]), (64, 1)))
    seen = seen._replace(
        obs=jnp.zeros((64, 2, WORLD.spec.obs)), avail=seen.avail.at[:32, :, 0].set(False)
    )
    policy, _ = actor(seen, actor.initial_state((64,)), jnp.ones(64, bool), KEY)
    living, dead = np.asarray(policy.sample(KEY)).T
    assert set(living[32:]) == {0, 1}
    np.testing.assert_array_equal(dead, [1] * 32 + [0] * 32)


@pytest.mark.parametrize(("common", "expected"), [(True, [3.0, 3.0, 0.0]), (False, [0.0, 0, 0])])
def test_what_comes_after_an_agent_is_worth_to_it_what_it_is_to_the_others(common, expected):
    alive = jnp.array([[True, False, True], [False, True, False], [False, False, False]])
    values = jnp.array([[2.0, 9.0, 4.0], [9.0, 3.0, 9.0], [9.0, 9.0, 9.0]])
    found = np.asarray(mask_dead_agents(values, observed(alive), common=common))
    np.testing.assert_array_equal(found[np.asarray(alive)], [2, 4, 3])
    np.testing.assert_array_equal([found[0, 1], found[1, 0], found[2, 1]], expected)
    immortal = observed(alive)._replace(alive=None)
    assert mask_dead_agents(values, immortal, common=common) is values


# --- Learning -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played():
    config = make("ippo", **SMALL)
    algorithm, learner = learner_of(config, WORLD.spec)
    trajectory, _ = collect(WORLD, algorithm, learner)
    alive = np.asarray(trajectory.observation.alive)
    assert alive.any(-1).any()
    assert not alive.all()
    return trajectory


def disturbed(observation):
    """What those see who no longer take part, changed."""
    return observation._replace(
        obs=jnp.where(observation.alive[..., None], observation.obs, 7 - observation.obs)
    )


def test_what_the_dead_see_and_do_changes_nothing(played):
    """In HAPPO with policy embedding: no loss, no advantage, no weight of those whose turn is
    later."""
    settings = {"update_epochs": 2, "normalize_advantages": True, "normalize_values": True}
    config = make("perla-happo", **SMALL | settings)
    algorithm, learner = learner_of(config, WORLD.spec)
    alive = played.observation.alive
    changed = played._replace(
        observation=disturbed(played.observation),
        final=disturbed(played.final),
        last=disturbed(played.last),
        action=jnp.where(alive, played.action, 1 - played.action),
    )
    assert (changed.action != played.action).any()
    update = jax.jit(algorithm.update)
    ours, theirs = (update(learner, t, KEY, jnp.float32(0.0))[0] for t in (played, changed))
    assert eqx.tree_equal(ours, theirs)
    living = played._replace(action=jnp.where(alive, 1 - played.action, played.action))
    assert not eqx.tree_equal(ours, update(learner, living, KEY, jnp.float32(0.0))[0])


@pytest.mark.parametrize("algo", ["vdn", "iql", "maddpg"])
def test_what_the_dead_saw_is_not_learnt_from_in_replay(algo, played):
    algorithm = create.create(make(algo, **SMALL, last_action=False), WORLD.spec)
    learner = jax.jit(algorithm.init)(KEY)
    reward = played.reward if algo != "vdn" else played.reward.mean(-1, keepdims=True)
    batch = sequences(played, reward, WORLD.spec, state=True)
    changed = batch._replace(observation=disturbed(batch.observation))
    if algo != "maddpg":  # whose critics are told what everybody did, which the dead cannot choose
        acted = batch.now.alive | (batch.action > 1)
        changed = changed._replace(action=jnp.where(acted, batch.action, 1 - batch.action))

    def loss(networks, batch):
        if algo != "maddpg":
            return algorithm.loss(networks, learner.target, batch, KEY)[0]
        y = algorithm.targets(learner.target, batch)
        critics, _ = algorithm.critic_loss(networks.critic, batch, y)
        return critics + algorithm.actor_loss(networks.actor, networks.critic, batch, KEY)[0]

    slope = jax.jit(jax.grad(loss))
    ours, theirs = (slope(learner.networks, one) for one in (batch, changed))
    assert eqx.tree_equal(ours, theirs)
    living = replace_obs(batch, jnp.where(batch.observation.alive[..., None], 3.0, 0.0))
    assert not eqx.tree_equal(ours, slope(learner.networks, living))


def replace_obs(batch, more):
    observation = batch.observation
    return batch._replace(observation=observation._replace(obs=observation.obs + more))


def test_a_world_says_beforehand_that_its_agents_are_mortal(played):
    immortal = replace(WORLD.spec, mortal=False)
    with pytest.raises(UserError, match="mortal = False, and its observations say otherwise"):
        sequences(played, played.reward, immortal, state=True)
