"""Rollouts: the actor steps all environments for a number of steps."""

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
    """The environments and the actor between two steps."""

    state: Any
    """The states of the environments `[env, ...]`."""
    observation: Observation
    is_first: Bool[Array, " env"]
    """The observation is the first of an episode."""
    hidden_state: Float[Array, "env agent hidden"]
    """The actor's hidden state."""
    returns: Float[Array, " env"]
    """The returns of the current episodes so far: undiscounted, averaged over agents."""


class RolloutStats(NamedTuple):
    """Counts and returns of a rollout."""

    steps: Int[Array, ""]
    """Environment steps, summed over environments, without padding."""
    episodes: Int[Array, ""]
    """Finished episodes."""
    returns: Float[Array, ""]
    """The sum of their returns."""


def begin(env: AutoReset, actor: AnyActor, key: PRNGKeyArray) -> RunnerState:
    """The state after a reset of every environment."""
    state, observation = env.reset(key)
    num_envs = env.num_envs
    return RunnerState(
        state,
        observation,
        jnp.ones(num_envs, bool),
        actor.initial_state((num_envs,)),
        jnp.zeros(num_envs),
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
    """Step every environment `length` times with actions sampled from the policy.

    With `whole_episodes` every environment is reset first, and the steps after its episode's end
    are padding: not `valid` in the trajectory and not counted.
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
        returns = runner_state.returns + timestep.reward.mean(-1)
        finished = ended & valid
        stats = RolloutStats(valid.sum(), finished.sum(), jnp.where(finished, returns, 0.0).sum())
        record = {
            "observation": runner_state.observation,
            "is_first": runner_state.is_first,
            "valid": valid,
            "hidden_state": runner_state.hidden_state,
            "action": action,
            "policy": policy.given(action),
            "reward": timestep.reward,
            "terminated": timestep.terminated,
            "truncated": timestep.truncated,
            "final": timestep.final,
        }
        hidden_state = actor.update_state(hidden_state, action)
        runner_state = RunnerState(
            state, timestep.observation, ended, hidden_state, jnp.where(ended, 0.0, returns)
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
