"""Host environments in two halves: the pool steps one while the other's actions are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.processes.pool import Pool
from perla.envs.protocol import Observation, TimeStep
from perla.nets.actors import AnyActor
from perla.types import Array, Key


class HostEnvs:
    """The environments of all seeds and their state between two steps, `[seed, env, ...]`.

    Every half is a group of the `pool`. `act` computes the actions of all seeds; `observation` has
    the shapes of an observation.
    """

    def __init__(self, act: Any, pool: Pool, groups: list[int], observation: Observation) -> None:
        self.act, self.pool, self.groups = act, pool, groups
        self.num_seeds, self.num_envs = observation.obs.shape[:2]
        self.halves = halves(self.num_envs)
        self.observation = observation
        shape = (self.num_seeds, self.num_envs)
        self.returns = np.zeros(shape)
        """The returns of the current episodes so far: undiscounted, averaged over agents."""
        self.stepping = [False] * len(groups)
        """The halves that the pool is stepping."""
        self.is_first = np.ones(shape, bool)
        """The observation is the first of an episode."""
        self.active = np.ones(shape, bool)
        """The environments that took part in the last step."""
        self.dropped = np.zeros(self.num_seeds, np.int32)
        """The episodes of each seed that were dropped since the last `take_dropped`."""
        self.hidden_state: np.ndarray | None = None
        """The actors' hidden states `[seed, env, agent, hidden]`."""

    def reset(self, keys: Key[Array, " seed"]) -> None:
        """Begin an episode in every environment, seeded from its seed's key and its index."""
        words = np.asarray(jax.random.key_data(keys)).tolist()
        numbers = range(self.num_envs)
        for half, group in zip(self.halves, self.groups, strict=True):
            self.pool.reset(group, [(*seed, env) for seed in words for env in numbers[half]])
        for half, group in zip(self.halves, self.groups, strict=True):
            timestep, _ = self.pool.receive(group)
            write_observation(self.observation, np.s_[:, half], self._by_seed(timestep.observation))
        self.is_first[:], self.returns[:] = True, 0.0

    def send(
        self,
        half: int,
        actors: AnyActor,
        keys: Key[Array, " seed"],
        time: int,
        greedy: np.ndarray,
        active: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Begin a step of the `active` environments of a `half`; `actors` holds one for each seed.

        Returns the actions of all environments of the half, most likely ones where `greedy` and
        sampled ones otherwise, and the hidden states before them.
        """
        if self.hidden_state is None:
            actor = jax.tree.map(lambda x: x[0], actors)
            self.hidden_state = np.stack([actor.initial_state((self.num_envs,))] * self.num_seeds)
        index = np.s_[:, self.halves[half]]
        before = self.hidden_state[index].copy()
        action, hidden_state = self.act(
            actors, index_observation(self.observation, index), before, self.is_first[index],
            greedy[index], keys, np.int32(time), np.int32(half),
        )  # fmt: skip
        action = np.asarray(action)
        self.active[index] = active[index]
        self.pool.step(
            self.groups[half], action.reshape(-1, *action.shape[2:]), active[index].ravel()
        )
        self.stepping[half] = True
        self.hidden_state[index] = np.where(active[index][..., None, None], hidden_state, before)
        return action, before

    def receive(self, half: int) -> tuple[TimeStep, np.ndarray, np.ndarray]:
        """Finish the step of a `half`: the time step, where an episode ended, and where one was
        dropped because its environment failed.

        Inactive environments are unchanged: no reward, no end.
        """
        index = np.s_[:, self.halves[half]]
        timestep, dropped = self.pool.receive(self.groups[half])
        timestep, dropped = self._by_seed(timestep), dropped.reshape(self.num_seeds, -1)
        self.dropped += dropped.sum(1, dtype=np.int32)
        self.stepping[half] = False
        idle = ~self.active[index] & ~dropped
        reward = np.where(idle[..., None], np.float32(0.0), timestep.reward)
        terminated, truncated = timestep.terminated & ~idle, timestep.truncated & ~idle
        write_observation(self.observation, index, timestep.observation)
        is_first = terminated | truncated | dropped
        self.is_first[index] = np.where(idle, self.is_first[index], is_first)
        timestep = timestep._replace(reward=reward, terminated=terminated, truncated=truncated)
        return timestep, (terminated | truncated) & ~dropped, dropped

    def take_dropped(self) -> np.ndarray:
        """The number of each seed's episodes that were dropped since the last call."""
        dropped, self.dropped = self.dropped, np.zeros_like(self.dropped)
        return dropped

    def _by_seed(self, tree: Any) -> Any:
        """`[seed * env, ...]` to `[seed, env, ...]`."""
        return jax.tree.map(lambda x: x.reshape(self.num_seeds, -1, *x.shape[1:]), tree)


def halves(num_envs: int) -> list[slice]:
    """The indices of the environments in two halves, or in one if there is a single environment."""
    first = num_envs - num_envs // 2
    return [half for half in (slice(0, first), slice(first, num_envs)) if half.start < half.stop]


def index_observation(observation: Observation, index: Any) -> Observation:
    """Views of the observation's arrays at `index`."""
    return Observation(*(None if x is None else x[index] for x in observation))


def write_observation(target: Observation, index: Any, source: Observation) -> None:
    """Write `source` into the arrays of `target` at `index`."""
    for old, new in zip(target, source, strict=True):
        if old is not None:
            old[index] = new


@jax.jit
def stack_trees(trees: Sequence[Any]) -> Any:
    """Trees of the same structure, stacked along a new first axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)
