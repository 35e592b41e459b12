"""The interface of environments with battles, which scripted agents play."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from jaxtyping import Bool, Float

if TYPE_CHECKING:
    Array: TypeAlias = Any
    """A JAX array; a NumPy array in a host environment."""

NOOP, STOP, NORTH, SOUTH, EAST, WEST, FIRST_TARGET = range(7)
"""The actions of every agent in environments with SMAC's interface; action `FIRST_TARGET + k`
attacks enemy k, or for healers heals agent k."""

SIGHT = 9.0
"""Distance between centres below which an agent sees another unit."""


class Battlefield(NamedTuple):
    """Both sides of a battle. The dead have no life.

    An environment with SMAC's actions that has a method `battlefield`, of the state if it is an
    `Env` and without argument if it is a `HostEnv`, can be played by every script.
    """

    x: Float[Array, " agent"]
    """Positions of the agents, from the west."""
    y: Float[Array, " agent"]
    """Positions of the agents, from the south."""
    life: Float[Array, " agent"]
    """Life of the agents, without shields."""
    hurt: Bool[Array, " agent"]
    """Agents that can be healed."""
    ready: Bool[Array, " agent"]
    """Agents whose weapon is ready."""
    heals: Bool[Array, " agent"]
    """Agents that heal instead of attacking."""
    enemy_x: Float[Array, " enemy"]
    """Positions of the enemies, from the west."""
    enemy_y: Float[Array, " enemy"]
    """Positions of the enemies, from the south."""
    enemy_life: Float[Array, " enemy"]
    """Life of the enemies, with shields."""
    hittable: Bool[Array, "agent enemy"]
    """True if the agent's weapon can hit the enemy, if it is alive and near enough."""
    camp: Float[Array, " 2"]
    """The point that agents walk to while no enemy is in sight."""
