"""States that a learner's rollouts visit, with their places in the rollouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perla.algos.alive import loss_mask
from perla.algos.protocol import Trajectory
from perla.envs.protocol import Observation
from perla.envs.wrappers import AutoReset
from perla.loops.rollout import RunnerState, begin, rollout
from perla.types import Array, Bool, Float, Int, PRNGKeyArray
from perla.variance.critic import FixedLearner


class Visits(NamedTuple):
    """One state of each of many rollouts, and one agent in it, at random.

    A sum over all steps and agents of a rollout is estimated by `weight` times its term at the
    visit, and a mean by the ratio of such sums to those of `counted`.
    """

    state: Any
    """The environment's state `[visit, ...]`."""
    observation: Observation
    hidden_state: Float[Array, "visit agent hidden"]
    """The actor's hidden state before the step."""
    is_first: Bool[Array, " visit"]
    critic_hidden_state: Float[Array, "visit agent hidden"]
    """The hidden state, after the step, of the critic from which returns bootstrap."""
    agent: Int[Array, " visit"]
    left: Int[Array, " visit"]
    """Steps to the end of the rollout, this one included."""
    value: Float[Array, " visit"]
    """The critic's value of the state to the agent, in the learner's units of rewards."""
    counted: Float[Array, " visit"]
    """Steps that enter the losses, of all agents of the rollout."""
    now: Float[Array, " visit"]
    """The weight of the visit as a state whose advantage is estimated; 0 if the agent is dead."""
    later: Float[Array, "visit lam"]
    """The weight of its random events in the advantages of earlier states of the rollout."""
    rewarded: Bool[Array, " visit"]
    """The rollout had a reward that is not 0."""


def collect(
    envs: AutoReset,
    fixed: FixedLearner,
    runner_state: RunnerState,
    key: PRNGKeyArray,
    lambdas: Float[Array, " lam"],
) -> tuple[FixedLearner, RunnerState, Visits]:
    """One rollout of every environment, as training makes them, and a visit of each; also the
    learner and the environments after it."""
    config = fixed.algorithm.config
    key_begin, key_rollout, key_time, key_agent = jax.random.split(key, 4)
    whole_episodes = config.rollout_length is None
    if whole_episodes:
        runner_state = begin(envs, fixed.actor, key_begin)
    length = config.length(envs.spec.limit)
    runner_state, before, trajectory = _record(envs, fixed, runner_state, key_rollout, length)
    if whole_episodes:  # Training learns from no step after the episode's end.
        ended = trajectory.terminated | trajectory.truncated
        trajectory = trajectory._replace(valid=jnp.cumsum(ended, 0) - ended == 0)

    values, hidden_states = fixed.unroll(fixed.learner.critic, trajectory)
    last = hidden_states[-1]
    if config.target is not None:
        _, hidden_states = fixed.unroll(fixed.bootstrapping, trajectory)
    valid = trajectory.valid
    mask = loss_mask(valid, trajectory.observation)
    counted = jnp.broadcast_to(mask if mask.ndim == 3 else mask[..., None], values.shape)

    env = jnp.arange(envs.num_envs)
    time = jax.random.categorical(key_time, jnp.where(valid, 0.0, -jnp.inf), axis=0)
    agent = jax.random.randint(key_agent, env.shape, 0, envs.spec.agents)
    at = time, env, agent
    terms = valid.sum(0) * envs.spec.agents
    over_lam = jax.vmap(events_of_earlier, (None, None, 0), 1)
    over_agents = jax.vmap(over_lam, (1, None, None), 1)
    over_envs = jax.vmap(over_agents, (1, 1, None), 1)
    later = over_envs(counted, trajectory.is_first, config.gamma * lambdas)
    state, observation, hidden_state, is_first, critic_hidden_state = jax.tree.map(
        lambda x: x[time, env],
        (before.state, before.observation, before.hidden_state, before.is_first, hidden_states),
    )
    visits = Visits(
        state,
        observation,
        hidden_state,
        is_first,
        critic_hidden_state,
        agent=agent,
        left=length - time,
        value=values[at],
        counted=counted.sum((0, 2)).astype(float),
        now=(terms * counted[at]).astype(float),
        later=terms[:, None] * later[at],
        rewarded=((trajectory.reward != 0).any(-1) & valid).any(0),
    )
    learner = replace(fixed.learner, critic_hidden_state=last)
    return FixedLearner(fixed.algorithm, learner), runner_state, visits


def _record(
    envs: AutoReset,
    fixed: FixedLearner,
    runner_state: RunnerState,
    key: PRNGKeyArray,
    length: int,
) -> tuple[RunnerState, RunnerState, Trajectory]:
    """A rollout: the state after it, those before each step, and the trajectory."""

    def step(before: RunnerState, key: PRNGKeyArray):
        after, trajectory, _ = rollout(envs, fixed.actor, before, key, 1)
        return after, (before, trajectory)

    after, (before, steps) = jax.lax.scan(step, runner_state, jax.random.split(key, length))
    names = ("last", "last_is_first", "last_hidden_state")
    final = {name: jax.tree.map(lambda x: x[-1], getattr(steps, name)) for name in names}
    others = {name: getattr(steps, name) for name in Trajectory._fields if name not in names}
    joined = jax.tree.map(lambda x: x[:, 0], others)
    return after, before, Trajectory(**joined, **final)


def events_of_earlier(
    counted: Bool[Array, " time"], is_first: Bool[Array, " time"], decay: Float[Array, ""]
) -> Float[Array, " time"]:
    """Σ_{k≥1} (γλ)²ᵏ over the steps k before each one that are in its episode and rollout and enter
    the losses: the weight of a step's random events in the variance of earlier returns. `decay` is
    γλ."""

    def step(carry: tuple[Array, Array], inputs: tuple[Array, Array]):
        weight, before = carry
        counted, first = inputs
        # c_t = (γλ)² (c_{t−1} + 1), and 0 at the beginning of an episode
        weight = jnp.where(first, 0.0, decay**2 * (weight + before))
        return (weight, counted), weight

    start = jnp.zeros(()), jnp.zeros((), bool)
    return jax.lax.scan(step, start, (counted, is_first))[1]
