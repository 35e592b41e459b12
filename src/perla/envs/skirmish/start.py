"""The first states of episodes."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.battle import NO_TARGET, Battle, State
from perla.envs.skirmish.movement import stay_out_of_walls
from perla.envs.skirmish.simulate import hash_bits, uniform
from perla.types import Array, UInt

Start = Literal["map", "jittered"]
"""Starts of episodes: the map's, or near them."""

JITTER = 0.75
"""Largest displacement along each axis of a jittered start."""
LEAST_LIFE = 0.6
"""Smallest share of life of a jittered start."""


def start_battle(battle: Battle, start: Start, seed: UInt[Array, " copy"]) -> State:
    """The first state of an episode, in every copy."""
    army = battle.map.allies, battle.map.enemies
    places = np.concatenate([each.start for each in army]).astype(np.float32)
    copies, units = seed.shape[0], len(battle.units)
    x, y = (jnp.broadcast_to(places[:, axis, None], (units, copies)) for axis in (0, 1))
    hp = jnp.broadcast_to(battle.table("hp"), (units, copies))
    draws = uniform(hash_bits(seed[None], np.arange(3 * units + 1, dtype=np.uint32)[:, None]))
    if start == "jittered":
        reach = JITTER * (battle.table("speed") > 0)
        new_x = x + reach * (2 * draws[1 : units + 1] - 1)
        new_y = y + reach * (2 * draws[units + 1 : 2 * units + 1] - 1)
        x, y = stay_out_of_walls(battle, x, y, new_x, new_y)
        hp = hp * (LEAST_LIFE + (1 - LEAST_LIFE) * draws[2 * units + 1 :])
    order = battle.map.order
    to = np.array(order.to or (0.0, 0.0), np.float32)[:, None]
    or_to = np.array(order.or_to or order.to or (0.0, 0.0), np.float32)[:, None]
    zero = jnp.zeros((units, copies))
    energy = np.array([u.heal.energy_start if u.heal else 0.0 for u in battle.units], np.float32)
    return State(
        x=x,
        y=y,
        hp=hp,
        shield=jnp.broadcast_to(battle.table("shield"), (units, copies)),
        energy=jnp.broadcast_to(energy[:, None], (units, copies)),
        reserve=zero,
        cooldown=zero,
        hurt=zero,
        target=jnp.full((units, copies), NO_TARGET, jnp.int32),
        doomed=jnp.zeros((units, copies), bool),
        goal=jnp.asarray(to) + (or_to - to) * draws[:1],
        last_action=jnp.full((battle.agents, copies), NO_TARGET, jnp.int32),
        time=jnp.zeros(copies, jnp.int32),
    )
