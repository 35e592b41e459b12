"""SMAC, SMACv2 and SMAClite, and other environments with the interface `MultiAgentEnv`.

Many environments written for PyMARL have this interface: action masks, a state, a common reward,
`battle_won`. The bridge adds the `alive` mask, and distinguishes termination from truncation.
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

from perla.envs.battlefield import Battlefield
from perla.envs.bridges import results
from perla.envs.bridges.battlefields import read_battlefield
from perla.envs.options import fit
from perla.envs.protocol import Observation, Spec, TimeStep
from perla.envs.values import Fault, describe_value, to_flag, to_flags, to_numbers
from perla.errors import UserError, nearest, page

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
"""Maps of SMAC, with the units of both sides."""
PATTERNS = {"v2-MAP, smac:lite-MAP": "SMACv2 and SMAClite"}
"""Names of other games."""
REQUIRES = f"StarCraft II or SMAClite: {page('smac.md')}"

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
"""Maps of SMACv2 and the distribution of their teams: the types of units, their probabilities, and
the types that cannot make up a whole team."""

SMACV2 = {"obs_own_pos": True, "use_unit_ranges": True}
"""Published settings of SMACv2 that differ from its constructor's defaults."""

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
"""Time limits of SMAClite's maps: those of SMAC's maps of the same name, because SMAClite has none
of its own."""

INTERFACE = ("get_env_info", "get_obs", "get_state", "get_avail_actions", "reset", "step")
"""Methods that an environment needs for this bridge."""

INFO = ("n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit")
"""Keys that its `get_env_info` must return."""


class SMAC:
    """A `MultiAgentEnv` as a [`HostEnv`][perla.envs.protocol.HostEnv].

    An agent is dead if only its first action, the no-op, is available. An episode is truncated if
    the environment reports `episode_limit`, or has not ended at its limit; any other end is a
    termination. `restart` recreates an environment that takes a seed in its constructor only; it is
    called once, with the first episode's seed.
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
            raise UserError(f"{id}: get_env_info lacks {', '.join(missing)}")
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
        """Begin an episode. `Spec.rules["seeded"]` says which episodes depend on `seed` alone."""
        if self.restart is not None:
            self.env.close()
            self.env, self.restart = self.restart(seed), None
            try:
                self.env.reset()
            except Exception as error:  # The game, its maps and its connection raise anything.
                raise UserError(
                    f"{self.spec.id}: StarCraft II does not start ({_line(error)})"
                ) from None
        else:
            self.env.reset(**({"seed": seed} if self.seeded else {}))
        self.time, self.breakdowns = 0, self._breakdowns()
        return self._observation()

    def step(self, action: np.ndarray) -> TimeStep:
        """One step of all agents; `action`: `[agent]`, available actions only."""
        result = self.env.step([int(a) for a in action])
        # PyMARL's environments return three values, those that follow Gymnasium five.
        if not (isinstance(result, tuple) and len(result) in (3, 5)):
            raise Fault(
                f"step returns {describe_value(result)}, expected (reward, terminated, info)"
            )
        reward, *ends, info = result if len(result) == 3 else result[1:]
        info = results.info("info", info)
        self.time += 1
        if self._breakdowns() != self.breakdowns:
            raise RuntimeError("StarCraft II failed, and its interface has restarted it")
        limited = to_flag("info['episode_limit']", info.get("episode_limit", False))
        agents = self.spec.agents
        terminated = results.common_flag("terminated", ends[0], agents) and not limited
        cut = len(ends) == 2 and results.common_flag("truncated", ends[1], agents)
        truncated = limited or cut or self.time == self.spec.limit
        reward = to_numbers("reward", reward)
        if reward.shape != ():
            raise Fault(f"`reward` has shape {reward.shape}, expected one number for all agents")
        observation = self._observation()
        return TimeStep(
            observation,
            np.full(agents, reward),
            np.bool_(terminated),
            np.bool_(truncated and not terminated),
            observation,
            to_numbers("battle_won", info["battle_won"]) if "battle_won" in info else None,
        )

    def render(self) -> np.ndarray:
        """The environment's own image. Raises `UserError` if it has none."""
        try:
            takes_mode = "mode" in inspect.signature(self.env.render).parameters
            image = self.env.render(**({"mode": "rgb_array"} if takes_mode else {}))
            return np.asarray(image, np.uint8).reshape(*np.shape(image)[:2], 3)
        except Exception as error:  # Environments without images raise anything.
            raise UserError(f"{self.spec.id}: cannot be drawn here ({_line(error)})") from None

    def battlefield(self) -> Battlefield:
        """Both sides of the battle, for [scripted agents][perla.envs.scripts].

        Raises `UserError` if the environment does not show its units as SMAC and SMAClite do.
        """
        return read_battlefield(self.spec, self.env)

    def close(self) -> None:
        """Close the environment and the game."""
        self.env.close()

    def _breakdowns(self) -> int:
        """Number of times that the interface has restarted the game. It reports an episode that
        ends in this way as terminated."""
        return getattr(self.env, "force_restarts", 0)

    def _observation(self) -> Observation:
        avail = to_flags("avail_actions", self.env.get_avail_actions())
        return Observation(
            to_numbers("obs", self.env.get_obs()),
            to_numbers("state", self.env.get_state()),
            avail,
            avail[:, 1:].any(-1),
        )


