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


class RunnerState(NamedTuple):
    """Where the copies stand between two steps."""

    state: Any
    """The environments' states `[env, ...]`."""
    observation: Observation
    is_first: Bool[Array, " env"]
    """An episode is about to begin."""
    hidden_state: Float[Array, "env agent hidden"]
    """The actor's memory."""
    returns: Float[Array, " env"]
    """The rewards of the current episodes so far, averaged over agents."""


class RolloutStats(NamedTuple):
    """What a rollout amounts to."""

    steps: Int[Array, ""]
    """Environment transitions that count, summed over copies."""
    episodes: Int[Array, ""]
    """Episodes that ended."""
    returns: Float[Array, ""]
    """Their summed returns."""


def begin(env: AutoReset, actor: AnyActor, key: PRNGKeyArray) -> RunnerState:
    """Every copy at its first step."""
    state, observation = env.reset(key)
    copies = env.num_envs
    return RunnerState(
        state,
        observation,
        jnp.ones(copies, bool),
        actor.initial_state((copies,)),
        jnp.zeros(copies),
    )


def rollout(
    env: AutoReset,
    actor: AnyActor,
    runner_state: RunnerState,
    key: PRNGKeyArray,
    length: int,
    *,
    whole_episodes: bool = False,
) -> tuple[RunnerState, Trajectory, RolloutStats]:
    """Act for `length` steps in every copy.

    With `whole_episodes` every copy begins an episode first, and what follows its end is padding:
    neither learnt from nor counted.
    """
    key_begin, key_steps = jax.random.split(key)
    if whole_episodes:
        runner_state = begin(env, actor, key_begin)

    def step(carry: tuple[RunnerState, Array], key: PRNGKeyArray):
        runner_state, valid = carry
        key_action, key_env, key_actor = jax.random.split(key, 3)
        policy, hidden_state = actor(
            runner_state.observation, runner_state.hidden_state, runner_state.is_first, key_actor
        )
        action = policy.sample(key_action)
        state, timestep = env.step(key_env, runner_state.state, action)
        ended = timestep.terminated | timestep.truncated
        total = runner_state.returns + timestep.reward.mean(-1)
        counted = ended & valid
        stats = RolloutStats(valid.sum(), counted.sum(), jnp.where(counted, total, 0.0).sum())
        record = {
            "observation": runner_state.observation,
            "is_first": runner_state.is_first,
            "valid": valid,
            "hidden_state": runner_state.hidden_state,
            "action": action,
            "policy": policy,
            "reward": timestep.reward,
            "terminated": timestep.terminated,
            "truncated": timestep.truncated,
            "final": timestep.final,
        }
        hidden_state = actor.update_state(hidden_state, action)
        runner_state = RunnerState(
            state, timestep.observation, ended, hidden_state, jnp.where(ended, 0.0, total)
        )
        return (runner_state, valid & ~ended if whole_episodes else valid), (record, stats)

    start = (runner_state, jnp.ones(env.num_envs, bool))
    (runner_state, _), (record, stats) = jax.lax.scan(
        step, start, jax.random.split(key_steps, length)
    )
    trajectory = Trajectory(
        **record,
        last=runner_state.observation,
        last_is_first=runner_state.is_first,
        last_hidden_state=runner_state.hidden_state,
    )
    return runner_state, trajectory, jax.tree.map(lambda x: x.sum(0), stats)
