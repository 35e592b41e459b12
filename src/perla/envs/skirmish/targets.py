"""The units that others attack or heal: who is chosen, and where they are."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.battle import NO_TARGET, SEES_ALL, Battle, Division, Orders, State
from perla.types import Array, Bool, Float, Int

_INVALID = np.int32(0x7FFFFFFF)
_FALLBACK = np.int32(0x7E000000)
_SECOND = np.int32(0x40000000)
"""Added to the key of a unit that is chosen only if there is none without it."""
_FAR = 2.0**20
"""Squared distance, as it counts, of attackers beyond the scan range."""


class Aim(NamedTuple):
    """The targets of all units."""

    target: Int[Array, "unit copy"]
    """Number of the target; −1: none."""
    exists: Bool[Array, "unit copy"]
    """Units that have a target."""
    in_range: Bool[Array, "unit copy"]
    """Units that can hit or heal their target from where they stand."""
    dx: Float[Array, "unit copy"]
    """The way to the target."""
    dy: Float[Array, "unit copy"]
    """The way to the target."""


def choose_targets(battle: Battle, state: State, orders: Orders) -> Aim:
    """The targets of this tick: the agents' by their orders, the enemies' by themselves."""
    alive = state.hp > 0
    ordered = orders.target
    if not battle.rules.orders_outlive_targets:
        lives = [
            _pick(battle, each, ordered[each.rows], state.hp[each.pool][:, None])
            for each in battle.divisions[0]
        ]
        ordered = jnp.where(jnp.concatenate(lives) > 0, ordered, NO_TARGET)
    ordered = jnp.where(alive[battle.side(False)], ordered, NO_TARGET)
    if battle.map.order.command == "passive":
        chosen = jnp.full_like(state.target[battle.side(True)], NO_TARGET)
    else:
        choices = [_choose(battle, state, ordered, division) for division in battle.divisions[1]]
        chosen = jnp.concatenate(choices)
    if orders.rests is not None:
        chosen = jnp.where(orders.rests, NO_TARGET, chosen)
    target = jnp.concatenate([ordered, chosen])
    divisions = (*battle.divisions[0], *battle.divisions[1])
    aims = [_aim(battle, state, each, target[each.rows]) for each in divisions]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *aims)


def _pairs(division: Division, values: Array) -> tuple[Array, Array]:
    """`values` of a division's units `[1, unit, ...]`, and of its pool `[other, 1, ...]`."""
    return values[division.rows][None], values[division.pool][:, None]


def _pick(
    battle: Battle, division: Division, index: Int[Array, "unit copy"], others: Array
) -> Float[Array, "unit copy"]:
    """The values of the targets with the numbers `index`, of a division's units; 0 for no target.

    `others` are the values of its pool, for each unit or for all: `[other, unit or 1, copy or 1]`.
    """
    numbers = np.arange(len(battle.units))[division.pool, None, None]
    return jnp.where(index[None] == numbers, others, 0).sum(0)


def _aim(battle: Battle, state: State, division: Division, index: Int[Array, "unit copy"]) -> Aim:
    rows, pool = division
    dx = _pick(battle, division, index, state.x[pool][:, None]) - state.x[rows]
    dy = _pick(battle, division, index, state.y[pool][:, None]) - state.y[rows]
    radius, reach = battle.table("radius"), battle.table("radius") + battle.table("range")
    # The squared reach of each unit to each other one, negative where it may not hit it.
    allowed = battle.may_target[rows, pool].T[:, :, None]
    reaches = np.where(allowed, (reach[None, rows] + radius[pool][:, None]) ** 2, np.float32(-1))
    same = (reaches == reaches[0]).all()
    within = reaches[0] if same else _pick(battle, division, index, jnp.asarray(reaches))
    exists = index != NO_TARGET
    return Aim(index, exists, exists & (dx * dx + dy * dy <= within), dx, dy)


