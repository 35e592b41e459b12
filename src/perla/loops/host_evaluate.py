"""Evaluation of fixed policies in host environments over whole episodes."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from perla.loops.evaluate import Episodes
from perla.loops.host_envs import HostEnvs, stack_trees
from perla.nets.actors import AnyActor
from perla.types import PRNGKeyArray


def evaluate(
    envs: HostEnvs, actors: Sequence[tuple[AnyActor, PRNGKeyArray]], greedy: np.ndarray
) -> list[Episodes]:
    """For each actor with its key, one episode for each entry of `greedy`, with the most likely
    actions if it is true and with sampled ones otherwise. At most one actor per seed.

    Every environment plays a fixed share of the episodes: taking those that end first would prefer
    short ones.
    """
    total, agents = len(greedy), envs.observation.obs.shape[2]
    unused = envs.num_seeds - len(actors)
    stacked, keys = stack_trees([*actors, *actors[:1] * unused])
    shape = envs.num_seeds, total
    returns, lengths, wins = np.zeros(shape), np.zeros(shape, np.int32), np.zeros(shape)
    episode = np.tile(np.arange(envs.num_envs), (envs.num_seeds, 1))
    """The number of the episode that each environment plays, at least `total` after its last."""
    episode[len(actors) :] = total
    envs.reset(keys)
    time = 0
    while (episode < total).any():
        for half, columns in enumerate(envs.halves):
            index = np.s_[:, columns]
            if envs.stepping[half]:
                timestep, ended, dropped = envs.receive(half)
                active, numbers = envs.active[index], episode[index]
                returns[_entries(active, numbers)] += timestep.reward[active].mean(-1)
                lengths[_entries(active, numbers)] += 1
                returns[_entries(active & dropped, numbers)] = 0.0
                lengths[_entries(active & dropped, numbers)] = 0
                wins[_entries(ended, numbers)] = np.asarray(timestep.won)[ended]
                episode[index] += envs.num_envs * ended
            active = episode < total
            if active[index].any():
                envs.send(half, stacked, keys, time, greedy[np.minimum(episode, total - 1)], active)
        time += 1
    no_faults = jnp.zeros(agents, bool)  # The pool's workers refuse rewards that are not finite.
    return [
        Episodes(jnp.float32(returns[i]), jnp.asarray(lengths[i]), jnp.float32(wins[i]), no_faults)
        for i in range(len(actors))
    ]


def _entries(mask: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices (seed, episode) of the environments in `mask`, whose episodes have `numbers`."""
    return np.nonzero(mask)[0], numbers[mask]
