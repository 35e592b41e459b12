"""Rollouts in host environments."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from perla.algos.protocol import Trajectory
from perla.loops.host_envs import HostEnvs, index_observation, write_observation
from perla.nets.actors import AnyActor
from perla.types import Array, Key


class HostRolloutStats(NamedTuple):
    """Counts and returns of one seed's rollout."""

    steps: int
    """Environment steps, summed over environments, without padding and dropped episodes."""
    episode_returns: list[float]
    """The returns of the finished episodes."""


def rollout(
    envs: HostEnvs,
    actors: AnyActor,
    keys: Key[Array, " seed"],
    seeds: np.ndarray,
    empty: Trajectory,
    *,
    whole_episodes: bool,
) -> list[tuple[Trajectory, HostRolloutStats]]:
    """Step every environment of the `seeds` (flags `[seed]`) with actions sampled from its policy,
    as often as the `empty` trajectory of a seed has time steps.

    With `whole_episodes` an environment stops after one episode, at the first step of its next, and
    the rest is padding: not `valid` in the trajectory and not counted.
    """
    collector = _Collector(envs, seeds, empty, whole_episodes=whole_episodes)
    length = len(empty.reward)
    for time in range(length):
        for half in range(len(envs.halves)):
            collector.receive(half, time - 1)
            collector.act(half, time, actors, keys)
    for half in range(len(envs.halves)):
        collector.receive(half, length - 1)
    return collector.finish()


class _Collector:
    """A rollout in progress: the trajectories of all seeds so far."""

    def __init__(
        self, envs: HostEnvs, seeds: np.ndarray, empty: Trajectory, *, whole_episodes: bool
    ) -> None:
        self.envs, self.whole_episodes = envs, whole_episodes
        self.trajectory: Trajectory = jax.tree.map(lambda x: np.stack([x] * envs.num_seeds), empty)
        self.active = np.tile(seeds[:, None], envs.num_envs)
        """The environments that are still stepped."""
        self.greedy = np.zeros_like(self.active)
        self.episode_start = np.zeros(self.active.shape, int)
        """The time at which the current episode began, 0 if before the rollout."""
        self.episode_returns: list[list[float]] = [[] for _ in seeds]

    def act(self, half: int, time: int, actors: AnyActor, keys: Key[Array, " seed"]) -> None:
        """Record the observations of a `half` at `time` and begin its step."""
        envs, trajectory, columns = self.envs, self.trajectory, self.envs.halves[half]
        index, now = np.s_[:, columns], np.s_[:, time, columns]
        observation = index_observation(envs.observation, index)
        trajectory.valid[now] = self.active[index]
        write_observation(trajectory.observation, now, observation)
        trajectory.is_first[now] = envs.is_first[index]
        if not self.active[index].any():
            write_observation(trajectory.final, now, observation)
            return
        action, hidden_state = envs.send(half, actors, keys, time, self.greedy, self.active)
        trajectory.action[now] = action
        trajectory.hidden_state[now] = hidden_state

    def receive(self, half: int, time: int) -> None:
        """Finish the step of a `half` that began at `time`, if one did, and record its outcome."""
        envs, trajectory, columns = self.envs, self.trajectory, self.envs.halves[half]
        if not envs.stepping[half]:
            return
        index, now = np.s_[:, columns], np.s_[:, time, columns]
        timestep, ended, dropped = envs.receive(half)
        trajectory.reward[now] = timestep.reward
        trajectory.terminated[now] = timestep.terminated
        trajectory.truncated[now] = timestep.truncated
        write_observation(trajectory.final, now, timestep.final)
        envs.returns[index] += timestep.reward.mean(-1)
        over = ended | dropped
        if not over.any():
            return
        for seed, env in np.argwhere(over) + (0, columns.start):
            if dropped[seed, env - columns.start]:
                trajectory.valid[seed, self.episode_start[seed, env] : time + 1, env] = False
            else:
                self.episode_returns[seed].append(float(envs.returns[seed, env]))
        envs.returns[index][over] = 0.0
        self.episode_start[index][over] = time + 1
        if self.whole_episodes:
            self.active[index] &= ~over

    def finish(self) -> list[tuple[Trajectory, HostRolloutStats]]:
        """The trajectory and the statistics of every seed."""
        envs, trajectory = self.envs, self.trajectory
        write_observation(trajectory.last, np.s_[:], envs.observation)
        trajectory.last_is_first[:] = envs.is_first
        trajectory.last_hidden_state[:] = envs.hidden_state
        seeds = [jax.tree.map(lambda x, i=i: x[i], trajectory) for i in range(envs.num_seeds)]
        return [
            (one, HostRolloutStats(int(one.valid.sum()), returns))
            for one, returns in zip(seeds, self.episode_returns, strict=True)
        ]
