"""Movement: ways around walls, steps, and collisions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.avoidance import avoid
from perla.envs.skirmish.battle import Battle, Orders, State
from perla.envs.skirmish.targets import Aim
from perla.envs.skirmish.terrain import EDGE, box, find_paths
from perla.envs.skirmish.units import TICKS_PER_SECOND
from perla.types import Array, Bool, Float

_SHOOTS = 2.0
"""Least range of the units that step back when the enemies `kite`."""


def move(battle: Battle, state: State, orders: Orders, aim: Aim) -> State:
    """Move all units for one tick."""
    walks, dx, dy = _wishes(battle, state, orders, aim)
    if battle.rules.finds_paths:
        dx, dy = _follow_paths(battle, state, dx, dy)
    stride = _strides(battle, aim)
    walks &= state.hp > 0
    if battle.rules.avoids:
        return _move_apart(battle, state, dx, dy, jnp.where(walks, stride, 0.0))
    distance = dx * dx + dy * dy
    length = jnp.minimum(stride * jax.lax.rsqrt(jnp.maximum(distance, 1e-12)), 1.0)
    length = jnp.where(walks, length, 0.0)
    x, y = state.x + length * dx, state.y + length * dy
    push_x, push_y = _push_apart(battle, state, x, y, walks)
    dx, dy = x + push_x - state.x, y + push_y - state.y
    # Pushed units are no faster than walking ones.
    most = battle.table("speed") / TICKS_PER_SECOND
    scale = jnp.minimum(most * jax.lax.rsqrt(jnp.maximum(dx * dx + dy * dy, 1e-12)), 1.0)
    x, y = stay_out_of_walls(battle, state.x, state.y, state.x + scale * dx, state.y + scale * dy)
    return state._replace(x=x, y=y)


def _move_apart(
    battle: Battle, state: State, dx: Array, dy: Array, stride: Float[Array, "unit copy"]
) -> State:
    """Move all units for one tick, each on the way (dx, dy) or beside it."""
    scale = TICKS_PER_SECOND * stride * jax.lax.rsqrt(jnp.maximum(dx * dx + dy * dy, 1e-12))
    vx, vy = avoid(battle, state, scale * dx, scale * dy)
    x, y = state.x + vx / TICKS_PER_SECOND, state.y + vy / TICKS_PER_SECOND
    x, y = stay_out_of_walls(battle, state.x, state.y, x, y)
    return state._replace(x=x, y=y, velocity=jnp.stack([vx, vy]))


def _wishes(
    battle: Battle, state: State, orders: Orders, aim: Aim
) -> tuple[Bool[Array, "unit copy"], Float[Array, "unit copy"], Float[Array, "unit copy"]]:
    """Units that walk in this tick, and the way to the point that they walk to."""
    ally, enemy = battle.side(False), battle.side(True)
    order_dx, order_dy = orders.to_x - state.x[ally], orders.to_y - state.y[ally]
    goal_dx, goal_dy = state.goal[:1] - state.x[enemy], state.goal[1:] - state.y[enemy]
    marches = jnp.full_like(aim.exists[enemy], battle.map.order.command == "attack-move")
    if orders.rests is not None:
        marches &= ~orders.rests
    walks = jnp.concatenate([orders.moves, marches])
    dx, dy = jnp.concatenate([order_dx, goal_dx]), jnp.concatenate([order_dy, goal_dy])
    walks = jnp.where(aim.exists, ~aim.in_range, walks)
    dx, dy = jnp.where(aim.exists, aim.dx, dx), jnp.where(aim.exists, aim.dy, dy)
    if (kites := battle.plays("kite", state)) is not False:
        shoots = np.arange(len(battle.units))[:, None] >= battle.agents
        shoots &= (battle.table("damage") > 0) & (battle.table("range") >= _SHOOTS)
        retreats = (
            jnp.reshape(jnp.asarray(kites), (1, -1))
            & shoots
            & aim.in_range
            & (state.cooldown > battle.table("period") / 2)
        )
        walks |= retreats
        dx, dy = jnp.where(retreats, -aim.dx, dx), jnp.where(retreats, -aim.dy, dy)
    return walks & (battle.table("speed") > 0), dx, dy


def _strides(battle: Battle, aim: Aim) -> Array:
    """Cells walked in a tick. Enemy healers without a patient keep their army's pace."""
    speed = battle.table("speed") / TICKS_PER_SECOND
    enemy = np.arange(len(battle.units))[:, None] >= battle.agents
    pace = speed[enemy & ~battle.heals[:, None]].min(initial=np.inf)
    slow = enemy & battle.heals[:, None]
    if not slow.any():
        return jnp.asarray(speed)
    return jnp.where(slow & ~aim.exists, np.minimum(speed, pace), speed)


