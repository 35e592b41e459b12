"""Scripted agents in SMAClite from jittered starts: a reference for skirmish_oracle.py.

    python benchmarks/smaclite_reference.py 2s3z focus --episodes 300 --out FILE

needs SMAClite (github.com/uoe-agents/smaclite, 0d6abbe) and its requirements. Adds the statistics
to FILE, in the format that skirmish_oracle.py reads. The scripts are written apart from those of
perla, which are compared with them. Episode k resets with seed k. Then every unit, in the order of
the map's file, moves by uniform(-0.75, 0.75) in x and in y and starts at uniform(0.6, 1) of its
life, drawn by NumPy's default_rng(100000 + k). Versions of NumPy and scikit-learn round otherwise,
and other battles follow, of the same distribution.

An agent attacks a target that its mask allows and that it can hit: the `nearest`, or for `focus`
the one with the least life and shield. Without one it walks to the nearest enemy that it can hit
within 9 cells, or else to where the enemies started, along the longer axis. A healer heals the
nearest hurt ally, or for `focus` the one with the least life; without one it walks to the nearest
other unit if that is farther than 3 cells. Ties go to the lower index.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from smaclite.env.maps.map import MapPreset
from smaclite.env.smaclite import SMACliteEnv
from smaclite.env.units.combat_type import CombatType
from smaclite.env.util.faction import Faction

from perla.envs.skirmish.maps import load_map

MADE = ("3m", "25m", "1c3s5z")
"""Maps that SMAClite lacks: two equal sides on the terrain and at the points of its 10m_vs_11m."""
STOP, NORTH, SOUTH, EAST, WEST, FIRST_TARGET = 1, 2, 3, 4, 5, 6


def make(name):
    """The environment of a map."""
    shipped = [preset.value for preset in MapPreset if preset.value.name.lower() == name.lower()]
    if shipped:
        return SMACliteEnv(map_info=shipped[0])
    army = load_map(name, "smaclite").allies
    units, count = {unit.upper(): army.names.count(unit) for unit in army.types}, len(army)
    types = list(units) if len(units) > 1 else []
    sides = (("ALLY", 9), ("ENEMY", 23))
    content = {
        "name": name, "num_allied_units": count, "num_enemy_units": count,
        "groups": [{"x": x, "y": 16, "faction": side, "units": units} for side, x in sides],
        "attack_point": [9, 16], "terrain_preset": "SIMPLE", "num_unit_types": len(types),
        "ally_has_shields": "ZEALOT" in units, "enemy_has_shields": "ZEALOT" in units,
        "unit_type_ids": {unit: index for index, unit in enumerate(types)},
    }  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(content, file)
        file.flush()
        return SMACliteEnv(map_file=file.name)


def jitter(env, number):
    """Move the units of a new episode, and hurt them."""
    rng = np.random.default_rng(100_000 + number)
    for unit in env.all_units.values():
        way, life = rng.uniform(-0.75, 0.75, 2), rng.uniform(0.6, 1)
        if unit.max_velocity > 0:
            unit.pos = (unit.pos + way).astype(np.float32)
        unit.hp = unit.max_hp * life
    for finder in (env.neighbour_finder_all, env.neighbour_finder_ally, env.neighbour_finder_enemy):
        finder.update()


def walk(agent, target, mask):
    """The step towards a point."""
    dx, dy = target - agent.pos
    steps = [EAST if dx > 0 else WEST, NORTH if dy > 0 else SOUTH]
    if abs(dx) < abs(dy):
        steps.reverse()
    return next((step for step in steps if mask[step]), STOP)


def choose(env, agent, mask, script, start):
    """The action of an agent."""

    def distance(unit):
        return float(np.linalg.norm(unit.pos - agent.pos))

    def nearest(units):
        return min(units, key=distance)

    heals = agent.combat_type == CombatType.HEALING
    if heals:
        targets = {i: u for i, u in env.agents.items() if u.hp < u.max_hp}
    else:
        targets = {i: u for i, u in env.enemies.items() if u.plane in agent.valid_targets}
    allowed = {i: u for i, u in targets.items() if mask[FIRST_TARGET + i]}
    if allowed:

        def rank(index):
            unit = allowed[index]
            return (
                (0 if script == "nearest" else unit.hp + (0 if heals else unit.shield)),
                (0 if heals and script == "focus" else distance(unit)),
                index,
            )

        return FIRST_TARGET + min(allowed, key=rank)
    if heals:
        others = [u for u in env.agents.values() if u.combat_type != CombatType.HEALING]
        far = others and distance(nearest(others)) > 3
        return walk(agent, nearest(others).pos, mask) if far else STOP
    near = [unit for unit in targets.values() if distance(unit) < 9]
    return walk(agent, nearest(near).pos if near else start, mask)


def play(env, script, number, start, limit):
    """Whether the episode was won, its steps, the shares of life left of both sides, and whether
    the limit cut it."""
    env.reset(seed=number)
    jitter(env, number)
    sides = (env.agents, env.enemies)
    full = [sum(unit.max_hp + unit.max_shield for unit in side.values()) for side in sides]
    steps, done = 0, False
    while not done and steps < limit:
        masks = env.get_avail_actions()
        actions = [
            int(choose(env, env.agents[i], masks[i], script, start)) if i in env.agents else 0
            for i in range(env.n_agents)
        ]
        _, _, done, _, _ = env.step(actions)
        steps += 1
    left = [sum(unit.hp + unit.shield for unit in side.values()) for side in sides]
    shares = [float(x) / y for x, y in zip(left, full, strict=True)]
    return [float(not env.enemies), steps, *shares, float(not done)]


def main():
    """Play the episodes, and add their statistics to the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("map", help="a map of SMAClite, or " + ", ".join(MADE))
    parser.add_argument("script", choices=["nearest", "focus"])
    parser.add_argument("--first", type=int, default=0, help="number of the first episode")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    name, script = arguments.map, arguments.script
    env = make(name)
    enemies = [group for group in env.map_info.groups if group.faction == Faction.ENEMY]
    sizes = [sum(count for _, count in group.units) for group in enemies]
    start = np.average([(group.x, group.y) for group in enemies], axis=0, weights=sizes)
    limit = load_map(name, "smaclite").limit
    rows, errors, began = [], 0, time.perf_counter()
    for number in range(arguments.first, arguments.first + arguments.episodes):
        try:
            rows.append(play(env, script, number, start, limit))
        except ValueError:  # SMAClite's own, where no unit is left to look for.
            errors += 1
    mean, error = np.mean(rows, 0), np.std(rows, 0, ddof=1) / len(rows) ** 0.5
    entry = {"episodes": arguments.episodes, "errors": errors, "first": arguments.first}
    fields = ("win_rate", "length_mean", "ally_left_mean", "enemy_left_mean", "cut_by_limit")
    for field, value, deviation in zip(fields, mean, error, strict=True):
        entry |= {field: round(float(value), 4), f"{field} error": round(float(deviation), 4)}
    path = Path(arguments.out)
    content = json.loads(path.read_text()) if path.exists() else {"maps": {}}
    content["maps"].setdefault(name, {}).setdefault(script, {})["npj"] = entry
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{name} {script}: {entry}, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
