"""Check of an exported policy: it chooses the actions of the policy that it was made from."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.protocol import Env, HostEnv, Observation
from perla.errors import UserError
from perla.nets.actors import AnyActor
from perla.policies.export import Step, hidden_width
from perla.policies.policy import Policy

EPISODES = 16
"""Episodes that are played."""
TOLERANCE = 1e-3
"""The share of discrete actions that may differ, where two are nearly as good and roundings decide;
the difference of continuous ones."""


def check(step: Step, env: Env | HostEnv, actor: AnyActor, episodes: int = EPISODES) -> int:
    """The number of greedy actions in `episodes` that the exported `step` chooses as `actor` does.

    Raises `UserError` if it chooses others.
    """
    spec, policy = env.spec, Policy(actor, env.spec)
    hidden_state = np.zeros((0, spec.agents, hidden_width(actor)), np.float32)
    counts = np.zeros(2, int)

    def act(observation: Observation, playing: np.ndarray, *, first: bool) -> np.ndarray:
        nonlocal hidden_state
        envs = len(playing)
        if first:
            policy.reset()
            hidden_state = np.zeros((envs, *hidden_state.shape[1:]), np.float32)
        alive = observation.alive if spec.mortal else None
        wanted = policy.act(observation.obs, avail=observation.avail, alive=alive)
        inputs = (observation.obs, observation.avail, hidden_state, np.full(envs, first))
        action, hidden_state = step(inputs if alive is None else (*inputs, alive))
        if spec.continuous:
            is_other = np.abs(spec.bounded(action) - wanted).max(-1) > TOLERANCE
        else:
            is_other = action != wanted
        counted = playing[:, None] & (np.ones_like(is_other) if alive is None else alive)
        counts[:] += counted.sum(), (is_other & counted).sum()
        return np.asarray(wanted)

    if isinstance(env, HostEnv):
        _play_host(env, episodes, act)
    else:
        _play_jax(env, episodes, act)
    chosen, differing = map(int, counts)
    if differing > TOLERANCE * chosen:
        raise UserError(
            f"the export chooses other actions than the policy: {differing} of {chosen}"
        )
    return chosen


def _play_host(env: HostEnv, episodes: int, act: Callable[..., np.ndarray]) -> None:
    """Play `episodes` one after another, with the actions of `act`."""
    for seed in range(episodes):
        observation, first, done = env.reset(seed), True, False
        while not done:
            batch = Observation(*(None if x is None else np.asarray(x)[None] for x in observation))
            timestep = env.step(act(batch, np.ones(1, bool), first=first)[0])
            observation, first = timestep.observation, False
            done = bool(timestep.terminated or timestep.truncated)


def _play_jax(env: Env, episodes: int, act: Callable[..., np.ndarray]) -> None:
    """Play `episodes` side by side, with the actions of `act`."""
    key_reset, key_run = jax.random.split(jax.random.key(0))
    reset, step = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))
    state, observation = reset(jax.random.split(key_reset, episodes))
    playing, time = np.ones(episodes, bool), 0
    while playing.any():
        seen = Observation(*(None if x is None else np.asarray(x) for x in observation))
        action = jnp.asarray(act(seen, playing, first=time == 0))
        keys = jax.random.split(jax.random.fold_in(key_run, time), episodes)
        state, timestep = step(keys, state, action)
        observation, time = timestep.observation, time + 1
        playing = playing & ~np.asarray(timestep.terminated | timestep.truncated)