def make_env(name: str, /, **options: Any) -> SMAC:
    """The environment of a map: `3s5z` of SMAC, `v2-10gen_terran` of SMACv2, `lite-3s5z` of
    SMAClite.

    Options are the constructor's own, such as `difficulty`; in SMACv2 also `units` (5) and
    `enemies` (default: `units`), and in SMAClite also `limit`. Raises `UserError` for an unknown
    map or option, or if a package or StarCraft II is not installed.
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
    constructor = _import("smac.env", id).StarCraft2Env
    maps = _import("smac.env.starcraft2.maps.smac_maps", id).get_smac_map_registry()
    if map_name not in maps:
        raise nearest(map_name, maps, what="map of SMAC")
    arguments = _arguments(id, constructor, options)
    return _starcraft(id, "smac", constructor, {"map_name": map_name, **arguments}, {})


def _smacv2(id: str, map_name: str, options: dict[str, Any]) -> SMAC:
    package = _import("smacv2.env", id)
    if map_name not in TEAMS:
        raise nearest(map_name, TEAMS, what="map of SMACv2")
    units = _count(id, "units", options.pop("units", 5))
    enemies = _count(id, "enemies", options.pop("enemies", units))
    arguments = SMACV2 | _arguments(id, package.StarCraft2Env, options, ("units", "enemies"))

    def constructor(**arguments: Any) -> Any:
        # Made anew for each call, because the original constructor modifies it.
        positions = {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32}
        team = {"dist_type": "weighted_teams", "observe": True, **TEAMS[map_name]}
        capability = {"n_units": units, "n_enemies": enemies, "team_gen": team,
                      "start_positions": positions}  # fmt: skip
        return package.StarCraftCapabilityEnvWrapper(capability_config=capability, **arguments)

    # Teams and positions come from generators that take no seed.
    seeded = "first episode, but its teams and places"
    rules = {"units": units, "enemies": enemies, "seeded": seeded}
    return _starcraft(id, "smacv2", constructor, {"map_name": map_name, **arguments}, rules)


def _starcraft(
    id: str,
    package: str,
    constructor: Callable[..., Any],
    arguments: dict[str, Any],
    rules: dict[str, Any],
) -> SMAC:
    """An environment of StarCraft II; its first `reset` starts the game."""
    # Makes the interface report truncations; it changes nothing else.
    all_arguments = {**arguments, "continuing_episode": True}
    rules = {**arguments, **rules, package: _version(package), "game": _game(id)}
    return SMAC(
        id,
        constructor(**all_arguments),
        rules,
        lambda seed: constructor(**all_arguments, seed=seed),
    )


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
    with redirect_stdout(None):  # Each environment prints how it avoids collisions.
        env = package.SMACliteEnv(maps[map_name], render_mode="rgb_array", **options)
    rules = {"map_name": map_name, "limit": limit, **options, "smaclite": _version("smaclite")}
    return SMAC(id, _Lite(env, limit), rules)


class _Lite:
    """A SMAClite environment with the missing parts of the interface `MultiAgentEnv`."""

    def __init__(self, env: Any, limit: int) -> None:
        self.env, self.limit = env, limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def get_env_info(self) -> dict[str, int]:
        """Sizes and the time limit, by the keys `INFO`."""
        env = self.env
        sizes = (env.n_agents, env.n_actions, env.obs_size, env.state_size, self.limit)
        return dict(zip(INFO, sizes, strict=True))

    def reset(self, seed: int) -> None:
        """Begin an episode, and clear the last actions of the previous one, which SMAClite keeps in
        the state."""
        self.env.last_actions = np.zeros_like(self.env.last_actions)
        self.env.reset(seed=seed)


def has_interface(env: Any) -> bool:
    """True if `env` has at least the characteristic methods of a `MultiAgentEnv`."""
    return all(callable(getattr(env, name, None)) for name in INTERFACE[1:4])


def wrap(id: str, env: Any, options: Mapping[str, Any]) -> SMAC:
    """A user's `MultiAgentEnv`, made with `options`. Raises `UserError` for missing methods."""
    missing = [name for name in INTERFACE if not callable(getattr(env, name, None))]
    if missing:
        raise UserError(
            f"{id} returns an environment with get_avail_actions, a MultiAgentEnv, which lacks "
            f"{', '.join(missing)}"
        )
    return SMAC(id, env, options)