def _follow_paths(battle: Battle, state: State, dx: Array, dy: Array) -> tuple[Array, Array]:
    """The way to the next point on the path, for units that walk on the ground."""
    paths = find_paths(battle.map.terrain)
    if paths is None:
        return dx, dy
    width, height = battle.map.terrain.width, battle.map.terrain.height
    index, via = jnp.asarray(paths.index), jnp.asarray(paths.via)

    def cell(x: Array, y: Array) -> Array:
        column = jnp.clip(x.astype(jnp.int32), 0, width - 1)
        return jnp.clip(y.astype(jnp.int32), 0, height - 1) * width + column

    goal = cell(state.x + dx, state.y + dy)
    next_cell = via[index[cell(state.x, state.y)], index[goal]].astype(jnp.int32)
    straight = next_cell == goal
    for unit, each in enumerate(battle.units):
        if each.plane == "air" or each.climbs:
            straight = straight.at[unit].set(True)
    next_x, next_y = next_cell % width + 0.5 - state.x, next_cell // width + 0.5 - state.y
    return jnp.where(straight, dx, next_x), jnp.where(straight, dy, next_y)


def _push_apart(
    battle: Battle, state: State, x: Array, y: Array, walks: Bool[Array, "unit copy"]
) -> tuple[Array, Array]:
    """Displacements that separate overlapping discs. Walking units give way: wholly to those that
    stand, by half to those that walk."""
    radius = battle.table("radius")[:, 0]
    collides = np.array([unit.collides for unit in battle.units])
    pairs = collides[:, None] & collides[None, :]
    pairs &= battle.flies[:, None] == battle.flies[None, :]
    np.fill_diagonal(pairs, False)
    touch = np.where(pairs, (radius[:, None] + radius[None, :]) ** 2, 0).astype(np.float32)
    alive = state.hp > 0
    # The dead are put out of everyone's reach.
    x, y = jnp.where(alive, x, 1e4), jnp.where(alive, y, 1e4)
    share = jnp.where(walks, 0.5, 1.0)

    def body(other: Array, pushes: tuple[Array, Array]) -> tuple[Array, Array]:
        dx, dy = x - x[other][None], y - y[other][None]
        distance = dx * dx + dy * dy
        apart = jnp.asarray(touch)[other][:, None]
        gap = jnp.maximum(apart - distance, 0)
        # (R² − d²) / 2d² of the way is R − d to first order, without a root, and never less.
        force = gap / (2 * distance + 1e-6) * share[other][None]
        return pushes[0] + force * dx, pushes[1] + force * dy

    zero = jnp.zeros_like(x)
    push_x, push_y = jax.lax.fori_loop(0, len(radius), body, (zero, zero))
    pushed = walks & alive
    return jnp.where(pushed, push_x, 0), jnp.where(pushed, push_y, 0)


def stay_out_of_walls(
    battle: Battle, old_x: Array, old_y: Array, x: Array, y: Array
) -> tuple[Array, Array]:
    """Positions after a step; a step into a wall becomes one along it, or none."""
    terrain = battle.map.terrain
    x = jnp.clip(x, EDGE, terrain.width - EDGE)
    y = jnp.clip(y, EDGE, terrain.height - EDGE)
    climbs = np.array([unit.climbs for unit in battle.units])
    kinds = (
        (~climbs & ~battle.flies, terrain.ground),
        (climbs & ~battle.flies, terrain.climbable),
    )
    for units, cells in kinds:
        if not units.any() or cells.all():
            continue
        rectangle = box(cells)
        if rectangle:
            west, south, east, north = rectangle
            new_x = jnp.clip(x, west + EDGE, east - EDGE)
            new_y = jnp.clip(y, south + EDGE, north - EDGE)
        else:
            new_x, new_y = _slide(cells, old_x, old_y, x, y)
        x, y = jnp.where(units[:, None], new_x, x), jnp.where(units[:, None], new_y, y)
    return x, y


def _slide(
    cells: Bool[np.ndarray, "height width"], old_x: Array, old_y: Array, x: Array, y: Array
) -> tuple[Array, Array]:
    flat = jnp.asarray(cells.reshape(-1))

    def free(x: Array, y: Array) -> Array:
        return flat[y.astype(jnp.int32) * cells.shape[1] + x.astype(jnp.int32)]

    both, east, north = free(x, y), free(x, old_y), free(old_x, y)
    return (
        jnp.where(both | east, x, old_x),
        jnp.where(both | (north & ~east), y, old_y),
    )
