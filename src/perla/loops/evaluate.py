"""Evaluation of a fixed policy over whole episodes."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla import parallel
from perla.distributions import JointPolicy
from perla.envs.protocol import Env, HostEnv, Observation, TimeStep
from perla.errors import UserError
from perla.nets.actors import AnyActor
from perla.types import Array, Bool, Float, Int, PRNGKeyArray


class Episodes(NamedTuple):
    """Finished episodes."""

    returns: Float[Array, " episode"]
    """Undiscounted returns, averaged over agents (all equal if the reward is common)."""
    lengths: Int[Array, " episode"]
    """Steps."""
    wins: Float[Array, " episode"]
    """1 if the episode was won, 0 if not; NaN if the environment does not report it."""
    faulty: Bool[Array, " agent"]
    """Agents that received a reward that is not finite."""

    @classmethod
    def begin(cls, env: Env, episodes: int) -> Episodes:
        """Episodes before their first step."""
        return cls(
            jnp.zeros(episodes),
            jnp.zeros(episodes, jnp.int32),
            jnp.full(episodes, jnp.nan),
            jnp.zeros(env.spec.agents, bool),
        )

    def of_all_shares(self, count: int) -> Episodes:
        """The first `count` of the episodes that all devices have played."""
        returns, lengths, wins = (x[:count] for x in parallel.gathered(self[:3]))
        return Episodes(returns, lengths, wins, parallel.of_all(self.faulty).any(0))

    def add(self, timestep: TimeStep, done: Bool[Array, " episode"]) -> Episodes:
        """The episodes after one more step of those that are not `done`."""
        return Episodes(
            self.returns + jnp.where(done, 0.0, timestep.reward.mean(-1)),
            self.lengths + ~done,
            # The last step of the episode counts; later ones are padding.
            self.wins if timestep.won is None else jnp.where(done, self.wins, timestep.won),
            self.faulty | (~jnp.isfinite(timestep.reward) & ~done[:, None]).any(0),
        )


class Playing(NamedTuple):
    """Episodes that are being played in parallel."""

    time: Int[Array, ""]
    """Steps so far."""
    done: Bool[Array, " episode"]
    """Episodes that have ended; their later steps are padding."""
    state: Any
    """The state of each environment."""
    observation: Observation
    hidden_state: Any
    """The actor's hidden state before the next step."""
    result: Episodes
    """The results so far."""


class Played(NamedTuple):
    """One step of all episodes."""

    policy: JointPolicy
    """The policies of all episodes."""
    action: Any
    """The actions, `[episode, agent]`, before they are clipped if they are continuous."""
    timestep: TimeStep


def evaluate(
    env: Env, actor: AnyActor, key: PRNGKeyArray, greedy: Bool[Array, " episode"]
) -> Episodes:
    """One episode for each entry of `greedy`, with the most likely actions if it is true and with
    sampled ones otherwise.

    The episodes run in parallel until the last one ends.
    """
    limit = episode_limit(env)
    key_run, start = begin(env, actor, key, greedy.shape[0])

    def running(playing: Playing):
        return (playing.time < limit) & ~playing.done.all()

    def step(playing: Playing):
        return play_step(env, actor, key_run, greedy, playing)[0]

    return jax.lax.while_loop(running, step, start).result


def begin(
    env: Env, actor: AnyActor, key: PRNGKeyArray, episodes: int
) -> tuple[PRNGKeyArray, Playing]:
    """The key of all steps, and as many new episodes."""
    key_reset, key_run = jax.random.split(key)
    state, observation = jax.vmap(env.reset)(jax.random.split(key_reset, episodes))
    result = Episodes.begin(env, episodes)
    hidden_state = actor.initial_state((episodes,))
    done = jnp.zeros(episodes, bool)
    return key_run, Playing(jnp.int32(0), done, state, observation, hidden_state, result)


def play_step(
    env: Env,
    actor: AnyActor,
    key_run: PRNGKeyArray,
    greedy: Bool[Array, " episode"],
    playing: Playing,
) -> tuple[Playing, Played]:
    """One step of all episodes: greedy where `greedy` is true, and sampled elsewhere."""
    time, done, state, observation, hidden_state, result = playing
    episodes = greedy.shape[0]
    key_action, key_env, key_actor = jax.random.split(jax.random.fold_in(key_run, time), 3)
    is_first = jnp.full(episodes, time == 0)
    policy, hidden_state = actor(observation, hidden_state, is_first, key_actor)
    mode = policy.mode()
    is_greedy = greedy.reshape(-1, *(1 for _ in mode.shape[1:]))
    action = jnp.where(is_greedy, mode, policy.sample(key_action))
    keys = jax.random.split(key_env, episodes)
    state, timestep = jax.vmap(env.step)(keys, state, env.spec.bounded(action))
    result = result.add(timestep, done)
    done = done | timestep.terminated | timestep.truncated
    hidden_state = actor.update_state(hidden_state, action)
    after = Playing(time + 1, done, state, timestep.observation, hidden_state, result)
    return after, Played(policy, action, timestep)


def watch(env: Env, actor: AnyActor, key: PRNGKeyArray, *, greedy: bool = True) -> list[Any]:
    """The states of one episode in order, for rendering. Further episodes compile nothing."""
    same = _Same(env)
    key_run, state, observation = _watch_reset(same, key)
    hidden_state = actor.initial_state(())
    states = [state]
    for time in range(episode_limit(env)):
        state, observation, hidden_state, over = _watch_step(
            same, actor, key_run, np.int32(time), state, observation, hidden_state, greedy
        )
        states.append(state)
        if over:
            break
    return states


class _Same:
    """An environment as a static argument of compiled functions, equal to itself alone."""

    def __init__(self, env: Env) -> None:
        self.env = env

    def __hash__(self) -> int:
        return id(self.env)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.env is other.env


@partial(jax.jit, static_argnums=0)
def _watch_reset(same, key):
    key_reset, key_run = jax.random.split(key)
    return key_run, *same.env.reset(key_reset)


@partial(jax.jit, static_argnums=(0, 7))
def _watch_step(same, actor, key_run, time, state, observation, hidden_state, greedy):
    key_action, key_env, key_actor = jax.random.split(jax.random.fold_in(key_run, time), 3)
    policy, hidden_state = actor(observation, hidden_state, time == 0, key_actor)
    action = policy.mode() if greedy else policy.sample(key_action)
    state, timestep = same.env.step(key_env, state, same.env.spec.bounded(action))
    hidden_state = actor.update_state(hidden_state, action)
    return state, timestep.observation, hidden_state, timestep.terminated | timestep.truncated


def episode_limit(env: Env | HostEnv) -> int:
    """The step limit of an episode; raises `UserError` if there is none."""
    if env.spec.limit is None:
        raise UserError(f"{env.spec.id}: episodes without a step limit cannot be evaluated")
    return env.spec.limit
