"""Attacks and healing, shields and regeneration: everything that changes life."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.battle import Battle, Squad, State
from perla.envs.skirmish.targets import Aim
from perla.envs.skirmish.units import TICKS_PER_SECOND, Unit
from perla.types import Array, Bool, Float

SHIELD_REGEN = 2.0
"""Shield regained each second."""
SHIELD_DELAY = 10.0
"""Seconds without damage before a shield regenerates."""


class Noise(NamedTuple):
    """The random numbers of one tick."""

    agents_first: Bool[Array, " copy"]
    """The agents attack before the enemies."""
    cooldown: Float[Array, "unit copy"]
    """Ticks added to the cooldowns that begin."""


def regenerate(battle: Battle, state: State) -> State:
    """One tick of regeneration of shields, energy and life."""
    alive = state.hp > 0
    shield = battle.table("shield")
    if shield.any():
        hurt = jnp.maximum(state.hurt - 1, 0)
        gain = jnp.where(alive & (hurt == 0), SHIELD_REGEN / TICKS_PER_SECOND, 0)
        state = state._replace(hurt=hurt, shield=jnp.minimum(state.shield + gain, shield))
    if battle.heals.any():
        regen = _heal_table(battle, "energy_regen") / TICKS_PER_SECOND
        energy = jnp.minimum(state.energy + regen, _heal_table(battle, "energy_max"))
        state = state._replace(energy=energy)
    regen = battle.table("hp_regen") / TICKS_PER_SECOND
    if regen.any():
        hp = jnp.minimum(state.hp + regen, battle.table("hp"))
        state = state._replace(hp=jnp.where(alive, hp, 0))
    return state


def _heal_table(battle: Battle, field: str) -> Float[np.ndarray, "unit 1"]:
    values = [getattr(unit.heal, field) if unit.heal else 0.0 for unit in battle.units]
    return np.array(values, np.float32)[:, None]


def attack(battle: Battle, before: State, state: State, aim: Aim, noise: Noise) -> State:
    """The attacks of one tick: those of one side, then those of the other side's survivors.

    All attacks of a side happen at once. Units of one type that hit the same unit strike one after
    the other, and so do types. `before` is the state at the start of the tick.
    """
    state = state._replace(cooldown=jnp.maximum(state.cooldown - 1, 0))
    ready = (state.cooldown <= 0) & aim.in_range
    doomed = before.doomed
    alive = state.hp > 0
    was = state
    first = noise.agents_first[None]
    state = _side_attacks(battle, state, aim, (ready & alive & first) | doomed, False)
    state = _side_attacks(battle, state, aim, (ready & (state.hp > 0)) | doomed, True)
    late = ready & (state.hp > 0) & ~first
    state = _side_attacks(battle, state, aim, late, False)
    fired = ready & alive & (battle.table("damage") > 0)
    period = battle.table("period") + noise.cooldown
    state = state._replace(cooldown=jnp.where(fired, period, state.cooldown))
    suicides = np.array([unit.dies_on_attack for unit in battle.units])[:, None]
    explodes = np.array([unit.explodes_when_killed for unit in battle.units])[:, None]
    hit = (state.hp < was.hp) | (state.shield < was.shield)
    state = state._replace(hurt=jnp.where(hit, SHIELD_DELAY * TICKS_PER_SECOND, state.hurt))
    if battle.heals.any():
        state = _heal(battle, before, state, aim)
    if explodes.any():
        killed = alive & (state.hp <= 0) & ~(suicides & fired)
        state = state._replace(doomed=killed & explodes)
    return state


def _side_attacks(
    battle: Battle, state: State, aim: Aim, fires: Bool[Array, "unit copy"], enemies: bool
) -> State:
    """The attacks of one side's units that fire."""
    foes = battle.side(not enemies)
    units = battle.units[foes]
    hp, shield = state.hp[foes], state.shield[foes]
    for squad in battle.squads[enemies]:
        if not squad.unit.damage:
            continue
        hits = _hits(battle, state, aim, fires, squad, foes)
        hp, shield = _damage(squad.unit, units, hits, hp, shield)
    state = state._replace(
        hp=state.hp.at[foes].set(hp),
        shield=state.shield.at[foes].set(shield),
    )
    suicides = np.array([unit.dies_on_attack for unit in battle.units])[:, None]
    if suicides[battle.side(enemies)].any():
        mine = np.zeros_like(suicides)
        mine[battle.side(enemies)] = True
        state = state._replace(hp=jnp.where(suicides & mine & fires, 0, state.hp))
    return state


