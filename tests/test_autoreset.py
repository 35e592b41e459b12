"""Auto-reset: every ended episode is followed by a new one, for every `reset_batch`."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perla.envs.foraging import make_env
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.envs.wrappers import AutoReset, sample_actions

GO, END, CUT = range(3)
COPIES = 13


class Life(NamedTuple):
    name: jax.Array
    age: jax.Array


class Mortal:
    """An environment with a random name that ends, or is cut, when its one agent says so."""

    spec = Spec("mortal", 1, 2, 2, (3,), None, "common")

    def reset(self, key):
        life = Life(jax.random.uniform(key), jnp.zeros(()))
        return life, self.see(life)

    def step(self, key, life, action):
        life = life._replace(age=life.age + 1)
        seen = self.see(life)
        return life, TimeStep(seen, jnp.ones(1), action[0] == END, action[0] == CUT, seen)

    def render(self, life):
        raise AssertionError("nothing draws this environment")

    def see(self, life):
        both = jnp.stack([life.name, life.age])
        return Observation(both[None, :], both, jnp.ones((1, 3), bool))


MORTALS = AutoReset(Mortal(), COPIES)
RESET, STEP = jax.jit(MORTALS.reset), jax.jit(MORTALS.step)


def step_once(actions):
    state, _ = RESET(jax.random.key(0))
    return state, *STEP(jax.random.key(1), state, jnp.asarray(actions)[:, None])


WHO_ENDS = {
    "nobody": [],
    "the first": [0],
    "the last": [COPIES - 1],
    "two": [3, 7],
    "as many as a batch": list(range(8)),
    "one more than a batch": list(range(9)),
    "all": list(range(COPIES)),
}


@pytest.mark.parametrize("how", [END, CUT])
@pytest.mark.parametrize("who", WHO_ENDS.values(), ids=WHO_ENDS)
def test_the_ended_and_only_they_begin_anew(who, how):
    ended = np.isin(np.arange(COPIES), who)
    state, after, timestep = step_once(np.where(ended, how, GO))
    assert (timestep.terminated == (ended & (how == END))).all()
    assert (timestep.truncated == (ended & (how == CUT))).all()
    assert (after.age == np.where(ended, 0, 1)).all()
    assert ((after.name != state.name) == ended).all()
    assert len(np.unique(after.name)) == COPIES, "no two copies share their draws"


def test_observation_is_the_next_first_and_final_the_last():
    ended = np.isin(np.arange(COPIES), [0, 4, 12])
    state, after, timestep = step_once(np.where(ended, END, GO))
    np.testing.assert_array_equal(timestep.observation.state[:, 0], after.name)
    np.testing.assert_array_equal(timestep.observation.obs[:, 0, 1], after.age)
    np.testing.assert_array_equal(timestep.final.state[:, 0], state.name)
    np.testing.assert_array_equal(timestep.final.obs[:, 0, 1], np.ones(COPIES))


def roll(envs, key, steps=120):
    """Random actions; desynchronised from the beginning, so that few and many end at once."""
    spec = envs.spec
    state, _ = envs.reset(key)
    limit = spec.limit or 1
    late = jnp.minimum(jnp.arange(envs.num_envs) * 7 % limit, limit - 1)
    state = state._replace(time=jnp.where(jnp.arange(envs.num_envs) % 2 == 0, late, 0))

    def one(state, key):
        key_action, key_step = jax.random.split(key)
        action = jax.random.randint(key_action, (envs.num_envs, spec.agents), 0, 6)
        return envs.step(key_step, state, action)

    return jax.lax.scan(one, state, jax.random.split(key, steps))


def test_the_size_of_reset_batches_changes_nothing(monkeypatch):
    envs = AutoReset(make_env("Foraging-8x8-2p-2f-coop-v2"), 20)
    outcomes = []
    for size in (1, 3, 20):
        monkeypatch.setattr(AutoReset, "reset_batch", property(lambda self, size=size: size))
        outcomes.append(jax.device_get(jax.jit(lambda key: roll(envs, key))(jax.random.key(3))))
    ends = outcomes[0][1].terminated | outcomes[0][1].truncated
    assert ends.sum(1).max() >= 10
    assert 1 in ends.sum(1), "episodes end alone and together"
    for other in outcomes[1:]:
        jax.tree.map(np.testing.assert_array_equal, outcomes[0], other)


def test_final_leads_where_the_environment_itself_would():
    env = make_env("Foraging-5x5-2p-2f-v2")
    envs = AutoReset(env, 6)
    state, _ = jax.jit(envs.reset)(jax.random.key(5))
    state = state._replace(time=jnp.asarray([49, 0, 49, 48, 0, 49]))
    action = jnp.zeros((6, 2), jnp.int32)
    after, timestep = jax.jit(envs.step)(jax.random.key(6), state, action)
    alone = jax.jit(env.step)
    for i in range(6):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], state)
        _, lone = alone(jax.random.key(0), one, action[i])
        np.testing.assert_array_equal(timestep.final.obs[i], lone.observation.obs)
        np.testing.assert_array_equal(timestep.reward[i], lone.reward)
    assert timestep.truncated.tolist() == [True, False, True, False, False, True]
    assert after.time.tolist() == [0, 1, 0, 49, 1, 0]


def test_seeds_may_be_batched():
    envs = AutoReset(make_env("Foraging-5x5-2p-2f-v2"), 9)
    keys = jax.random.split(jax.random.key(4), 2)
    alone = jax.jit(lambda key: roll(envs, key, 60))
    together = jax.jit(jax.vmap(lambda key: roll(envs, key, 60)))(keys)
    for i, key in enumerate(keys):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone(key))


def test_random_actions_are_uniform_among_the_available():
    spec = Spec("masks", 3, 1, 1, (4, 4, 2), None, "common")
    avail = jnp.array([[True] * 4, [False, True, False, True], [True, False, False, False]])
    seen = jnp.broadcast_to(avail, (6000, 3, 4))
    action = sample_actions(jax.random.key(0), spec, seen)
    assert action.dtype == jnp.int32
    shares = jax.nn.one_hot(action, 4).mean(0)
    np.testing.assert_allclose(shares, avail / avail.sum(-1, keepdims=True), atol=0.03)
    numbers = sample_actions(jax.random.key(0), replace(spec, continuous=True), seen)
    assert numbers.shape == seen.shape
    assert -1 <= float(numbers.min()) < -0.99
    assert 0.99 < float(numbers.max()) < 1
