"""Collision avoidance as SMAClite's: ORCA (van den Berg et al., 2011), for `rules="smaclite"`.

Every walking unit takes the velocity nearest to the one it prefers that keeps it apart from its
neighbours for a second, if they do their share. Those velocities are a half-plane for each
neighbour, so the nearest one is a linear programme in two dimensions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.battle import Battle, State
from perla.envs.skirmish.units import TICKS_PER_SECOND
from perla.types import Array, Bool, Float, Int

_SWEEPS = 48
"""Steps towards the velocity that violates the half-planes least, where they have no common one."""
_PARALLEL = 1e-5
_NEIGHBOURS = 12
"""Most units that one avoids, the nearest: about as many as can touch it."""


class HalfPlanes(NamedTuple):
    """The velocities v with n·(v − p) ≥ 0, for every unit and neighbour: `[other, unit, copy]`."""

    normal_x: Array
    normal_y: Array
    point_x: Array
    point_y: Array
    exists: Bool[Array, "other unit copy"]


def avoid(
    battle: Battle, state: State, prefer_x: Array, prefer_y: Array
) -> tuple[Float[Array, "unit copy"], Float[Array, "unit copy"]]:
    """The velocity of every unit, in cells a second, from the preferred one.

    `state.velocity` is that of the last tick. Units that prefer to stand do so.
    """
    walks = ((prefer_x != 0) | (prefer_y != 0)) & (state.hp > 0)

    def steer(_: None) -> tuple[Array, Array]:
        planes = _half_planes(battle, state, walks)
        fastest = jnp.broadcast_to(battle.table("speed"), prefer_x.shape)
        x, y, solved = _nearest(planes, prefer_x, prefer_y, fastest)
        least = _least_violating(planes, x, y, fastest)
        return jnp.where(solved, x, least[0]), jnp.where(solved, y, least[1])

    stand = jnp.zeros_like(prefer_x), jnp.zeros_like(prefer_y)
    x, y = jax.lax.cond(walks.any(), steer, lambda _: stand, None)
    return jnp.where(walks, x, 0), jnp.where(walks, y, 0)


def _half_planes(battle: Battle, state: State, walks: Bool[Array, "unit copy"]) -> HalfPlanes:
    assert state.velocity is not None
    vx, vy = state.velocity
    index, square = _neighbours(battle, state)

    def of(values: Any) -> Float[Array, "other unit copy"]:
        values = jnp.broadcast_to(values, vx.shape)
        flat = jnp.take_along_axis(values, index.reshape(-1, index.shape[-1]), axis=0)
        return flat.reshape(index.shape)

    px, py = of(state.x) - state.x[None], of(state.y) - state.y[None]
    rx, ry = vx[None] - of(vx), vy[None] - of(vy)
    touch = of(battle.table("radius")) + battle.table("radius")[None]
    exists, square = jnp.isfinite(square), jnp.clip(square, 1e-9, 1e9)
    apart = square > touch**2
    # The velocity obstacle is a cone that is cut off by a circle: after a second, or after a tick
    # for units that overlap.
    rate = jnp.where(apart, 1.0, TICKS_PER_SECOND)
    wx, wy = rx - rate * px, ry - rate * py
    w = jnp.sqrt(jnp.maximum(wx * wx + wy * wy, 1e-12))
    dot = wx * px + wy * py
    on_circle = ~apart | ((dot < 0) & (dot * dot > touch**2 * w * w))
    leg = jnp.sqrt(jnp.maximum(square - touch**2, 0))
    left = px * wy - py * wx > 0
    leg_x = jnp.where(left, px * leg - py * touch, -(px * leg + py * touch)) / square
    leg_y = jnp.where(left, px * touch + py * leg, px * touch - py * leg) / square
    along = rx * leg_x + ry * leg_y
    normal_x, normal_y = jnp.where(on_circle, wx / w, -leg_y), jnp.where(on_circle, wy / w, leg_x)
    ux = jnp.where(on_circle, (touch * rate - w) * wx / w, along * leg_x - rx)
    uy = jnp.where(on_circle, (touch * rate - w) * wy / w, along * leg_y - ry)
    share = jnp.where(of(walks.astype(jnp.float32)) > 0, 0.5, 1.0)
    return HalfPlanes(normal_x, normal_y, vx[None] + share * ux, vy[None] + share * uy, exists)


def _neighbours(
    battle: Battle, state: State
) -> tuple[Int[Array, "other unit copy"], Float[Array, "other unit copy"]]:
    """Numbers of the nearest units that each unit avoids, and their squared distances; infinite if
    there are no more."""
    radius = battle.table("radius")[:, 0]
    collides = np.array([unit.collides for unit in battle.units])
    pairs = collides[:, None] & collides[None, :] & (battle.flies[:, None] == battle.flies[None, :])
    np.fill_diagonal(pairs, False)
    dx, dy = state.x[:, None] - state.x[None], state.y[:, None] - state.y[None]
    square, alive = dx * dx + dy * dy, state.hp > 0
    near = pairs[:, :, None] & (square < ((radius + radius.max())[None, :, None]) ** 2)
    square = jnp.where(near & alive[:, None] & alive[None], square, jnp.inf)
    numbers = np.arange(len(radius))[:, None, None]

    def take(square: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        index = square.argmin(0)
        return jnp.where(numbers == index[None], jnp.inf, square), (index, square.min(0))

    count = min(_NEIGHBOURS, len(radius))
    return jax.lax.scan(take, square, None, length=count)[1]


def _nearest(
    planes: HalfPlanes, prefer_x: Array, prefer_y: Array, fastest: Array
) -> tuple[Array, Array, Bool[Array, "unit copy"]]:
    """The velocity in all half-planes and within the speed that is nearest to the preferred one,
    and if there is one. Half-planes are added one after another (de Berg et al., 2008, §4.4)."""
    numbers = np.arange(planes.exists.shape[0])[:, None, None]

    def add(number: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, y, solved = carry
        nx, ny, px, py, exists = (plane[number] for plane in planes)
        violated = exists & (nx * (x - px) + ny * (y - py) < 0)
        # On the line p + t d, with the direction d to the right of the normal.
        dx, dy = ny, -nx
        dot = px * dx + py * dy
        room = dot * dot + fastest * fastest - px * px - py * py
        root = jnp.sqrt(jnp.maximum(room, 0))
        ox, oy = planes.normal_y, -planes.normal_x
        before = planes.exists & (numbers < number)
        denominator = dx[None] * oy - dy[None] * ox
        numerator = ox * (py[None] - planes.point_y) - oy * (px[None] - planes.point_x)
        parallel = jnp.abs(denominator) < _PARALLEL
        t = numerator / jnp.where(parallel, 1.0, denominator)
        upper = jnp.where(before & ~parallel & (denominator >= 0), t, jnp.inf).min(0)
        lower = jnp.where(before & ~parallel & (denominator < 0), t, -jnp.inf).max(0)
        upper, lower = jnp.minimum(upper, root - dot), jnp.maximum(lower, -root - dot)
        fails = (room < 0) | (lower > upper) | (before & parallel & (numerator < 0)).any(0)
        best = jnp.clip(dx * (prefer_x - px) + dy * (prefer_y - py), lower, upper)
        moves = violated & solved & ~fails
        return (
            jnp.where(moves, px + best * dx, x),
            jnp.where(moves, py + best * dy, y),
            solved & ~(violated & fails),
        )

    start = prefer_x, prefer_y, jnp.ones(prefer_x.shape, bool)
    return jax.lax.fori_loop(0, planes.exists.shape[0], add, start)


def _least_violating(
    planes: HalfPlanes, x: Array, y: Array, fastest: Array
) -> tuple[Float[Array, "unit copy"], Float[Array, "unit copy"]]:
    """About the velocity whose largest distance out of a half-plane is least."""

    def step(number: Array, velocity: tuple[Array, Array]) -> tuple[Array, Array]:
        x, y = velocity
        inside = planes.normal_x * (x[None] - planes.point_x)
        inside += planes.normal_y * (y[None] - planes.point_y)
        inside = jnp.where(planes.exists, inside, jnp.inf)
        worst = inside.argmin(0)[None]
        share = jnp.maximum(-jnp.take_along_axis(inside, worst, 0)[0], 0) / (1 + 0.25 * number)
        x = x + share * jnp.take_along_axis(planes.normal_x, worst, 0)[0]
        y = y + share * jnp.take_along_axis(planes.normal_y, worst, 0)[0]
        slower = jnp.minimum(fastest / jnp.sqrt(jnp.maximum(x * x + y * y, 1e-12)), 1.0)
        return slower * x, slower * y

    return jax.lax.fori_loop(0, _SWEEPS, step, (x, y))
