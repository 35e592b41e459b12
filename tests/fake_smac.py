"""A battle of two against two with the interface of SMAC, small enough to be played by hand."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np

NOOP, STOP, ADVANCE, ATTACK = 0, 1, 2, 3
"""Actions; `ATTACK` + k is at enemy k."""
AGENTS, ENEMIES = 2, 2
LIMIT = 8
WIN, KILL = 5.0, 1.0


class Skirmish:
    """Two units of two lives each, and two enemies of one or two, which the seed decides.

    A unit attacks only from the front, and is attacked there alone: by every living enemy, the
    first unit that stands there. A step earns a point for each life taken, and `WIN` for the last.
    """

    def __init__(self, continuing_episode=True, limit=LIMIT, lives=None):
        self.continuing_episode, self.limit, self.lives = continuing_episode, limit, lives
        self.closed = False

    def get_env_info(self):
        return {
            "n_agents": AGENTS,
            "n_actions": ATTACK + ENEMIES,
            "obs_shape": 6,
            "state_shape": 7,
            "episode_limit": self.limit,
        }

    def reset(self, seed=None):
        self.random = np.random.default_rng(seed)
        self.time = 0
        self.units, self.front = [2, 2], [False, False]
        self.enemies = self.lives or [int(x) for x in self.random.integers(1, 3, ENEMIES)]
        self.enemies = list(self.enemies)
        return self.get_obs(), self.get_state()

    def step(self, actions):
        assert [type(action) for action in actions] == [int] * AGENTS
        masks = self.get_avail_actions()
        assert all(mask[action] for mask, action in zip(masks, actions, strict=True)), actions
        self.time += 1
        standing = list(self.front)
        before = sum(self.enemies)
        attackers = sum(lives > 0 for lives in self.enemies)
        for unit, action in enumerate(actions):
            self.front[unit] |= action == ADVANCE
            if action >= ATTACK:
                self.enemies[action - ATTACK] = max(self.enemies[action - ATTACK] - 1, 0)
        for _ in range(attackers):
            for unit in range(AGENTS):
                if standing[unit] and self.units[unit]:
                    self.units[unit] -= 1
                    break
        reward = float(before - sum(self.enemies))
        won = not any(self.enemies) and any(self.units)
        over = not any(self.enemies) or not any(self.units)
        info = {
            "battle_won": won,
            "dead_allies": self.units.count(0),
            "dead_enemies": self.enemies.count(0),
        }
        if not over and self.time >= self.limit and self.continuing_episode:
            info["episode_limit"] = True
        return reward + WIN * won, over or self.time >= self.limit, info

    def get_obs(self):
        return [
            np.array([lives, self.front[unit], *self.enemies, self.units[1 - unit], self.time])
            if lives
            else np.zeros(6)
            for unit, lives in enumerate(self.units)
        ]

    def get_state(self):
        return np.array([*self.units, *self.front, *self.enemies, self.time], float)

    def get_avail_actions(self):
        return [
            [0, 1, not self.front[unit], *(self.front[unit] and e > 0 for e in self.enemies)]
            if lives
            else [1, 0, 0, 0, 0]
            for unit, lives in enumerate(self.units)
        ]

    def render(self, mode="human"):
        assert mode == "rgb_array"
        return np.full((8, 8, 3), 20 * self.time, np.uint8)

    def close(self):
        self.closed = True


class Modern(Skirmish):
    """With Gymnasium's return values, and without a limit of its own."""

    def step(self, actions):
        limit, self.limit = self.limit, 1000
        reward, terminated, info = super().step(actions)
        self.limit = limit
        return self.get_obs(), reward, terminated, False, info


class Unseeded(Skirmish):
    """With a `reset` without a seed."""

    def reset(self):
        return super().reset(7)


class Silent(Skirmish):
    """Without `battle_won`."""

    def step(self, actions):
        reward, terminated, info = super().step(actions)
        return reward, terminated, {k: v for k, v in info.items() if k == "episode_limit"}


class Blind(Skirmish):
    """Without `get_env_info`, and without images."""

    get_env_info = None

    def render(self):
        raise NotImplementedError  # As the base class of the interface does.


class Vague(Skirmish):
    """With missing keys in `get_env_info`."""

    def get_env_info(self):
        return {"n_agents": 2, "n_actions": 5, "obs_shape": 6}


KINDS = {kind.__name__.lower(): kind
         for kind in (Skirmish, Modern, Unseeded, Silent, Blind, Vague)}  # fmt: skip


def make(kind="skirmish", **options):
    """The function of the id `fake_smac:make`."""
    return KINDS[kind](**options)


class StarCraft2Env(Skirmish):
    """The same behind a constructor like SMAC's: a game that is started at the first reset, with a
    seed given to it then, and goes on from there; and that may break."""

    force_restarts = 0

    def __init__(self, map_name="8m", difficulty="7", reward_scale=True, seed=None,
                 continuing_episode=False, obs_own_pos=False, use_unit_ranges=False,
                 start="well"):  # fmt: skip
        super().__init__(continuing_episode)
        self.map_name, self.difficulty, self.reward_scale = map_name, difficulty, reward_scale
        self.seed, self.start = seed, start
        self.game = None

    def reset(self):
        if self.start == "ill":
            raise ConnectionError("no\nanswer")
        self.game = self.game or np.random.default_rng(self.seed)
        return super().reset(int(self.game.integers(2**32)))

    def step(self, actions):
        if self.start == "break" and self.time == 1:
            self.force_restarts += 1
            return 0, True, {}
        return super().step(actions)


class Wrapper(StarCraft2Env):
    """With the constructor of SMACv2, which modifies its argument."""

    def __init__(self, capability_config, **arguments):
        assert "written" not in capability_config
        capability_config["written"] = True
        self.capability = capability_config
        super().__init__(**arguments)


class Lite(Modern):
    """With the interface of SMAClite, which keeps the last actions after an episode."""

    n_agents, n_actions, obs_size, state_size = AGENTS, ATTACK + ENEMIES, 6, 7 + 10

    def __init__(self, map_info, render_mode="human", use_cpp_rvo2=False):
        super().__init__(limit=None)
        assert render_mode == "rgb_array"
        self.use_cpp_rvo2 = use_cpp_rvo2
        self.last_actions = np.zeros(10)

    get_env_info = None

    def step(self, actions):
        self.last_actions = np.eye(5)[actions].ravel()
        return super().step(actions)

    def get_state(self):
        return np.concatenate([super().get_state(), self.last_actions])


def install(monkeypatch, folder):
    """Install fake packages `smac`, `smacv2` and `smaclite`, and StarCraft II in `folder`."""
    modules = {
        "smac.env": {"StarCraft2Env": StarCraft2Env},
        "smac.env.starcraft2.maps.smac_maps": {
            "get_smac_map_registry": lambda: {"3m": {}, "3s5z": {}}
        },
        "smacv2.env": {"StarCraft2Env": StarCraft2Env, "StarCraftCapabilityEnvWrapper": Wrapper},
        "smaclite.env": {"SMACliteEnv": Lite},
        "smaclite.env.maps.map": {
            "MapPreset": [SimpleNamespace(value=SimpleNamespace(name="2s3z"))]
        },
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    for path in ("Versions/Base55958", "Versions/Base75689", "Maps/SMAC_Maps"):
        (folder / path).mkdir(parents=True)
    monkeypatch.setenv("SC2PATH", str(folder))