def _hits(
    battle: Battle, state: State, aim: Aim, fires: Array, squad: Squad, foes: slice
) -> Float[Array, "foe copy"]:
    """Number of attacks of a squad that reach each foe."""
    rows = squad.rows
    fire = fires[rows][:, None]
    numbers = np.arange(len(battle.units))[None, foes, None]
    splash = squad.unit.splash
    if splash is None:
        reached = aim.target[rows][:, None] == numbers
    else:
        radius = battle.table("radius")[None, foes]
        dx = state.x[None, foes] - state.x[rows][:, None]
        dy = state.y[None, foes] - state.y[rows][:, None]
        if splash.shape == "circle":
            reached = dx * dx + dy * dy <= (splash.radius + radius) ** 2
        else:
            # Along the shot and across it, from the target.
            to_x, to_y = aim.dx[rows][:, None], aim.dy[rows][:, None]
            length = jnp.sqrt(jnp.maximum(to_x * to_x + to_y * to_y, 1e-12))
            to_x, to_y = to_x / length, to_y / length
            along = jnp.abs(dx * to_x + dy * to_y - length) - splash.width / 2
            across = jnp.abs(dy * to_x - dx * to_y) - splash.length / 2
            gap = jnp.maximum(along, 0) ** 2 + jnp.maximum(across, 0) ** 2
            reached = gap <= radius**2
        hittable = np.array([squad.unit.hit(unit) > 0 for unit in battle.units[foes]])
        reached &= hittable[None, :, None]
    return (fire & reached).sum(0).astype(jnp.float32)


def _damage(
    unit: Unit,
    foes: tuple[Unit, ...],
    hits: Float[Array, "foe copy"],
    hp: Float[Array, "foe copy"],
    shield: Float[Array, "foe copy"],
) -> tuple[Float[Array, "foe copy"], Float[Array, "foe copy"]]:
    """Life and shield after so many attacks of `unit`.

    The shield absorbs hits until it is gone. Armour reduces the part of each hit that reaches life.
    """
    damage = np.array([unit.hit(foe) for foe in foes], np.float32)[:, None]
    armor = np.array([foe.armor for foe in foes], np.float32)[:, None]
    hits = hits * unit.attacks
    if any(foe.shield for foe in foes):
        absorbed = jnp.minimum(hits, jnp.floor(shield / np.maximum(damage, 1e-9)))
        shield, hits = shield - absorbed * damage, hits - absorbed
        spill = jnp.maximum(damage - shield - armor, 0)
        hp = jnp.where(hits > 0, hp - spill, hp)
        shield, hits = jnp.where(hits > 0, 0, shield), jnp.maximum(hits - 1, 0)
    hp = hp - hits * np.maximum(damage - armor, 0)
    return jnp.maximum(hp, 0), shield


def _heal(battle: Battle, before: State, state: State, aim: Aim) -> State:
    """One tick of healing, one healer after another."""
    most = battle.table("hp")
    numbers = np.arange(len(battle.units))[:, None]
    for healer in np.flatnonzero(battle.heals):
        heal = battle.units[healer].heal
        assert heal is not None
        target = aim.target[healer]
        patient = numbers == target[None]
        missing = jnp.where(patient, most - state.hp, 0).sum(0)
        able = (state.hp[healer] > 0) & aim.in_range[healer] & (missing > 0)
        able &= jnp.where(patient, state.hp, 0).sum(0) > 0
        able &= (before.target[healer] == target) | (state.energy[healer] >= heal.energy_min)
        wanted = jnp.minimum(missing, heal.hp_per_s / TICKS_PER_SECOND)
        reserve, energy = state.reserve[healer], state.energy[healer]
        spent = jnp.where(able & (reserve < wanted), jnp.minimum(energy, 1.0), 0)
        reserve = reserve + spent / heal.energy_per_hp
        given = jnp.where(able, jnp.minimum(wanted, reserve), 0)
        state = state._replace(
            hp=jnp.minimum(state.hp + jnp.where(patient, given[None], 0), most),
            energy=state.energy.at[healer].set(energy - spent),
            reserve=state.reserve.at[healer].set(reserve - given),
        )
    return state
