"""The first states of episodes."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.battle import NO_TARGET, SCRIPTS, Battle, State
from perla.envs.skirmish.movement import stay_out_of_walls
from perla.envs.skirmish.places import random_places
from perla.envs.skirmish.simulate import hash_bits, uniform
from perla.envs.skirmish.teams import Team, draw_roster
from perla.types import Array, Int, UInt

Start = Literal["map", "jittered", "random"]
"""Starts of episodes: the map's, near them, or SMACv2's random ones."""

JITTER = 0.75
"""Largest displacement along each axis of a jittered start."""
LEAST_LIFE = 0.6
"""Smallest share of life of a jittered start."""
_SCRIPT_STREAM = np.uint32(1 << 20)
"""Number of the stream that draws the enemies' script."""


def start_battle(
    battle: Battle, start: Start, seed: UInt[Array, " copy"], team: Team | None = None
) -> State:
    """The first state of an episode, in every copy. A `team` is drawn anew in each."""
    copies, units = seed.shape[0], len(battle.units)
    roster = None
    if team is not None:
        roster = draw_roster(team, battle.count(False), battle.count(True), seed)
    if start == "random":
        x, y = random_places(battle, seed)
    else:
        x, y = jnp.broadcast_to(battle.starts.T[:, :, None], (2, len(battle.starts), copies))
    x, y = (battle.to_units(roster, places, places[0]) for places in (x, y))
    hp = jnp.broadcast_to(battle.table("hp"), (units, copies))
    draws = uniform(hash_bits(seed[None], np.arange(3 * units + 1, dtype=np.uint32)[:, None]))
    if start == "jittered":
        reach = JITTER * (battle.table("speed") > 0)
        new_x = x + reach * (2 * draws[1 : units + 1] - 1)
        new_y = y + reach * (2 * draws[units + 1 : 2 * units + 1] - 1)
        x, y = stay_out_of_walls(battle, x, y, new_x, new_y)
        hp = hp * (LEAST_LIFE + (1 - LEAST_LIFE) * draws[2 * units + 1 :])
    if roster is not None:
        hp = battle.to_units(roster, jnp.take_along_axis(hp, roster, 0), 0.0)
    order = battle.map.order
    to = np.array(order.to or (0.0, 0.0), np.float32)[:, None]
    or_to = np.array(order.or_to or order.to or (0.0, 0.0), np.float32)[:, None]
    goal = jnp.asarray(to) + (or_to - to) * draws[:1]
    if start == "random":  # The map's point has lost its meaning: the enemies march to the agents.
        there = (hp > 0)[battle.side(False)]
        goal = jnp.stack([jnp.where(there, v[battle.side(False)], 0).sum(0) for v in (x, y)])
        goal = goal / there.sum(0)[None]
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
        goal=goal,
        last_action=jnp.full((battle.count(False), copies), NO_TARGET, jnp.int32),
        time=jnp.zeros(copies, jnp.int32),
        script=_draw_script(battle, seed),
        velocity=jnp.zeros((2, units, copies)) if battle.rules.avoids else None,
        roster=roster,
    )


def _draw_script(battle: Battle, seed: UInt[Array, " copy"]) -> Int[Array, " copy"] | None:
    if battle.script != "mixed":
        return None
    bits = hash_bits(seed[None], np.array([[_SCRIPT_STREAM]]))[0]
    return (bits % np.uint32(len(SCRIPTS))).astype(jnp.int32)
