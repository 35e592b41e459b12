"""Scripted agents: baselines that a learned policy has to beat.

They see the whole battle, but only use the actions that are available.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.protocol import Observation
from perla.envs.skirmish.battle import Battle, State
from perla.envs.skirmish.env import Skirmish
from perla.envs.skirmish.features import EAST, FIRST_TARGET, NORTH, SIGHT, SOUTH, STOP, WEST
from perla.envs.wrappers import sample_actions
from perla.errors import nearest
from perla.types import Array, Bool, Float, Int, PRNGKeyArray

Script = Callable[[PRNGKeyArray, State, Observation], Int[Array, " agent"]]
"""A scripted policy of all agents, of one environment: its key, state and observation → actions."""

SCRIPTS = ("nearest", "focus-fire", "kite", "random")
"""Scripted policies. `nearest` attacks the nearest enemy within reach, `focus-fire` the one with
the least life and shield, and both else advance. `kite` attacks the nearest when its weapon is
ready, and steps back from it while it is not. `random` takes any available action."""

FOLLOW = 3.0
"""Distance to which a healer follows the nearest agent."""
_NEVER = 1e9


def make_script(env: Skirmish, name: str) -> Script:
    """The scripted policy `name` of the agents of `env`. Raises `UserError` for an unknown name."""
    if name not in SCRIPTS:
        raise nearest(name, SCRIPTS, what="script")
    if name == "random":
        return lambda key, state, observation: sample_actions(key, env.spec, observation.avail)
    battle = env.battle

    def act(key: PRNGKeyArray, state: State, observation: Observation) -> Int[Array, " agent"]:
        avail = observation.avail
        fights = _fight(battle, state, avail, name)
        if battle.heals[battle.side(False)].any():
            heals = _support(battle, state, avail, name)
            fights = jnp.where(battle.heals[battle.side(False)], heals, fights)
        return jnp.where(avail[:, 0], 0, fights)

    return act


def _fight(battle: Battle, state: State, avail: Bool[Array, "agent action"], name: str) -> Array:
    """Actions of agents with a weapon."""
    side, foes = battle.side(False), battle.side(True)
    x, y = state.x[side], state.y[side]
    dx, dy = state.x[None, foes] - x[:, None], state.y[None, foes] - y[:, None]
    hittable = battle.may_target[side, foes] & (state.hp[foes] > 0)[None]
    distance = jnp.where(hittable, jnp.hypot(dx, dy), _NEVER)
    targets = avail[:, FIRST_TARGET : FIRST_TARGET + battle.enemies] & hittable
    target, found = _best(targets, distance, (state.hp + state.shield)[None, foes], name)
    closest = distance.argmin(1)[:, None]
    sees = distance.min(1) < SIGHT
    camp = battle.map.enemies.start.mean(0).astype(np.float32)
    way_x = jnp.where(sees, jnp.take_along_axis(dx, closest, 1)[:, 0], camp[0] - x)
    way_y = jnp.where(sees, jnp.take_along_axis(dy, closest, 1)[:, 0], camp[1] - y)
    advance = _step(avail, way_x, way_y)
    if name == "kite":
        ready = state.cooldown[side] <= 0
        retreat = _step(avail, -way_x, -way_y)
        return jnp.where(found, jnp.where(ready, target, retreat), advance)
    return jnp.where(found, target, advance)


def _support(battle: Battle, state: State, avail: Bool[Array, "agent action"], name: str) -> Array:
    """Actions of healers."""
    side = battle.side(False)
    patients = ~battle.heals[side]
    x, y, hp = state.x[side], state.y[side], state.hp[side]
    dx, dy = x[None] - x[:, None], y[None] - y[:, None]
    distance = jnp.where(patients[None] & (hp > 0)[None], jnp.hypot(dx, dy), _NEVER)
    hurt = patients & (hp < battle.table("hp")[side, 0])
    count = min(battle.agents, avail.shape[1] - FIRST_TARGET)
    mask = jnp.zeros((battle.agents, battle.agents), bool)
    mask = mask.at[:, :count].set(avail[:, FIRST_TARGET : FIRST_TARGET + count])
    target, found = _best(mask & hurt[None], distance, hp[None], name)
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
    measure = distance
    if name == "focus-fire":
        least = jnp.where(targets, life, _NEVER).min(1, keepdims=True)
        targets = targets & (life == least)
    choice = jnp.where(targets, measure, _NEVER).argmin(1)
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


def play(
    env: Skirmish, script: Script, key: PRNGKeyArray, episodes: int
) -> dict[str, Float[Array, " episode"]]:
    """Play `episodes` with a script.

    Returns, for each, `won` (0 or 1), `length` (steps), `return`, and the shares of life and shield
    that the two sides have left at the end, `allies_left` and `enemies_left`.
    """
    battle = env.battle
    full = jnp.asarray(battle.table("hp") + battle.table("shield"))[:, 0]

    def left(state: State, side: slice) -> Array:
        life = jnp.where(state.hp > 0, state.hp + state.shield, 0)
        return life[:, side].sum(1) / full[side].sum()

    def body(carry):
        time, key, state, observation, result = carry
        key, key_act, key_step = jax.random.split(key, 3)
        action = jax.vmap(script)(jax.random.split(key_act, episodes), state, observation)
        new, timestep = jax.vmap(env.step)(jax.random.split(key_step, episodes), state, action)
        ended = timestep.terminated | timestep.truncated
        first = ended & ~result["over"]
        now = {
            "won": timestep.won,
            "length": jnp.full(episodes, time + 1.0),
            "allies_left": left(new, battle.side(False)),
            "enemies_left": left(new, battle.side(True)),
        }
        total = result["return"] + jnp.where(result["over"], 0, timestep.reward[:, 0])
        result = {name: jnp.where(first, now[name], result[name]) for name in now} | {
            "return": total,
            "over": result["over"] | ended,
        }
        return time + 1, key, new, timestep.observation, result

    key, key_reset = jax.random.split(key)
    state, observation = jax.vmap(env.reset)(jax.random.split(key_reset, episodes))
    names = ("won", "length", "allies_left", "enemies_left", "return")
    empty = {name: jnp.zeros(episodes) for name in names} | {"over": jnp.zeros(episodes, bool)}
    carry = (jnp.zeros((), jnp.int32), key, state, observation, empty)
    *_, result = jax.lax.while_loop(lambda c: ~c[-1]["over"].all(), body, carry)
    return {name: result[name] for name in names}
