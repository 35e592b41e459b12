"""Episodes of scripted policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.protocol import Env, HostEnv
from perla.envs.scripts import Script
from perla.loops.evaluate import Episodes, episode_limit
from perla.types import Array, PRNGKeyArray


def play(
    env: Env,
    script: Script,
    key: PRNGKeyArray,
    episodes: int,
    measure: Callable[[Any], Mapping[str, Array]] = lambda state: {},
) -> tuple[Episodes, Mapping[str, Array]]:
    """`episodes` episodes with a script, and the quantities that `measure` returns of the last
    state of each."""
    limit = episode_limit(env)
    key_reset, key_run = jax.random.split(key)
    state, observation = jax.vmap(env.reset)(jax.random.split(key_reset, episodes))
    looker: Any = env  # Scripts that look are only made for environments with a battlefield.

    def act(key, state, observation):
        field = looker.battlefield(state) if script.looks else None
        return script.act(key, field, observation.avail)

    def running(carry):
        return (carry[0] < limit) & ~carry[1].all()

    def step(carry):
        time, done, state, observation, result, measured = carry
        key_action, key_env = jax.random.split(jax.random.fold_in(key_run, time))
        action = jax.vmap(act)(jax.random.split(key_action, episodes), state, observation)
        keys = jax.random.split(key_env, episodes)
        state, timestep = jax.vmap(env.step)(keys, state, action)
        now = jax.vmap(measure)(state)
        measured = jax.tree.map(partial(_unless, done), measured, now)
        result = result.add(timestep, done)
        done = done | timestep.terminated | timestep.truncated
        return time + 1, done, state, timestep.observation, result, measured

    empty = Episodes.begin(env, episodes)
    start = (jnp.int32(0), jnp.zeros(episodes, bool), state, observation, empty)
    *_, result, measured = jax.lax.while_loop(running, step, (*start, jax.vmap(measure)(state)))
    return result, measured


def _unless(done: Array, old: Array, new: Array) -> Array:
    """`old` of the episodes that are `done`, and `new` of the others."""
    return jnp.where(done.reshape(-1, *(1 for _ in old.shape[1:])), old, new)


def play_host(env: HostEnv, script: Script, key: PRNGKeyArray, episodes: int) -> Episodes:
    """`episodes` episodes with a script in a host environment, one after another."""
    seeds = np.random.SeedSequence(np.asarray(jax.random.key_data(key)).ravel().tolist())
    looker: Any = env
    act, returns, lengths, wins = jax.jit(script.act), [], [], []
    for episode, seed in enumerate(seeds.generate_state(episodes) >> 1):
        observation, total, time, ended = env.reset(int(seed)), 0.0, 0, False
        key_episode = jax.random.fold_in(key, episode)
        while not ended:
            field = looker.battlefield() if script.looks else None
            action = act(jax.random.fold_in(key_episode, time), field, observation.avail)
            timestep = env.step(np.asarray(action))
            observation, time = timestep.observation, time + 1
            total += float(np.mean(timestep.reward))
            ended = bool(timestep.terminated | timestep.truncated)
        returns.append(total)
        lengths.append(time)
        wins.append(np.nan if timestep.won is None else float(timestep.won))
    return Episodes(
        jnp.float32(returns),
        jnp.int32(lengths),
        jnp.float32(wins),
        jnp.zeros(env.spec.agents, bool),
    )
