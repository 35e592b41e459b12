"""The simulation of one step: eight ticks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.attacks import Noise, attack, regenerate
from perla.envs.skirmish.battle import REST, USUAL_DIFFICULTY, Battle, Orders, State
from perla.envs.skirmish.movement import move
from perla.envs.skirmish.targets import choose_targets
from perla.types import Array, Bool, Float, UInt

_REST_STREAM = np.uint32(1024)
"""Number of the first stream of the enemies' rests; those of a tick are smaller."""


def simulate(
    battle: Battle, seed: UInt[Array, " copy"], state: State, orders: Orders, ticks: int
) -> State:
    """`ticks` ticks of a battle; every array has a last axis of copies.

    `seed` determines everything random. In a tick all units choose targets, then move, then
    regenerate, and then attack.
    """

    def body(number: Array, state: State) -> State:
        return tick(battle, state, orders, _noise(battle, seed, number))

    return jax.lax.fori_loop(0, ticks, body, state)


def tick(battle: Battle, state: State, orders: Orders, noise: Noise) -> State:
    """One tick of a battle."""
    aim = choose_targets(battle, state, orders)
    moved = move(battle, state, orders, aim)
    fought = attack(battle, state, moved, aim, noise)
    return regenerate(battle, fought)._replace(target=aim.target)


def rests(battle: Battle, seed: UInt[Array, " copy"]) -> Bool[Array, "enemy copy"] | None:
    """The enemies that rest during the step with this `seed`, by the difficulty; none: nobody."""
    share = REST * (USUAL_DIFFICULTY - battle.difficulty)
    if share <= 0:
        return None
    streams = _REST_STREAM + np.arange(battle.enemies, dtype=np.uint32)[:, None]
    return uniform(hash_bits(seed[None], streams)) < share


def _noise(battle: Battle, seed: UInt[Array, " copy"], number: Array) -> Noise:
    low, high = battle.rules.cooldown_noise
    # Streams of a copy are numbered: the coin's is 0, then each unit has one.
    streams = np.arange(len(battle.units) + 1, dtype=np.uint32)[:, None]
    seed = seed + number.astype(jnp.uint32) * np.uint32(0x9E3779B9)
    bits = hash_bits(seed[None], streams)
    cooldown = jnp.zeros(bits[1:].shape)
    if high > low:
        cooldown = low + (high - low) * uniform(bits[1:])
    return Noise(agents_first=bits[0] < np.uint32(1 << 31), cooldown=cooldown)


def hash_bits(
    seed: UInt[Array, "one copy"], stream: UInt[np.ndarray, "stream one"]
) -> UInt[Array, "stream copy"]:
    """32 random bits for each seed and stream: two rounds of multiplication and shift.

    Cheaper than JAX's generators, and good enough for noise within a battle.
    """
    bits = seed ^ (stream * np.uint32(0x85EBCA6B))
    for multiplier in (0x7FEB352D, 0x846CA68B):
        bits = (bits ^ (bits >> 16)) * np.uint32(multiplier)
    return bits ^ (bits >> 15)


def uniform(bits: UInt[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Uniform numbers in [0, 1) from 32 random bits each."""
    return (bits >> 8).astype(jnp.float32) * np.float32(2.0**-24)
