"""Teams of random units, as in SMACv2 (Ellis et al., 2023).

The tables of a battle are fixed, so a battle with random teams has, for each side and each type of
unit, as many units as the side has slots. In each episode every slot draws its type, and the units
that are not drawn are dead from the start. Slots are the agents and enemies of the environment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.maps import Army, Map
from perla.envs.skirmish.simulate import hash_bits, uniform
from perla.envs.skirmish.units import RuleSet, Unit, standard_units
from perla.errors import UserError, nearest
from perla.types import Array, Float, Int, UInt

TEAMS = {
    "terran": "marine:0.45,marauder:0.45,medivac:0.1",
    "protoss": "stalker:0.45,zealot:0.45,colossus:0.1",
    "zerg": "zergling:0.45,hydralisk:0.45,baneling:0.1",
}
"""The teams of SMACv2's three maps: types of units and their probabilities."""

MAP_TEAM = "map"
"""The name of the units that the map lists."""

_STREAM = np.uint32(1 << 18)
"""Number of the first stream of random numbers."""


@dataclass(frozen=True, eq=False)
class Team:
    """Types of units in the order of their indicators, and their probabilities."""

    names: tuple[str, ...]
    units: tuple[Unit, ...]
    weights: Float[np.ndarray, " type"]

    @property
    def sound(self) -> Float[np.ndarray, " type"]:
        """Weights of the types of which a whole team may be: not healers nor suicides, if there are
        others."""
        alone = [not unit.heal and not unit.dies_on_attack for unit in self.units]
        return self.weights * alone if any(alone) else self.weights


def parse_team(text: str, rules: RuleSet) -> Team:
    """A team from its name, or from `type:weight,type:weight,…`. Raises `UserError`."""
    weights: dict[str, float] = {}
    types = standard_units(rules)
    if ":" not in text and text not in TEAMS:
        raise nearest(text, [MAP_TEAM, *TEAMS], what="team")
    for part in TEAMS.get(text, text).split(","):
        name, _, weight = part.strip().partition(":")
        if name not in types:
            raise UserError(f"team {text!r}: {nearest(name, types, what='type of unit')}")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise UserError(f"team {text!r}: {part.strip()!r}: expected type:weight above 0")
    names = tuple(sorted(weights))
    shares = np.array([weights[name] for name in names])
    return Team(names, tuple(types[name] for name in names), shares / shares.sum())


def mix(map: Map, team: Team) -> Map:
    """`map` with every unit of `team` in every slot."""
    return replace(map, allies=_all(map.allies, team), enemies=_all(map.enemies, team))


def _all(army: Army, team: Team) -> Army:
    count = len(army)
    return Army(
        types=team.names,
        names=tuple(name for name in team.names for _ in range(count)),
        units=tuple(unit for unit in team.units for _ in range(count)),
        start=np.tile(army.start, (len(team.names), 1)),
    )


def draw_roster(
    team: Team, agents: int, enemies: int, seed: UInt[Array, " copy"]
) -> Int[Array, "slot copy"]:
    """The number of the unit in each slot, agents first; slots are sorted by type.

    As in SMACv2 the enemies' team is that of the agents, cut, or with further units.
    """
    count, most = max(agents, enemies), min(agents, enemies)
    streams = _STREAM + np.arange(2 * count, dtype=np.uint32)[:, None]
    draws = uniform(hash_bits(seed[None], streams))
    first = _sound(team, _types(team.weights, draws[:agents]), draws[count : count + agents])
    second = first[:most]
    if enemies > agents:
        more = _types(team.weights, draws[agents:enemies])
        second = jnp.concatenate(
            [first, _sound(team, more, draws[count + agents : count + enemies])]
        )
    sides = [
        jnp.sort(types, axis=0) * len(types) + np.arange(len(types))[:, None]
        for types in (first, second)
    ]
    sides[1] = sides[1] + agents * len(team.names)
    return jnp.concatenate(sides).astype(jnp.int32)


def _types(weights: np.ndarray, draws: Array) -> Int[Array, "slot copy"]:
    limits = (np.cumsum(weights) / weights.sum())[:-1].astype(np.float32)
    return (draws[None] >= limits[:, None, None]).sum(0)


def _sound(team: Team, types: Array, draws: Array) -> Int[Array, "slot copy"]:
    """`types`, or if no unit may be alone, other ones of which the first may."""
    able = team.sound > 0
    fine = jnp.asarray(able)[types].any(0)
    again = jnp.concatenate([_types(team.sound, draws[:1]), _types(team.weights, draws[1:])])
    return jnp.where(fine, types, again)
