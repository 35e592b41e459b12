"""Targets of an actor-critic's critic: returns that bootstrap from its values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from perla import returns
from perla.algos.alive import mask_dead_agents
from perla.algos.protocol import Trajectory
from perla.algos.values import Estimate, MarginalSchedule, Value
from perla.envs.protocol import Observation, Spec
from perla.keys import apart
from perla.methods.ppo import GAE, NStep
from perla.nets.actors import Actor
from perla.nets.critics import AnyCritic
from perla.types import Actions, Array, Bool, Float, Int, PRNGKeyArray


def bootstrap_values(
    value: Value, spec: Spec, estimated: Estimate, action: Actions, observation: Observation
) -> Float[Array, "*batch agent"]:
    """The values from which returns bootstrap at these states, in the critic's units."""
    values = value.bootstrap(estimated, action)
    return mask_dead_agents(values, observation, common=spec.reward == "common")


def boundary_values(
    value: Value,
    spec: Spec,
    actor: Actor,
    critic: AnyCritic,
    trajectory: Trajectory,
    hidden_states: Float[Array, "time env agent hidden"],
    key: PRNGKeyArray,
    schedule: MarginalSchedule,
) -> tuple[Float[Array, "time env agent"], Float[Array, "env agent"]]:
    """Bootstrap values of truncated episodes' final observations (zero at all other steps), and of
    the observation after the last step.

    Only the final observations of truncated episodes are gathered and evaluated: together as many
    as there can be if episodes are truncated at their limit, and more passes follow if episodes
    were truncated before. Actions there are sampled from the policies, because none has been taken.
    """
    time, env = trajectory.truncated.shape
    may_truncate = spec.early_truncation or spec.limit is not None
    most = env * (1 + (time - 1) // (spec.limit or time)) if may_truncate else 0
    ends, last = _boundary_states(trajectory, hidden_states)

    def values_at(states: Any, key: PRNGKeyArray) -> Float[Array, "state agent"]:
        observation, actor_hidden_state, critic_hidden_state, is_first = states
        policy, _ = actor(observation, actor_hidden_state, is_first)
        context, _ = critic.context(
            jax.tree.map(lambda x: x[None], observation), critic_hidden_state, is_first[None]
        )
        action = policy.sample(apart(key))
        estimated = value.estimate(critic, context[0], policy, key, schedule, action)
        return bootstrap_values(value, spec, estimated, action, observation)

    def gather(todo: Bool[Array, " step"]) -> tuple[Int[Array, " state"], Any]:
        (steps,) = jnp.nonzero(todo, size=most, fill_value=time * env)
        return steps, jax.tree.map(lambda x: x.at[steps].get(mode="clip"), ends)

    def scatter(steps: Array, todo: Array, final: Array, values: Array) -> tuple[Array, Array]:
        final = final.at[steps].set(values, mode="drop")
        return todo.at[steps].set(False, mode="drop"), final

    todo = (trajectory.truncated & trajectory.valid).reshape(-1)
    final = jnp.zeros((time * env, spec.agents))
    steps, states = gather(todo)
    values = values_at(jax.tree.map(lambda *x: jnp.concatenate(x), states, last), key)
    todo, final = scatter(steps, todo, final, values[:most])
    if spec.early_truncation:

        def evaluate_more(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            todo, final, key = carry
            key = apart(key, 1)
            steps, states = gather(todo)
            return *scatter(steps, todo, final, values_at(states, key)), key

        _, final, _ = jax.lax.while_loop(
            lambda carry: carry[0].any(), evaluate_more, (todo, final, key)
        )
    return final.reshape(time, env, -1), values[most:]


def _boundary_states(
    trajectory: Trajectory, hidden_states: Float[Array, "time env agent hidden"]
) -> tuple[Any, Any]:
    """The inputs of actor and critic at the final observations of all steps `[time * env, ...]` and
    after the last step `[env, ...]`: observation, both hidden states, and `is_first`."""
    time, env = trajectory.truncated.shape
    actor_hidden_state = trajectory.last_hidden_state
    ends = (
        trajectory.final,
        jnp.concatenate([trajectory.hidden_state[1:], actor_hidden_state[None]]),
        hidden_states,
        jnp.zeros((time, env), bool),
    )
    ends = jax.tree.map(lambda x: x.reshape(time * env, *x.shape[2:]), ends)
    return ends, (trajectory.last, actor_hidden_state, hidden_states[-1], trajectory.last_is_first)


def compute_returns(
    kind: GAE | NStep,
    gamma: float,
    rewards: Float[Array, "time env agent"],
    values: Float[Array, "states env agent"],
    final_values: Float[Array, "time env agent"],
    trajectory: Trajectory,
) -> Float[Array, "time env agent"]:
    """The n-step or λ-returns of every agent in every environment.

    `values` are of all states, one more than there are steps; `final_values` are of truncated
    episodes' final observations.
    """

    def one(rewards, values, final_values, terminated, truncated):
        next_values = returns.successors(values, final_values, terminated, truncated)
        ended = terminated | truncated
        match kind:
            case NStep(n_step=n):
                return returns.n_step(rewards, next_values, ended, gamma=gamma, n=n)
            case GAE(gae_lambda=lam):
                return returns.lambda_returns(rewards, next_values, ended, gamma=gamma, lam=lam)

    each_agent = jax.vmap(one, in_axes=(1, 1, 1, None, None), out_axes=1)
    each_env = jax.vmap(each_agent, in_axes=1, out_axes=1)
    return each_env(rewards, values, final_values, trajectory.terminated, trajectory.truncated)
