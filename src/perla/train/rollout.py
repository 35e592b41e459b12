"""Collecting experience: all copies of a world, a horizon at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perla.algos.protocol import Trajectory
from perla.envs.protocol import Observation
from perla.envs.wrappers import AutoReset
from perla.nets.actors import Actor
from perla.types import Array, Bool, Float, PRNGKeyArray


class Scene(NamedTuple):
    """Where the copies stand between two steps."""

    state: Any
    """The environments' states `[env, ...]`."""
    observation: Observation
    fresh: Bool[Array, " env"]
    """An episode is about to begin."""
    memory: Float[Array, "env agent hidden"]
    """The actor's memory."""
    returns: Float[Array, " env"]
    """The rewards of the current episodes so far, averaged over agents."""


class Finished(NamedTuple):
    """The episodes that ended during a rollout."""

    count: Float[Array, ""]
    returns: Float[Array, ""]
    """Their summed returns."""


def begin(env: AutoReset, actor: Actor, key: PRNGKeyArray) -> Scene:
    """Every copy at its first step."""
    state, observation = env.reset(key)
    copies = env.copies
    return Scene(
        state,
        observation,
        jnp.ones(copies, bool),
        actor.body.blank((copies,)),
        jnp.zeros(copies),
    )


def rollout(
    env: AutoReset, actor: Actor, scene: Scene, key: PRNGKeyArray, horizon: int
) -> tuple[Scene, Trajectory, Finished]:
    """Act for `horizon` steps in every copy."""

    def step(scene: Scene, key: PRNGKeyArray):
        key_action, key_env = jax.random.split(key)
        policy, memory = actor(scene.observation, scene.memory, scene.fresh)
        action = policy.sample(key_action)
        state, timestep = env.step(key_env, scene.state, action)
        ended = timestep.terminated | timestep.truncated
        total = scene.returns + timestep.reward.mean(-1)
        finished = Finished(ended.sum(dtype=jnp.float32), jnp.where(ended, total, 0.0).sum())
        record = (
            scene.observation,
            scene.fresh,
            scene.memory,
            action,
            policy,
            timestep.reward,
            timestep.terminated,
            timestep.truncated,
            timestep.final,
        )
        scene = Scene(state, timestep.observation, ended, memory, jnp.where(ended, 0.0, total))
        return scene, (record, finished)

    scene, (record, finished) = jax.lax.scan(step, scene, jax.random.split(key, horizon))
    trajectory = Trajectory(
        *record, last=scene.observation, last_fresh=scene.fresh, last_memory=scene.memory
    )
    return scene, trajectory, jax.tree.map(lambda x: x.sum(0), finished)
