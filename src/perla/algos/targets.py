"""Targets of an actor-critic's critic: returns that bootstrap from its values."""

from __future__ import annotations

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
from perla.types import Actions, Array, Float, PRNGKeyArray


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

    A truncated episode has lasted `limit` steps, so a rollout holds few of them; only their final
    observations are gathered and evaluated. Actions there are sampled from the policies, because
    none has been taken.
    """
    time, env = trajectory.truncated.shape
    most = 0 if spec.limit is None else env * (1 + (time - 1) // spec.limit)
    (ended,) = jnp.nonzero(trajectory.truncated.reshape(-1), size=most, fill_value=time * env)

    def gather(steps, last):
        steps = steps.reshape(time * env, *steps.shape[2:])
        return jnp.concatenate([steps.at[ended].get(mode="clip"), last])

    observation = jax.tree.map(gather, trajectory.final, trajectory.last)
    is_first = jnp.concatenate([jnp.zeros(most, bool), trajectory.last_is_first])
    actor_hidden_states = jnp.concatenate(
        [trajectory.hidden_state[1:], trajectory.last_hidden_state[None]]
    )
    policy, _ = actor(
        observation, gather(actor_hidden_states, trajectory.last_hidden_state), is_first
    )
    context, _ = critic.context(
        jax.tree.map(lambda x: x[None], observation),
        gather(hidden_states, hidden_states[-1]),
        is_first[None],
    )
    action = policy.sample(apart(key))
    estimated = value.estimate(critic, context[0], policy, key, schedule, action)
    values = bootstrap_values(value, spec, estimated, action, observation)
    final = jnp.zeros((time * env, spec.agents)).at[ended].set(values[:most], mode="drop")
    return final.reshape(time, env, -1), values[most:]


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
