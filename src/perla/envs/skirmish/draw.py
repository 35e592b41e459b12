"""Scenes and images of battles."""

from __future__ import annotations

import numpy as np

from perla.envs.render import Field, Fighter, draw_field
from perla.envs.skirmish.battle import NO_TARGET, Battle, State
from perla.envs.skirmish.units import TICKS_PER_SECOND

_RECENT = TICKS_PER_SECOND / 2
"""Ticks during which a shot is drawn: those of a step."""


def draw_battle(battle: Battle, state: State) -> np.ndarray:
    """The terrain, and the living units with their shots: uint8 `[height, width, 3]`.

    Agents are blue and enemies orange. A unit's letter is the first of its type; the bars are its
    life and its shield.
    """
    return draw_field(**battle_scene(battle, state)._asdict())


def battle_scene(battle: Battle, state: State) -> Field:
    """The terrain, and the living units with their shots."""
    targets = _shots(battle, state)
    names = (*battle.map.allies.names, *battle.map.enemies.names)
    fighters = []
    for number, (name, unit) in enumerate(zip(names, battle.units, strict=True)):
        if state.hp[number] <= 0:
            continue
        target = int(targets[number])
        fighters.append(
            Fighter(
                x=float(state.x[number]),
                y=float(state.y[number]),
                radius=unit.radius,
                enemy=number >= battle.agents,
                label=name[:1].upper(),
                life=float(state.hp[number]) / unit.hp,
                shield=float(state.shield[number]) / unit.shield if unit.shield else None,
                shot=(float(state.x[target]), float(state.y[target])) if target >= 0 else None,
                heals=unit.heal is not None,
            )
        )
    return Field(tuple(battle.map.terrain.rows), fighters)


def _shots(battle: Battle, state: State) -> np.ndarray:
    """For each unit the one that it has attacked or healed in the last step; −1: none."""
    period = battle.table("period")[:, 0]
    fired = np.asarray(state.cooldown) > np.maximum(period - _RECENT, 0)
    return np.where(fired | battle.heals, np.asarray(state.target), NO_TARGET)
