"""StarCraft II's skirmishes: SMAC, SMACv2 and SMAClite, and whatever else has their interface.

The three share `MultiAgentEnv`, and so does many a world that was written for PyMARL: masks of
actions, a state, a team's reward, `battle_won`. What is added is what learners ask for: who is
alive, and whether an episode ended by itself or was cut.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from perla.envs.protocol import Observation, Spec, TimeStep
from perla.errors import UserError, nearest

EXAMPLES = {
    "2m_vs_1z": "2 marines against 1 zealot",
    "2s_vs_1sc": "2 stalkers against 1 spine crawler",
    "so_many_baneling": "7 zealots against 32 banelings",
    "bane_vs_bane": "20 zerglings and 4 banelings against as many",
    "1c3s5z": "1 colossus, 3 stalkers and 5 zealots against as many",
    "2s3z": "2 stalkers and 3 zealots against as many",
    "3m": "3 marines against as many",
    "8m": "8 marines against as many",
    "MMM": "1 medivac, 2 marauders and 7 marines against as many",
    "2c_vs_64zg": "2 colossi against 64 zerglings",
    "3s5z": "3 stalkers and 5 zealots against as many",
    "25m": "25 marines against as many",
    "3s5z_vs_3s6z": "3 stalkers and 5 zealots against 1 zealot more",
    "MMM2": "1 medivac, 2 marauders and 7 marines against 1 marauder and 1 marine more",
    "corridor": "6 zealots against 24 zerglings",
}
"""Maps of SMAC, and who meets whom."""

TEAMS: dict[str, dict[str, Any]] = {
    "10gen_terran": {
        "unit_types": ["marine", "marauder", "medivac"],
        "weights": [0.45, 0.45, 0.1],
        "exception_unit_types": ["medivac"],
    },
    "10gen_protoss": {
        "unit_types": ["stalker", "zealot", "colossus"],
        "weights": [0.45, 0.45, 0.1],
    },
    "10gen_zerg": {
        "unit_types": ["zergling", "baneling", "hydralisk"],
        "weights": [0.45, 0.1, 0.45],
        "exception_unit_types": ["baneling"],
    },
}
"""Maps of SMACv2, and how it draws their teams: the units, how likely each is, and those that no
team consists of alone."""

SMACV2 = {"obs_own_pos": True, "use_unit_ranges": True}
"""Where SMACv2's published settings are not the defaults of its constructor."""

LIMITS = {
    "10m_vs_11m": 150,
    "27m_vs_30m": 180,
    "2c_vs_64zg": 400,
    "2s3z": 120,
    "2s_vs_1sc": 300,
    "3s5z": 150,
    "3s5z_vs_3s6z": 170,
    "3s_vs_5z": 250,
    "MMM": 150,
    "MMM2": 180,
    "bane_vs_bane": 200,
    "corridor": 400,
}
"""Maps of SMAClite, and the steps after which SMAC cuts an episode on the map of that name, for
SMAClite has no such limit of its own."""

INTERFACE = ("get_env_info", "get_obs", "get_state", "get_avail_actions", "reset", "step")
"""What a world must have to be played through this bridge."""

INFO = ("n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit")
"""What its `get_env_info` must tell."""


