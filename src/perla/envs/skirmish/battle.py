"""A battle: the units of a map as tables of numbers, and its state."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.maps import Army, Map
from perla.envs.skirmish.units import Rules, Unit
from perla.types import Array, Bool, Float, Int

NO_TARGET = -1

EnemyScript = Literal["nearest", "focus-fire", "kite", "mixed"]
"""Scripts of the enemies. `nearest`: SMAC's, attack the nearest. `focus-fire`: of those in range
attack the one with the least life and shield. `kite`: as `nearest`, and units that shoot step back
during the first half of their cooldown. `mixed`: one of the three in each episode, at random."""
SCRIPTS = ("nearest", "focus-fire", "kite")
"""The scripts that `mixed` draws from, by the number in `State.script`."""

USUAL_DIFFICULTY, SEES_ALL = 7, 8
"""SMAC's default, at which enemies neither rest nor see more, and the level at which they see
everything."""
REST = 0.1
"""Probability that an enemy rests during a step, for each level below `USUAL_DIFFICULTY`."""


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
    script: Int[Array, " *copy"] | None = None
    """Number of the enemies' script in this episode, if they are `mixed`."""
    velocity: Float[Array, "2 unit *copy"] | None = None
    """Velocity in the last tick, in cells a second, if the rules need it."""
    roster: Int[Array, " slot *copy"] | None = None
    """Number of the unit in each slot, agents first, if teams are random."""


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
    rests: Bool[Array, "enemy copy"] | None = None
    """Enemies that do nothing during this step; none: nobody rests."""


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


class Division(NamedTuple):
    """Consecutive units of one side that have the same possible targets."""

    rows: slice
    """Their numbers."""
    pool: slice
    """Numbers of the units among which they have their targets: the other side's, or for healers
    their own side's."""


@dataclass(frozen=True, eq=False)
class Battle:
    """The units of a map as tables, with a last axis of length 1, and the rules."""

    map: Map
    rules: Rules
    script: EnemyScript = "nearest"
    """The script of the enemies."""
    difficulty: int = USUAL_DIFFICULTY
    """The level of the enemies, 1 to 8."""
    slots: Map | None = None
    """The map before its teams became random: its units are the slots."""

    def plays(self, name: str, state: State) -> bool | Bool[Array, " copy"]:
        """True where the enemies play the script `name`: everywhere, nowhere or in some copies."""
        if self.script != "mixed":
            return self.script == name
        assert state.script is not None
        return state.script == SCRIPTS.index(name)

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

    # Slots are the units of the environment's agents and enemies; units are those of the tables.

    @functools.cached_property
    def starts(self) -> Float[np.ndarray, "slot 2"]:
        """The map's place for each slot, agents first."""
        armies = (self.slots or self.map).allies, (self.slots or self.map).enemies
        return np.concatenate([army.start for army in armies]).astype(np.float32)

    def count(self, enemies: bool) -> int:
        """Number of slots of one side."""
        map = self.slots or self.map
        return len(map.enemies if enemies else map.allies)

    def of_slots(self, state: State, values: Any, enemies: bool) -> Any:
        """`values` of all units, `[unit, copy or 1]`, of the units in the slots of one side."""
        if state.roster is None:
            return values[self.side(enemies)]
        first = self.count(False)
        index = state.roster[first:] if enemies else state.roster[:first]
        values = jnp.broadcast_to(values, (len(self.units), index.shape[-1]))
        return jnp.take_along_axis(values, index, axis=0)

    def to_units(self, roster: Array | None, values: Array, otherwise: Any) -> Array:
        """`values` of all slots, `[slot, copy]`, of all units; `otherwise` for absent ones."""
        if roster is None:
            return values
        holds = roster[:, None] == np.arange(len(self.units))[None, :, None]
        found = jnp.where(holds, values[:, None], 0).sum(0)
        return jnp.where(holds.any(0), found, otherwise)

    def side(self, enemies: bool) -> slice:
        """Numbers of the units of one side."""
        return slice(self.agents, None) if enemies else slice(0, self.agents)

    @functools.cached_property
    def divisions(self) -> tuple[tuple[Division, ...], tuple[Division, ...]]:
        """The divisions of the agents, and those of the enemies."""

        def divide(enemies: bool) -> tuple[Division, ...]:
            numbers = range(len(self.units))[self.side(enemies)]
            runs = [list(run) for _, run in itertools.groupby(numbers, self.heals.__getitem__)]
            return tuple(
                Division(slice(run[0], run[-1] + 1), self.side(enemies == bool(self.heals[run[0]])))
                for run in runs
            )

        return divide(False), divide(True)


def _squads(army: Army, first: int) -> tuple[Squad, ...]:
    squads = []
    for name in dict.fromkeys(army.names):
        index = army.names.index(name)
        squads.append(Squad(army.units[index], first + index, army.names.count(name)))
    return tuple(squads)
