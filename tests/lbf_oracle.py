"""Episodes of the original `lbforaging`, recorded to be replayed in perla's environment."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium
import numpy as np
from lbforaging.foraging.environment import ForagingEnv

from perla.envs.foraging import LOAD, Foraging


class Episodes(NamedTuple):
    """Recorded episodes, padded with zeros from each episode's end to the time limit."""

    players: np.ndarray  # [episode, agent, 2]
    player_levels: np.ndarray  # [episode, agent]
    foods: np.ndarray  # [episode, food, 2]
    food_levels: np.ndarray  # [episode, food], 0 where fewer were placed
    first: np.ndarray  # [episode, agent, feature]
    action: np.ndarray  # [episode, time, agent]
    obs: np.ndarray  # [episode, time, agent, feature]
    reward: np.ndarray  # [episode, time, agent]
    done: np.ndarray  # [episode, time]
    length: np.ndarray  # [episode]
    overlaps: int
    """Steps after which two agents shared a cell."""
    eaten: int
    """Foods eaten."""


class _Anything(gymnasium.Space):
    """Stands in for the observation space, whose membership test costs more than a step."""

    def contains(self, x) -> bool:
        return True


class _Original(ForagingEnv):
    """The original without its observation space, which cannot be built for grids."""

    def _get_observation_space(self):
        return _Anything((3 * (self.max_num_food + len(self.players)),))


def original(env: Foraging) -> ForagingEnv:
    """The original's environment of the same parameters (by the rules of version 2.0.0)."""
    return _Original(
        players=env.players,
        min_player_level=1,
        max_player_level=2,
        min_food_level=1,
        max_food_level=None,
        field_size=(env.size, env.size),
        max_num_food=env.foods,
        sight=env.window,
        max_episode_steps=env.limit,
        force_coop=env.coop,
        grid_observation=env.grid,
        penalty=env.penalty,
    )


def begin(original_env: ForagingEnv, env: Foraging, rng: np.random.Generator):
    """A first state: the original's own, with food levels drawn anew for version 2."""
    nobs, _ = original_env.reset()
    if env.version == 2 and not env.coop:
        most = sum(sorted(player.level for player in original_env.players)[:3])
        where = original_env.field > 0
        original_env.field[where] = rng.integers(1, max(most, 2), where.sum())
        original_env._food_spawned = original_env.field.sum()
        original_env._gen_valid_moves()
        nobs = original_env._make_gym_obs()
    return nobs


def choose(original_env: ForagingEnv, rng: np.random.Generator, eager: float) -> list[int]:
    """Random actions; with probability `eager` an agent moves to the nearest food or loads it."""
    foods = np.argwhere(original_env.field > 0)
    actions = rng.integers(0, 6, len(original_env.players)).tolist()
    for i, player in enumerate(original_env.players):
        if not len(foods) or rng.random() >= eager:
            continue
        away = foods - np.asarray(player.position)
        rows, cols = away[np.abs(away).sum(1).argmin()]
        if abs(rows) + abs(cols) == 1:
            actions[i] = LOAD
        elif cols == 0 or (rows != 0 and rng.random() < 0.5):
            actions[i] = 1 if rows < 0 else 2
        else:
            actions[i] = 3 if cols < 0 else 4
    return actions


def record(env: Foraging, episodes: int, seed: int) -> Episodes:
    """Play `episodes`, eagerness differing from one to the next (every fourth is uniform)."""
    rng = np.random.default_rng(seed)
    original_env = original(env)
    original_env.reset(seed=seed)
    n, f, features = env.players, env.foods, env.spec.obs
    obs = np.zeros((episodes, env.limit, n, features), np.float32)
    first = np.zeros((episodes, n, features), np.float32)
    action = np.zeros((episodes, env.limit, n), np.int32)
    reward = np.zeros((episodes, env.limit, n))
    done = np.zeros((episodes, env.limit), bool)
    length = np.zeros(episodes, np.int32)
    players, levels = np.zeros((episodes, n, 2), np.int32), np.zeros((episodes, n), np.int32)
    foods, food_levels = np.zeros((episodes, f, 2), np.int32), np.zeros((episodes, f), np.int32)
    overlaps = eaten = 0
    for e in range(episodes):
        first[e] = np.reshape(begin(original_env, env, rng), (n, features))
        players[e] = [player.position for player in original_env.players]
        levels[e] = [player.level for player in original_env.players]
        where = np.argwhere(original_env.field > 0)
        order = rng.permutation(len(where))
        foods[e, : len(where)] = where[order]
        food_levels[e, : len(where)] = original_env.field[original_env.field > 0][order]
        eager = (0.0, 0.5, 0.8, 0.95)[e % 4]
        for t in range(env.limit):
            action[e, t] = choose(original_env, rng, eager)
            nobs, reward[e, t], done[e, t], _, _ = original_env.step(action[e, t].tolist())
            obs[e, t] = np.reshape(nobs, (n, features))
            overlaps += len({player.position for player in original_env.players}) < n
            if done[e, t]:
                break
        length[e] = t + 1
        eaten += len(where) - np.count_nonzero(original_env.field)
    return Episodes(
        players, levels, foods, food_levels, first, action, obs, reward, done, length,
        overlaps, eaten,
    )  # fmt: skip