class SMAC:
    """A world with the interface `MultiAgentEnv`, as a [`HostEnv`][perla.envs.protocol.HostEnv].

    An agent that has no action but the first, which is to do nothing, is dead. Where the world says
    `episode_limit`, or goes on at its limit, the episode was cut; where it says no more than that
    it has ended, it has terminated. `restart` makes the world anew with a seed, where it takes one
    at no other time: this is done once, before the first episode.
    """

    def __init__(
        self,
        id: str,
        env: Any,
        rules: Mapping[str, Any],
        restart: Callable[[int], Any] | None = None,
    ) -> None:
        self.env, self.restart = env, restart
        info = env.get_env_info()
        if missing := [name for name in INFO if name not in info]:
            raise UserError(f"{id}: get_env_info tells no {', '.join(missing)}")
        agents, actions = int(info["n_agents"]), int(info["n_actions"])
        self.seeded = "seed" in inspect.signature(env.reset).parameters
        seeded = "every episode" if self.seeded else "first episode" if restart else "never"
        self.spec = Spec(
            id=id,
            agents=agents,
            obs=int(np.prod(info["obs_shape"])),
            state=int(np.prod(info["state_shape"])),
            actions=(actions,) * agents,
            limit=int(info["episode_limit"]),
            reward="common",
            rules={"seeded": seeded, **rules},
            mortal=True,
        )

    def reset(self, seed: int) -> Observation:
        """Begin an episode. `Spec.rules["seeded"]` says which episodes follow from `seed`."""
        if self.restart is not None:
            self.env.close()
            self.env, self.restart = self.restart(seed), None
            try:
                self.env.reset()
            except Exception as error:  # The game, its maps and its connection, each in its way.
                raise UserError(
                    f"{self.spec.id}: StarCraft II does not start ({_line(error)})"
                ) from None
        else:
            self.env.reset(**({"seed": seed} if self.seeded else {}))
        self.time, self.breakdowns = 0, self._breakdowns()
        return self._observation()

    def step(self, action: np.ndarray) -> TimeStep:
        """One step of all agents; `action`: `[agent]`, none of them masked."""
        # Worlds for PyMARL return three things, and those that follow Gymnasium five.
        _, reward, *ends, info = (None, *self.env.step([int(a) for a in action]))[-5:]
        self.time += 1
        if self._breakdowns() != self.breakdowns:
            raise RuntimeError("StarCraft II failed, and its interface has started it again")
        limited = bool(info.get("episode_limit"))
        terminated = bool(ends[0]) and not limited
        cut = limited or any(ends[1:]) or self.time == self.spec.limit
        observation = self._observation()
        return TimeStep(
            observation,
            np.full(self.spec.agents, float(reward), np.float32),
            np.bool_(terminated),
            np.bool_(cut and not terminated),
            observation,
            np.float32(info["battle_won"]) if "battle_won" in info else None,
        )

    def render(self) -> np.ndarray:
        """The world's own picture; `UserError` where it has none."""
        try:
            modes = "mode" in inspect.signature(self.env.render).parameters
            picture = self.env.render(**({"mode": "rgb_array"} if modes else {}))
            return np.asarray(picture, np.uint8).reshape(*np.shape(picture)[:2], 3)
        except Exception as error:  # Whatever a world without a picture does.
            raise UserError(f"{self.spec.id}: cannot be drawn here ({_line(error)})") from None

    def close(self) -> None:
        """Let go of the world, and of the game."""
        self.env.close()

    def _breakdowns(self) -> int:
        """How often the interface had to start the game again: what it says of an episode that
        ended so is that it terminated."""
        return getattr(self.env, "force_restarts", 0)

    def _observation(self) -> Observation:
        avail = np.asarray(self.env.get_avail_actions(), bool)
        return Observation(
            np.asarray(self.env.get_obs(), np.float32),
            np.asarray(self.env.get_state(), np.float32),
            avail,
            avail[:, 1:].any(-1),
        )


def make_env(name: str, /, **options: Any) -> SMAC:
    """The world of a map: `3s5z` is SMAC's, `v2-10gen_terran` SMACv2's, `lite-3s5z` SMAClite's.

    Options are the constructor's own, such as `difficulty`; SMACv2's `units` and `enemies` (5 and
    as many) and SMAClite's `limit` besides. Raises `UserError` for a map or an option that is none,
    and where a package or StarCraft II is not installed.
    """
    kind, hyphen, map_name = name.partition("-")
    if hyphen and kind == "v2":
        return _smacv2(f"smac:{name}", map_name, options)
    if hyphen and kind == "lite":
        return _smaclite(f"smac:{name}", map_name, options)
    if name in TEAMS:
        raise UserError(f"{name} is a map of SMACv2: smac:v2-{name}")
    return _smac(f"smac:{name}", name, options)


def _smac(id: str, map_name: str, options: dict[str, Any]) -> SMAC:
    world = _import("smac.env", id).StarCraft2Env
    maps = _import("smac.env.starcraft2.maps.smac_maps", id).get_smac_map_registry()
    if map_name not in maps:
        raise nearest(map_name, maps, what="map of SMAC")
    arguments = _arguments(id, world, options)
    return _starcraft(id, "smac", world, {"map_name": map_name, **arguments}, {})


def _smacv2(id: str, map_name: str, options: dict[str, Any]) -> SMAC:
    package = _import("smacv2.env", id)
    if map_name not in TEAMS:
        raise nearest(map_name, TEAMS, what="map of SMACv2")
    units = _count(id, "units", options.pop("units", 5))
    enemies = _count(id, "enemies", options.pop("enemies", units))
    arguments = SMACV2 | _arguments(id, package.StarCraft2Env, options, ("units", "enemies"))

    def world(**arguments: Any) -> Any:
        # The constructor writes into what it is given.
        places = {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32}
        team = {"dist_type": "weighted_teams", "observe": True, **TEAMS[map_name]}
        capability = {"n_units": units, "n_enemies": enemies, "team_gen": team,
                      "start_positions": places}  # fmt: skip
        return package.StarCraftCapabilityEnvWrapper(capability_config=capability, **arguments)

    # Teams and places come of generators of its own, which take no seed.
    seeded = "first episode, but its teams and places"
    chosen = {"units": units, "enemies": enemies, "seeded": seeded}
    return _starcraft(id, "smacv2", world, {"map_name": map_name, **arguments}, chosen)