def _choose(
    battle: Battle, state: State, ordered: Int[Array, "agent copy"], division: Division
) -> Int[Array, "unit copy"]:
    """The targets of a division of the enemies.

    An enemy keeps a living target in its range, or one that attacks it. Otherwise it chooses the
    nearest unit in its scan range, or else one that attacks it from farther away. A healer chooses
    the unit with the least life of those that are hurt or fight. Scripts of the enemies other than
    `nearest` change the choice.
    """
    rules, (side, pool) = battle.rules, division
    radius, scan = battle.table("radius"), battle.table("scan_range")
    if battle.map.order.command == "hunt" or battle.difficulty >= SEES_ALL:
        scan = np.full_like(scan, 1e3)
    if rules.scan_own_radius:
        scan = scan + radius
    (x, other_x), (y, other_y) = (_pairs(division, v) for v in (state.x, state.y))
    dx, dy = x - other_x, y - other_y
    distance = dx * dx + dy * dy
    me = np.arange(len(battle.units))[None, side, None]
    number = np.arange(len(battle.units))[pool, None, None]
    mine = state.target[side][None] == number

    # Only agents are ordered to attack, so only they attack an enemy.
    attackers = jnp.concatenate(
        [ordered, jnp.full((battle.enemies, *ordered.shape[1:]), NO_TARGET, ordered.dtype)]
    )
    attacks_me = attackers[pool][:, None] == me
    noticed = distance < (scan[None, side] + radius[pool][:, None]) ** 2
    reach = (battle.table("range") + radius)[None, side] + radius[pool][:, None]
    valid = (state.hp[pool] > 0)[:, None] & battle.may_target[side, pool].T[:, :, None]
    keeps = mine & valid & (attacks_me | (distance <= reach**2))
    measure = jnp.where(noticed, distance, _FAR)
    candidate = valid & (noticed | attacks_me)

    key = jax.lax.bitcast_convert_type(measure * np.float32(2.0**-40), jnp.int32)
    healer = battle.heals[pool][:, None, None]
    if rules.healers_first and healer.any():
        foes = battle.heals & (np.arange(len(battle.units)) < battle.agents)
        busy = ((state.hp > 0) & foes[:, None]).any(0)[None, None] & ~healer
        key = jnp.where(healer, key, key | _SECOND)
        key = jnp.where(keeps, jnp.where(busy & ~candidate, _FALLBACK, key), key)
        kept = keeps & ~busy
    else:
        kept = keeps
    if battle.heals[side].any():
        key, candidate, kept = _choose_patients(battle, state, division, candidate, kept)
    elif (focus := battle.plays("focus-fire", state)) is not False:
        key, kept = _focus(state, division, focus, distance <= reach**2, key, kept)
    bits = len(battle.units).bit_length()
    low = np.int32((1 << bits) - 1)
    key = jnp.where(kept, 0, jnp.where(candidate | keeps, key, _INVALID))
    key = jnp.where(key == _INVALID, _INVALID, (key & ~low) | number)
    best = key.min(0)
    chosen = jnp.where(best == _INVALID, NO_TARGET, best & low)
    return jnp.where(state.hp[side] > 0, chosen, NO_TARGET)


def _focus(
    state: State, division: Division, focus: bool | Array, in_range: Array, key: Array, kept: Array
) -> tuple[Array, Array]:
    """Keys and kept targets where the enemies play `focus-fire`: the weakest in range first."""
    life = (state.hp + state.shield)[division.pool][:, None]
    weakest = jax.lax.bitcast_convert_type(life * np.float32(2.0**-40), jnp.int32)
    other = jnp.where(in_range, weakest, key | _SECOND)
    focus = jnp.reshape(jnp.asarray(focus), (1, 1, -1))
    return jnp.where(focus, other, key), kept & ~focus


def _choose_patients(
    battle: Battle, state: State, division: Division, candidate: Array, kept: Array
) -> tuple[Array, Array, Array]:
    """Keys, candidates and kept targets of healers."""
    most = battle.table("hp")
    hurt = (state.hp < most)[division.pool][:, None]
    fights = (state.target != NO_TARGET)[division.pool][:, None]
    measure = state.hp if battle.rules.healers_first else state.hp / most
    life = jax.lax.bitcast_convert_type(measure * np.float32(2.0**-40), jnp.int32)
    return life[division.pool][:, None], candidate & (hurt | fights), kept & hurt
