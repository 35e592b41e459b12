"""The units of SMAC's, SMACv2's and SMAClite's environments, for scripted agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from perla.envs.battlefield import FIRST_TARGET, Battlefield
from perla.envs.protocol import Spec
from perla.errors import UserError

_CENTRE = 16.0, 16.0
"""The centre of SMAC's maps, where agents go while no enemy is known."""


def read_battlefield(spec: Spec, env: Any) -> Battlefield:
    """Both sides of a battle, from the dictionaries `agents` and `enemies` of `env`: number → unit.

    Raises `UserError` if there are none.
    """
    env = getattr(env, "env", env)  # SMACv2's wrapper, and the bridge's own of SMAClite.
    agents, enemies = getattr(env, "agents", None), getattr(env, "enemies", None)
    if not (isinstance(agents, Mapping) and isinstance(enemies, Mapping)):
        raise UserError(f"{spec.id}: does not show its units, so only 'random' can play it")
    targets = spec.max_actions - FIRST_TARGET
    x, y, life, _ = _sheet(agents, spec.agents)
    enemy_x, enemy_y, enemy_life, enemy_shield = _sheet(enemies, targets)
    most = np.array([_most(agents.get(agent)) for agent in range(spec.agents)])
    wait = [
        _first(agents.get(agent), "weapon_cooldown", "cooldown") for agent in range(spec.agents)
    ]
    seen = enemy_life > 0
    camp = (enemy_x[seen].mean(), enemy_y[seen].mean()) if seen.any() else _CENTRE
    hittable = [
        [_can_hit(agents.get(agent), enemies.get(enemy)) for enemy in range(targets)]
        for agent in range(spec.agents)
    ]
    return Battlefield(
        x=x,
        y=y,
        life=life,
        hurt=life < most,
        ready=np.array(wait) <= 0,
        heals=np.array([_heals(env, agents.get(agent)) for agent in range(spec.agents)]),
        enemy_x=enemy_x,
        enemy_y=enemy_y,
        enemy_life=np.where(seen, enemy_life + enemy_shield, 0).astype(np.float32),
        hittable=np.array(hittable),
        camp=np.array(camp, np.float32),
    )


def _sheet(units: Mapping[int, Any], count: int) -> np.ndarray:
    """x, y, life and shield of the units with the numbers below `count`, 0 for missing ones."""
    sheet = np.zeros((4, count), np.float32)
    for number, unit in units.items():
        if number < count:
            place = unit.pos
            x, y = (place.x, place.y) if hasattr(place, "x") else place
            sheet[:, number] = x, y, _first(unit, "health", "hp"), _first(unit, "shield")
    return sheet


def _first(unit: Any, *names: str) -> float:
    """The first attribute that `unit` has of `names`; 0 if there is none."""
    return next((float(getattr(unit, name)) for name in names if hasattr(unit, name)), 0.0)


def _most(unit: Any) -> float:
    return _first(unit, "health_max", "max_hp")


def _heals(env: Any, unit: Any) -> bool:
    """True for a medivac: SMAC compares the type's number, SMAClite has a word for it."""
    if hasattr(unit, "unit_type"):
        return bool(unit.unit_type == getattr(env, "medivac_id", None))
    return getattr(getattr(unit, "combat_type", None), "name", "") == "HEALING"


def _can_hit(unit: Any, target: Any) -> bool:
    """False if the unit's weapon cannot reach the target's plane; StarCraft II does not say so,
    and ignores the order."""
    if unit is None or target is None:
        return False
    return not hasattr(unit, "valid_targets") or target.plane in unit.valid_targets
