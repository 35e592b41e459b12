"""Truncations before the limit: every learner bootstraps from the final observation of each."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from perla.algos import ppo, td
from perla.algos.targets import boundary_values
from perla.algos.values import INITIAL
from perla.envs.protocol import Spec
from perla.envs.wrappers import AutoReset
from perla.loops.rollout import begin, rollout
from perla.methods.recipes import make

SMALL = {"num_envs": 4, "hidden_size": 8, "num_layers": 1}


@dataclass(frozen=True)
class Early:
    """An environment whose limit is 50 steps, and whose episodes are truncated after `length`."""

    length: int
    limit: int = 50

    @property
    def probe(self) -> probes.Probe:
        return replace(probes.PATIENCE, end="truncated", length=self.length)

    @property
    def spec(self) -> Spec:
        return replace(self.probe.spec, limit=self.limit)

    def reset(self, key):
        return self.probe.reset(key)

    def step(self, key, state, action):
        return self.probe.step(key, state, action)

    def render(self, state):
        raise AssertionError("nothing draws this environment")


def collect(algorithm, env, config):
    """A new learner and a rollout of it."""
    envs = AutoReset(env, config.num_envs)

    @jax.jit
    def run(key):
        learner = algorithm.init(key)
        start = begin(envs, learner.actor, key)
        whole = config.rollout_length is None
        length = config.length(env.spec.limit)
        trajectory = rollout(envs, learner.actor, start, key, length, whole_episodes=whole)[1]
        return learner, trajectory

    return run(jax.random.key(0))


def test_room_for_truncations():
    spec = probes.PATIENCE.spec
    promising = replace(spec, limit=4, early_truncation=False)
    assert [promising.max_truncations(steps) for steps in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    assert replace(promising, limit=None).max_truncations(9) == 0
    for limit in (4, None):
        assert replace(spec, limit=limit).max_truncations(9) == 9


@pytest.mark.parametrize(("length", "rollout_length"), [(1, 6), (2, 6), (2, None)])
def test_replay_has_the_final_observation_of_every_truncation(length, rollout_length):
    env = Early(length, limit=7)
    config = make("vdn", **SMALL, rollout_length=rollout_length, buffer_size=4)
    algorithm = td.Algorithm(config, env.spec)
    learner, trajectory = collect(algorithm, env, config)
    assert (trajectory.truncated & trajectory.valid).sum(0).tolist() == [
        6 // length if rollout_length else 1
    ] * 4
    ring = jax.jit(algorithm.store)(learner, trajectory).replay_state.replay.ring
    steps = jax.tree.map(lambda x: x.swapaxes(0, 1), ring)
    # A rollout of whole episodes holds one truncation, however short the episodes are.
    assert len(steps.sources) == 1 + (rollout_length or 1)
    successor, valid = np.asarray(steps.successor), np.asarray(steps.valid)
    successors = np.asarray(steps.observation.obs)[successor, np.arange(4)[None]]
    np.testing.assert_array_equal(successors[valid], np.asarray(trajectory.final.obs)[valid])


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("limit", [50, None])
def test_actor_critics_bootstrap_from_the_final_observation_of_every_truncation(length, limit):
    env = Early(length, limit)
    networks = {"actor_network": "mlp", "critic_network": "mlp"}
    config = make("ippo", **SMALL, **networks, rollout_length=8)
    algorithm = ppo.Algorithm(config, env.spec)
    learner, trajectory = collect(algorithm, env, config)
    key, hidden = jax.random.key(1), jnp.zeros((8, 4, 2, 0))

    def values(spec):
        return jax.jit(
            lambda learner, trajectory: boundary_values(
                algorithm.value,
                spec,
                learner.actor,
                learner.critic,
                trajectory,
                hidden,
                key,
                INITIAL,
            )
        )(learner, trajectory)

    final, last = values(env.spec)
    # With a limit of one step, all final observations are evaluated at once.
    expected, same = values(replace(env.spec, limit=1, early_truncation=False))
    assert (np.asarray(expected)[np.asarray(trajectory.truncated)] != 0).all()
    np.testing.assert_allclose(final, expected, rtol=1e-5)
    np.testing.assert_allclose(last, same, rtol=1e-5)
