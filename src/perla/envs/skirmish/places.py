"""Random starts, as in SMACv2 (Ellis et al., 2023): no sequence of actions wins them all."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.battle import Battle
from perla.envs.skirmish.simulate import hash_bits, uniform
from perla.envs.skirmish.terrain import EDGE, Terrain, nearest_open
from perla.types import Array, Float, UInt

_OFFSET = 2.0
"""Least distance along each axis between the agents and a group that surrounds them."""
_CORNERS = np.array([[0, 0], [0, 1], [1, 1], [1, 0]], np.float32)
_STREAM = np.uint32(1 << 16)
"""Number of the first stream of random numbers."""


def random_places(
    battle: Battle, seed: UInt[Array, " copy"]
) -> tuple[Float[Array, "slot copy"], Float[Array, "slot copy"]]:
    """SMACv2's `surrounded_and_reflect`: x and y of every slot.

    In half of the episodes the agents start in the middle, and one to four groups of enemies on the
    diagonals. In the others each agent starts anywhere in the western half and an enemy at its
    reflection; further enemies start anywhere in the eastern half.
    """
    slots, enemies = len(battle.starts), battle.count(True)
    streams = _STREAM + np.arange(2 * slots + enemies + 10, dtype=np.uint32)[:, None]
    draws = uniform(hash_bits(seed[None], streams))
    west, south, east, north = _bounds(battle.map.terrain)
    size = np.array([[east - west], [north - south]], np.float32)[:, None]
    reflected = _reflect(battle, draws[1 : 2 * slots + 1], size)
    surrounded = _surround(battle, draws[2 * slots + 1 :], size)
    place = jnp.where(draws[:1, None] < 0.5, surrounded, reflected)
    corner = np.array([west, south], np.float32)[:, None, None]
    return _snap(battle, *(place + corner))


def _reflect(battle: Battle, draws: Array, size: np.ndarray) -> Float[Array, "axis slot copy"]:
    # As in SMACv2, no agent starts within a cell of the middle, nor does its reflection.
    agents, enemies = battle.count(False), battle.count(True)
    places = draws.reshape(2, agents + enemies, -1)
    half = size * np.array([0.5, 1.0], np.float32)[:, None, None]
    ally = places[:, :agents] * (half - np.array([1.0, 0.0], np.float32)[:, None, None])
    mirror = jnp.concatenate([size[:1] - ally[:1], ally[1:]])[:, :enemies]
    rest = places[:, agents + mirror.shape[1] :] * half + (size - half)
    return jnp.concatenate([ally, mirror, rest], 1)


def _surround(battle: Battle, draws: Array, size: np.ndarray) -> Float[Array, "axis slot copy"]:
    """Agents in the middle; each enemy belongs to one of up to four groups, each on a diagonal."""
    agents, enemies, middle = battle.count(False), battle.count(True), size / 2
    groups = 1 + (draws[0] * 4).astype(jnp.int32)
    diagonal = jnp.argsort(draws[1:5], axis=0)  # A random order of the corners.
    member = (draws[9:] * groups[None]).astype(jnp.int32)
    place = jnp.zeros((2, enemies, draws.shape[-1]))
    for group in range(4):
        corner = jnp.asarray(_CORNERS)[diagonal[group]].T[:, None]
        inner = middle + _OFFSET * (2 * corner - 1)
        share = draws[5 + group][None, None]
        at = share * inner + (1 - share) * corner * size
        place = jnp.where((member == group)[None], at, place)
    ally = jnp.broadcast_to(middle + _around(battle.starts[:agents]), (2, agents, place.shape[-1]))
    return jnp.concatenate([ally, place + _around(battle.starts[agents:])], 1)


def _around(start: Float[np.ndarray, "slot 2"]) -> Float[np.ndarray, "2 slot 1"]:
    """The places of an army around its centre, each group of the map included."""
    return (start - start.mean(0)).T[:, :, None]


def _bounds(terrain: Terrain) -> tuple[int, int, int, int]:
    """The smallest rectangle with all open cells: west, south, east, north."""
    rows, columns = (np.flatnonzero(terrain.ground.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _snap(battle: Battle, x: Array, y: Array) -> tuple[Array, Array]:
    """Points on open cells: a point in a wall moves into the nearest open cell."""
    terrain = battle.map.terrain
    width, height = terrain.width, terrain.height
    table = nearest_open(terrain.ground, *np.indices((height, width)).reshape(2, -1))
    column = jnp.clip(x, 0, width - 1).astype(jnp.int32)
    row = jnp.clip(y, 0, height - 1).astype(jnp.int32)
    cell = jnp.asarray(table)[row * width + column]
    west, south = cell % width, cell // width
    return jnp.clip(x, west + EDGE, west + 1 - EDGE), jnp.clip(y, south + EDGE, south + 1 - EDGE)