def _starcraft(
    id: str,
    package: str,
    world: Callable[..., Any],
    arguments: dict[str, Any],
    chosen: dict[str, Any],
) -> SMAC:
    """A world of the game, which `reset` starts."""
    # Only then does the interface say that an episode was cut; it changes nothing else.
    told = {**arguments, "continuing_episode": True}
    rules = {**arguments, **chosen, package: _version(package), "game": _game(id)}
    return SMAC(id, world(**told), rules, lambda seed: world(**told, seed=seed))


def _smaclite(id: str, map_name: str, options: dict[str, Any]) -> SMAC:
    package = _import("smaclite.env", id)
    presets = _import("smaclite.env.maps.map", id).MapPreset
    maps = {preset.value.name: preset.value for preset in presets}
    if map_name not in maps:
        raise nearest(map_name, maps, what="map of SMAClite")
    known = ("limit", "use_cpp_rvo2")
    for option in options:
        if option not in known:
            raise nearest(option, known, what=f"option of {id}")
    limit = _count(id, "limit", options.pop("limit", LIMITS.get(map_name)))
    with redirect_stdout(None):  # It prints, for every copy, how it avoids collisions.
        env = package.SMACliteEnv(maps[map_name], render_mode="rgb_array", **options)
    rules = {"map_name": map_name, "limit": limit, **options, "smaclite": _version("smaclite")}
    return SMAC(id, _Lite(env, limit), rules)


class _Lite:
    """SMAClite's world with what its interface lacks."""

    def __init__(self, env: Any, limit: int) -> None:
        self.env, self.limit = env, limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def get_env_info(self) -> dict[str, int]:
        """The sizes."""
        env = self.env
        sizes = (env.n_agents, env.n_actions, env.obs_size, env.state_size, self.limit)
        return dict(zip(INFO, sizes, strict=True))

    def reset(self, seed: int) -> None:
        """Begin an episode, whose state does not hold the last actions of the one before."""
        self.env.last_actions = np.zeros_like(self.env.last_actions)
        self.env.reset(seed=seed)


def has_interface(made: Any) -> bool:
    """Whether `made` is a world with this interface, or was meant to be."""
    return all(callable(getattr(made, name, None)) for name in INTERFACE[1:4])


def wrap(id: str, made: Any, options: Mapping[str, Any]) -> SMAC:
    """A user's world with this interface, made with `options`; `UserError` for what it lacks."""
    missing = [name for name in INTERFACE if not callable(getattr(made, name, None))]
    if missing:
        raise UserError(
            f"{id} returns a world with get_avail_actions, a MultiAgentEnv, which lacks "
            f"{', '.join(missing)}"
        )
    return SMAC(id, made, options)


PACKAGES = {
    "smac": "git+https://github.com/oxwhirl/smac.git",
    "smacv2": "git+https://github.com/oxwhirl/smacv2.git",
    "smaclite": "git+https://github.com/uoe-agents/smaclite.git",
}
"""Where the packages are had from; what PyPI calls smac is another project."""


def _import(module: str, id: str) -> Any:
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:  # With a protobuf that is too new for SMAC it is a TypeError.
        raise UserError(
            f"{id} needs {package} ({_line(error)}); pip install {PACKAGES[package]}"
        ) from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _version(package: str) -> str:
    """Of a package that may have been put on the path rather than installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _game(id: str) -> str:
    """The newest StarCraft II that is installed."""
    folder = Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser()
    versions = sorted(path.name for path in folder.glob("Versions/Base*"))
    if not versions:
        raise UserError(
            f"{id} needs StarCraft II, which is not in {folder}: install it, and set SC2PATH to "
            "its folder"
        )
    if not (folder / "Maps" / "SMAC_Maps").is_dir():
        raise UserError(
            f"{id} needs SMAC's maps, which are not in {folder}: unpack SMAC_Maps.zip, of SMAC's "
            "releases, in its folder Maps"
        )
    return versions[-1]


def _arguments(
    id: str, world: Any, options: Mapping[str, Any], more: Iterable[str] = ()
) -> dict[str, Any]:
    """`options` as arguments of a constructor; `more` are known and none of its own."""
    parameters = inspect.signature(world.__init__).parameters
    decided = {"self", "map_name", "seed", "continuing_episode", "capability_config"}
    known = {name: parameter.default for name, parameter in parameters.items()}
    arguments = {}
    for option, value in options.items():
        if option not in known or option in decided:
            raise nearest(option, {*known, *more} - decided, what=f"option of {id}")
        # Difficulties are digits and letters, and what is written as a digit arrives as a number.
        arguments[option] = str(value) if isinstance(known[option], str) else value
    return arguments


def _count(id: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{id}: {name} {value!r} is not a whole number of 1 or more")
    return value