PACKAGES = {
    "smac": "git+https://github.com/oxwhirl/smac.git",
    "smacv2": "git+https://github.com/oxwhirl/smacv2.git",
    "smaclite": "git+https://github.com/uoe-agents/smaclite.git",
}
"""Sources of the packages; `smac` on PyPI is another project."""


def _import(module: str, id: str) -> Any:
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:  # A protobuf that is too new for SMAC raises a TypeError.
        raise UserError(
            f"{id} needs {package} ({_line(error)}); pip install {PACKAGES[package]}"
        ) from None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _version(package: str) -> str:
    """The version of a package, which may be on the path without being installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _game(id: str) -> str:
    """The version of the newest StarCraft II that is installed."""
    folder = Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser()
    versions = sorted(path.name for path in folder.glob("Versions/Base*"))
    if not versions:
        raise UserError(
            f"{id} needs StarCraft II, which is not in {folder}: install it, and set SC2PATH to "
            "its folder"
        )
    if not (folder / "Maps" / "SMAC_Maps").is_dir():
        raise UserError(
            f"{id} needs SMAC's maps, which are not in {folder}: unpack SMAC_Maps.zip, from SMAC's "
            "releases, in its folder Maps"
        )
    return versions[-1]


def _arguments(
    id: str, cls: Any, options: Mapping[str, Any], more: Iterable[str] = ()
) -> dict[str, Any]:
    """`options` as arguments of the constructor of `cls`. Raises `UserError` for an unknown option;
    `more` are further options to suggest."""
    parameters = inspect.signature(cls.__init__).parameters
    reserved = {"self", "map_name", "seed", "continuing_episode", "capability_config"}
    known = {name: parameter.default for name, parameter in parameters.items()}
    arguments = {}
    for option, value in options.items():
        if option not in known or option in reserved:
            raise nearest(option, {*known, *more} - reserved, what=f"option of {id}")
        # Difficulties are digits or letters, and a digit on the command line arrives as a number.
        arguments[option] = str(value) if isinstance(known[option], str) else value
    return fit(id, cls, arguments)


def _count(id: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{id}: {name} {value!r} is not a whole number of 1 or more")
    return value
