"""A battle: the units of a map as tables of numbers, and its state."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from perla.envs.skirmish.maps import Army, Map
from perla.envs.skirmish.units import Rules, Unit
from perla.types import Array, Bool, Float, Int

NO_TARGET = -1


class State(NamedTuple):
    """The state of a battle. In `tick` and below, arrays have a last axis of copies.

    Units are numbered: the agents, then the enemies. The dead keep their place, with hp 0.
    """

    x: Float[Array, " unit *copy"]
    """Position, in cells from the west."""
    y: Float[Array, " unit *copy"]
    """Position, in cells from the south."""
    hp: Float[Array, " unit *copy"]
    """Life."""
    shield: Float[Array, " unit *copy"]
    """Shield."""
    energy: Float[Array, " unit *copy"]
    """Energy of healers."""
    reserve: Float[Array, " unit *copy"]
    """Life that a healer has paid energy for, and not yet restored."""
    cooldown: Float[Array, " unit *copy"]
    """Ticks until the unit may attack again."""
    hurt: Float[Array, " unit *copy"]
    """Ticks until the shield regenerates, since the unit was last hit."""
    target: Int[Array, " unit *copy"]
    """Number of the unit that this one attacks or heals; −1: none."""
    doomed: Bool[Array, " unit *copy"]
    """Units that were killed at the last tick, and explode at the next."""
    goal: Float[Array, " 2 *copy"]
    """The point that the enemies attack-move to."""
    last_action: Int[Array, " agent *copy"]
    """The agents' last actions; −1 before the first."""
    time: Int[Array, " *copy"]
    """Steps taken in this episode."""


class Orders(NamedTuple):
    """The orders of the agents during one step."""

    target: Int[Array, "agent copy"]
    """Number of the unit to attack or heal; −1: none."""
    moves: Bool[Array, "agent copy"]
    """Agents that walk."""
    to_x: Float[Array, "agent copy"]
    """The point that they walk to."""
    to_y: Float[Array, "agent copy"]
    """The point that they walk to."""


@dataclass(frozen=True, eq=False)
class Squad:
    """The units of one type on one side: consecutive numbers."""

    unit: Unit
    first: int
    """Number of the first."""
    count: int

    @property
    def rows(self) -> slice:
        """Their numbers."""
        return slice(self.first, self.first + self.count)


@dataclass(frozen=True, eq=False)
class Battle:
    """The units of a map as tables, with a last axis of length 1, and the rules."""

    map: Map
    rules: Rules

    @property
    def agents(self) -> int:
        """Number of agents."""
        return len(self.map.allies)

    @property
    def enemies(self) -> int:
        """Number of enemies."""
        return len(self.map.enemies)

    @functools.cached_property
    def units(self) -> tuple[Unit, ...]:
        """All units by number."""
        return (*self.map.allies.units, *self.map.enemies.units)

    def table(self, field: str) -> Float[np.ndarray, "unit 1"]:
        """A numeric field of all units."""
        return np.array([getattr(unit, field) for unit in self.units], np.float32)[:, None]

    @functools.cached_property
    def squads(self) -> tuple[tuple[Squad, ...], tuple[Squad, ...]]:
        """The squads of the agents, and those of the enemies."""
        return _squads(self.map.allies, 0), _squads(self.map.enemies, self.agents)

    @functools.cached_property
    def heals(self) -> Bool[np.ndarray, " unit"]:
        """Healers."""
        return np.array([unit.heal is not None for unit in self.units])

    @functools.cached_property
    def flies(self) -> Bool[np.ndarray, " unit"]:
        """Units on the plane `air`."""
        return np.array([unit.plane == "air" for unit in self.units])

    @functools.cached_property
    def may_target(self) -> Bool[np.ndarray, "unit unit"]:
        """True if the first unit can attack or heal the second."""
        side = np.arange(len(self.units)) < self.agents
        same = side[:, None] == side[None, :]
        reach = np.array([[b.plane in a.targets for b in self.units] for a in self.units])
        armed = np.array([unit.damage > 0 for unit in self.units])[:, None]
        healed = same & self.heals[:, None] & ~self.heals[None, :]
        return reach & np.where(self.heals[:, None], healed, armed & ~same)

    def side(self, enemies: bool) -> slice:
        """Numbers of the units of one side."""
        return slice(self.agents, None) if enemies else slice(0, self.agents)

    def pool(self, enemies: bool) -> slice:
        """Numbers of the units among which one side has its targets: the other side, or, if it has
        healers, all."""
        heals = self.heals[self.side(enemies)].any()
        return slice(0, None) if heals else self.side(not enemies)


def _squads(army: Army, first: int) -> tuple[Squad, ...]:
    squads = []
    for name in dict.fromkeys(army.names):
        index = army.names.index(name)
        squads.append(Squad(army.units[index], first + index, army.names.count(name)))
    return tuple(squads)
