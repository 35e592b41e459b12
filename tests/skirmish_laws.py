"""Laws of every battle, under random available actions.

    python tests/skirmish_laws.py [--actions 1e7] [--maps 3m,MMM2] [--rules smac,smaclite]

checks so many actions of living agents on each map; the tests check a few.
"""

from __future__ import annotations

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.skirmish.env import EXAMPLES, make_env
from perla.envs.wrappers import AutoReset, sample_actions

LAWS = (
    "numbers are finite",
    "units are on the map",
    "walking units are out of walls",
    "the dead neither move nor live nor attack",
    "life, shield and energy are between 0 and their most",
    "rewards are between 0 and a flawless return",
    "every mask has an action",
    "the dead have the no-op, and nobody else",
    "times go on by one",
)


def check_laws(name, actions, *, copies=128, steps=256, **options):
    """Play `actions` random available actions of living agents, `steps` steps of `copies` at once.

    Returns the laws that were broken, and the number of actions.
    """
    env = AutoReset(make_env(name, **options), copies)
    held_by = _laws(env.env)

    def body(carry, key):
        state, avail = carry
        key_action, key_step = jax.random.split(key)
        action = sample_actions(key_action, env.spec, avail)
        after, timestep = env.step(key_step, state, action)
        living = (avail.argmax(-1) > 0).sum()
        return (after, timestep.observation.avail), (held_by(state, after, timestep), living)

    @jax.jit
    def play(carry, key):
        carry, (held, living) = jax.lax.scan(body, carry, jax.random.split(key, steps))
        return carry, held.all(0), living.sum()

    state, observation = env.reset(jax.random.key(0))
    carry, broken, done, part = (state, observation.avail), set(), 0, 0
    while done < actions and not broken:
        carry, held, living = play(carry, jax.random.fold_in(jax.random.key(1), part))
        broken = {law for law, holds in zip(LAWS, np.asarray(held), strict=True) if not holds}
        done, part = done + int(living), part + 1
    return broken, done


def _laws(env):
    """The function of the states before and after a step that says which of `LAWS` held."""
    battle, terrain = env.battle, env.map.terrain
    walks = np.array([unit.plane == "ground" and not unit.climbs for unit in battle.units])
    cells = jnp.asarray(terrain.ground)
    bound = 20 + 20 / env.max_reward

    def held_by(before, state, timestep):
        leaves = [leaf for leaf in jax.tree.leaves((state, timestep)) if leaf.dtype == jnp.float32]
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
        inside = (state.x >= 0) & (state.x < terrain.width) & (state.y >= 0)
        inside &= state.y < terrain.height
        ground = cells[state.y.astype(int), state.x.astype(int)] | ~walks[None]
        ended = timestep.terminated | timestep.truncated
        dead = (before.hp <= 0) & ~ended[:, None]  # An ended episode has begun anew.
        rest = (state.x == before.x) & (state.y == before.y) & (state.hp <= 0)
        rest &= state.cooldown <= before.cooldown
        bars = (state.energy >= 0) & (state.reserve >= -1e-5)
        for value, most in ((state.hp, "hp"), (state.shield, "shield")):
            bars &= (value >= 0) & (value <= battle.table(most).T)
        reward = (timestep.reward >= 0) & (timestep.reward <= bound)
        masks = timestep.observation.avail.any(-1) & timestep.final.avail.any(-1)
        idle = timestep.final.avail[..., 0] != timestep.final.alive
        times = ended | (state.time == before.time + 1)
        held = (finite, inside, ground, ~dead | rest, bars, reward, masks, idle, times)
        return jnp.stack([jnp.asarray(each).all() for each in held])

    return held_by


def main():
    """Check every map, and print a line about each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actions", type=float, default=1e7)
    parser.add_argument("--maps", default=",".join(name for name in EXAMPLES if "/" not in name))
    parser.add_argument("--rules", default="smac,smaclite")
    arguments, failed = parser.parse_args(), False
    for name in arguments.maps.split(","):
        for rules in arguments.rules.split(","):
            start = time.monotonic()
            broken, done = check_laws(name, arguments.actions, rules=rules, start="jittered")
            said = f"broken: {', '.join(sorted(broken))}" if broken else "all laws held"
            seconds = time.monotonic() - start
            print(f"{name:14s} {rules:9s} {done:12,d} actions  {said}  {seconds:.0f} s", flush=True)
            failed |= bool(broken)
    sys.exit(failed)


if __name__ == "__main__":
    main()
