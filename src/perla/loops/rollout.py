"""Collecting experience: all copies of a world, a horizon at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perla.algos.protocol import Trajectory
from perla.envs.protocol import Observation
from perla.envs.wrappers import AutoReset
from perla.nets.actors import AnyActor
from perla.types import Array, Bool, Float, Int, PRNGKeyArray


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


class Tally(NamedTuple):
    """What a rollout amounts to."""

    steps: Int[Array, ""]
    """Environment transitions that count, summed over copies."""
    episodes: Int[Array, ""]
    """Episodes that ended."""
    returns: Float[Array, ""]
    """Their summed returns."""


def begin(env: AutoReset, actor: AnyActor, key: PRNGKeyArray) -> Scene:
    """Every copy at its first step."""
    state, observation = env.reset(key)
    copies = env.copies
    return Scene(
        state,
        observation,
        jnp.ones(copies, bool),
        actor.blank((copies,)),
        jnp.zeros(copies),
    )


def rollout(
    env: AutoReset,
    actor: AnyActor,
    scene: Scene,
    key: PRNGKeyArray,
    length: int,
    *,
    whole_episodes: bool = False,
) -> tuple[Scene, Trajectory, Tally]:
    """Act for `length` steps in every copy.

    With `whole_episodes` every copy begins an episode first, and what follows its end is padding:
    neither learnt from nor counted.
    """
    key_begin, key_steps = jax.random.split(key)
    if whole_episodes:
        scene = begin(env, actor, key_begin)

    def step(carry: tuple[Scene, Array], key: PRNGKeyArray):
        scene, valid = carry
        key_action, key_env, key_actor = jax.random.split(key, 3)
        policy, memory = actor(scene.observation, scene.memory, scene.fresh, key_actor)
        action = policy.sample(key_action)
        state, timestep = env.step(key_env, scene.state, action)
        ended = timestep.terminated | timestep.truncated
        total = scene.returns + timestep.reward.mean(-1)
        counted = ended & valid
        tally = Tally(valid.sum(), counted.sum(), jnp.where(counted, total, 0.0).sum())
        record = {
            "observation": scene.observation,
            "fresh": scene.fresh,
            "valid": valid,
            "memory": scene.memory,
            "action": action,
            "policy": policy,
            "reward": timestep.reward,
            "terminated": timestep.terminated,
            "truncated": timestep.truncated,
            "final": timestep.final,
        }
        memory = actor.remember(memory, action)
        scene = Scene(state, timestep.observation, ended, memory, jnp.where(ended, 0.0, total))
        return (scene, valid & ~ended if whole_episodes else valid), (record, tally)

    start = (scene, jnp.ones(env.copies, bool))
    (scene, _), (record, tally) = jax.lax.scan(step, start, jax.random.split(key_steps, length))
    trajectory = Trajectory(
        **record,
        last=scene.observation,
        last_fresh=scene.fresh,
        last_memory=scene.memory,
    )
    return scene, trajectory, jax.tree.map(lambda x: x.sum(0), tally)
