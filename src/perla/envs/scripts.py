"""Scripted agents: baselines that a learned policy has to beat.

They see the whole battle, but only use the actions that are available.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from perla.envs.battlefield import (
    EAST,
    FIRST_TARGET,
    NOOP,
    NORTH,
    SIGHT,
    SOUTH,
    STOP,
    WEST,
    Battlefield,
)  # fmt: skip
from perla.envs.protocol import Env, HostEnv
from perla.envs.wrappers import sample_actions
from perla.errors import UserError, nearest
from perla.types import Array, Bool, Float, Int, PRNGKeyArray

Act = Callable[
    [PRNGKeyArray, Battlefield | None, Bool[Array, "agent action"]], Int[Array, " agent"]
]
"""The actions of all agents of one environment from a key, the battlefield and the action mask."""


class Script(NamedTuple):
    """A scripted policy of all agents of one environment."""

    act: Act
    """Chooses the actions."""
    looks: bool
    """It needs the battlefield."""


SCRIPTS = {
    "focus-fire": "attacks the enemy with the least life and shield within reach, or else advances",
    "nearest": "attacks the nearest enemy within reach, or else advances",
    "kite": "attacks the nearest enemy when its weapon is ready, and steps back while it is not",
    "random": "takes any available action; for every environment",
}
"""Scripted policies, with a line about each."""

FOLLOW = 3.0
"""Distance to which a healer follows the nearest agent."""
_NEVER = 1e9


def make_script(env: Env | HostEnv, name: str) -> Script:
    """The scripted policy `name` of the agents of `env`.

    Raises `UserError` for an unknown name, and for a script of battles if `env` has none.
    """
    if name not in SCRIPTS:
        raise nearest(name, SCRIPTS, what="script")
    if name == "random":
        return Script(lambda key, field, avail: sample_actions(key, env.spec, avail), looks=False)
    if not callable(getattr(env, "battlefield", None)):
        raise UserError(
            f"{name}: is a script for battles, such as skirmish:3m; for {env.spec.id} there is "
            "'random'"
        )

    def act(
        key: PRNGKeyArray, field: Battlefield | None, avail: Bool[Array, "agent action"]
    ) -> Int[Array, " agent"]:
        assert field is not None
        fights = _fight(field, avail, name)
        heals = _support(field, avail, name)
        return jnp.where(avail[:, NOOP], NOOP, jnp.where(field.heals, heals, fights))

    return Script(act, looks=True)


def _fight(field: Battlefield, avail: Bool[Array, "agent action"], name: str) -> Array:
    """Actions of agents with a weapon."""
    dx, dy = field.enemy_x[None] - field.x[:, None], field.enemy_y[None] - field.y[:, None]
    hittable = field.hittable & (field.enemy_life > 0)[None]
    distance = jnp.where(hittable, jnp.hypot(dx, dy), _NEVER)
    targets = avail[:, FIRST_TARGET : FIRST_TARGET + dx.shape[1]] & hittable
    target, found = _best(targets, distance, field.enemy_life[None], name)
    closest = distance.argmin(1)[:, None]
    sees = distance.min(1) < SIGHT
    way_x = jnp.where(sees, jnp.take_along_axis(dx, closest, 1)[:, 0], field.camp[0] - field.x)
    way_y = jnp.where(sees, jnp.take_along_axis(dy, closest, 1)[:, 0], field.camp[1] - field.y)
    advance = _step(avail, way_x, way_y)
    if name == "kite":
        retreat = _step(avail, -way_x, -way_y)
        return jnp.where(found, jnp.where(field.ready, target, retreat), advance)
    return jnp.where(found, target, advance)


def _support(field: Battlefield, avail: Bool[Array, "agent action"], name: str) -> Array:
    """Actions of healers."""
    agents = field.x.shape[0]
    patients = ~field.heals & (field.life > 0)
    dx, dy = field.x[None] - field.x[:, None], field.y[None] - field.y[:, None]
    distance = jnp.where(patients[None], jnp.hypot(dx, dy), _NEVER)
    count = min(agents, avail.shape[1] - FIRST_TARGET)
    mask = jnp.zeros((agents, agents), bool)
    mask = mask.at[:, :count].set(avail[:, FIRST_TARGET : FIRST_TARGET + count])
    target, found = _best(mask & (patients & field.hurt)[None], distance, field.life[None], name)
    closest = distance.argmin(1)[:, None]
    way_x, way_y = (jnp.take_along_axis(way, closest, 1)[:, 0] for way in (dx, dy))
    follow = jnp.where(distance.min(1) > FOLLOW, _step(avail, way_x, way_y), STOP)
    return jnp.where(found, target, jnp.where(distance.min(1) < _NEVER, follow, STOP))


def _best(
    targets: Bool[Array, "agent unit"],
    distance: Float[Array, "agent unit"],
    life: Float[Array, "one unit"],
    name: str,
) -> tuple[Int[Array, " agent"], Bool[Array, " agent"]]:
    """The action that attacks or heals the best of the available `targets`, and if there is one."""
    if name == "focus-fire":
        least = jnp.where(targets, life, _NEVER).min(1, keepdims=True)
        weakest = targets & (life == least)
        choice = jnp.where(weakest, distance, _NEVER).argmin(1)
    else:
        choice = jnp.where(targets, distance, _NEVER).argmin(1)
    return FIRST_TARGET + choice, targets.any(1)


def _step(
    avail: Bool[Array, "agent action"], dx: Float[Array, " agent"], dy: Float[Array, " agent"]
) -> Int[Array, " agent"]:
    """The move along the longer axis of a way, or if it is masked along the other, or STOP."""
    across = jnp.where(dx > 0, EAST, WEST)
    along = jnp.where(dy > 0, NORTH, SOUTH)
    wide = jnp.abs(dx) >= jnp.abs(dy)
    first, second = jnp.where(wide, across, along), jnp.where(wide, along, across)

    def free(action: Array) -> Array:
        return jnp.take_along_axis(avail, action[:, None], 1)[:, 0]

    return jnp.where(free(first), first, jnp.where(free(second), second, STOP))
