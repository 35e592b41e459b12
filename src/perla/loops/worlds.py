"""All copies of a host world, in two halves: while one is stepped, the other is acted in."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from perla.envs.processes.pool import Pool
from perla.envs.protocol import Observation, TimeStep
from perla.nets.actors import AnyActor
from perla.types import Array, Key


class Worlds:
    """Every seed's copies of a world in two halves, and where they stand between two steps,
    `[seed, env, ...]`."""

    def __init__(self, act: Any, pool: Pool, groups: list[int], nothing: Observation) -> None:
        self.act, self.pool, self.groups = act, pool, groups
        self.seeds, self.copies = nothing.obs.shape[:2]
        self.halves = halves(self.copies)
        self.observation = nothing
        shape = (self.seeds, self.copies)
        self.returns = np.zeros(shape)
        """The rewards of the current episodes so far, averaged over agents."""
        self.away = [False] * len(groups)
        """Halves that are being stepped."""
        self.is_first = np.ones(shape, bool)
        """An episode is about to begin."""
        self.active = np.ones(shape, bool)
        """What the last step was for."""
        self.hidden_state: np.ndarray | None = None
        """The actors' memory `[seed, env, agent, hidden]`."""

    def begin(self, keys: Key[Array, " seed"]) -> None:
        """An episode in every copy; the chance of a seed's follows from its key."""
        words = np.asarray(jax.random.key_data(keys)).tolist()
        numbers = range(self.copies)
        for own, group in zip(self.halves, self.groups, strict=True):
            self.pool.reset(group, [(*seed, copy) for seed in words for copy in numbers[own]])
        for own, group in zip(self.halves, self.groups, strict=True):
            timestep, _ = self.pool.receive(group)
            fill(self.observation, np.s_[:, own], self._by_seed(timestep.observation))
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
        """Act in the `active` copies of a `half`, greedily or not, every seed by its own of the
        `actors`; the actions of all copies in it, and the memories that they were chosen with."""
        if self.hidden_state is None:
            actor = jax.tree.map(lambda x: x[0], actors)
            self.hidden_state = np.stack([actor.initial_state((self.copies,))] * self.seeds)
        own = np.s_[:, self.halves[half]]
        before = self.hidden_state[own].copy()
        action, hidden_state = self.act(
            actors, part(self.observation, own), before, self.is_first[own], greedy[own],
            keys, np.int32(time), np.int32(half),
        )  # fmt: skip
        action = np.asarray(action)
        self.active[own] = active[own]
        self.pool.step(
            self.groups[half], action.reshape(-1, *action.shape[2:]), active[own].ravel()
        )
        self.away[half] = True
        # Whoever waits forgets nothing.
        self.hidden_state[own] = np.where(active[own][..., None, None], hidden_state, before)
        return action, before

    def receive(self, half: int) -> tuple[TimeStep, np.ndarray, np.ndarray]:
        """What became of it, whose episode has ended, and whose was dropped. Copies that were not
        active stand where they stood, and have neither ended nor earned anything."""
        own = np.s_[:, self.halves[half]]
        timestep, lost = self.pool.receive(self.groups[half])
        timestep, lost = self._by_seed(timestep), lost.reshape(self.seeds, -1)
        self.away[half] = False
        idle = ~self.active[own] & ~lost
        reward = np.where(idle[..., None], np.float32(0.0), timestep.reward)
        terminated, truncated = timestep.terminated & ~idle, timestep.truncated & ~idle
        fill(self.observation, own, timestep.observation)
        self.is_first[own] = np.where(idle, self.is_first[own], terminated | truncated | lost)
        timestep = timestep._replace(reward=reward, terminated=terminated, truncated=truncated)
        return timestep, (terminated | truncated) & ~lost, lost

    def _by_seed(self, tree: Any) -> Any:
        """`[seed * env, ...]` to `[seed, env, ...]`."""
        return jax.tree.map(lambda x: x.reshape(self.seeds, -1, *x.shape[1:]), tree)


def halves(copies: int) -> list[slice]:
    """Two halves of `copies`, or one whole where there is but one."""
    first = copies - copies // 2
    return [own for own in (slice(0, first), slice(first, copies)) if own.start < own.stop]


def part(seen: Observation, own: Any) -> Observation:
    """Some of what was seen: views."""
    return Observation(*(None if x is None else x[own] for x in seen))


def fill(seen: Observation, own: Any, new: Observation) -> None:
    """Write `new` where `own` is."""
    for old, x in zip(seen, new, strict=True):
        if old is not None:
            old[own] = x
