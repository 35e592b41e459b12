"""Skirmish under SMAClite's rules beside SMAClite: scripted agents from jittered starts.

    python benchmarks/skirmish_oracle.py REFERENCE... [--maps 3m,MMM] [--episodes 300] [--out FILE]

REFERENCE is a JSON file of SMAClite's results: `maps`, map → script (`nearest`, `focus`) → engine →
statistics; those of the engines that end in `j`, of jittered starts, are averaged. The cells of a
later file replace those of an earlier one; smaclite_reference.py makes such a file. Prints a table,
and writes FILE, and a picture beside it. Cells are within bounds if the win rates differ by at most
12 points, the lengths by 10%, and the shares of life and shield left by 0.05.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.scripts import make_script
from perla.envs.skirmish.env import make_env
from perla.loops.scripted import play

SCRIPTS = {"nearest": "nearest", "focus": "focus-fire"}
FIELDS = ("win_rate", "length", "allies_left", "enemies_left")
LABELS = ("Win rate", "Steps")
BOUNDS = (0.12, 0.10, 0.05, 0.05)
EXCLUDED = ("2c_vs_64zg",)
"""SMAClite's own battle is broken there: random agents win untouched."""


def reference(entry):
    """The pooled statistics of the jittered episodes, and their number; None if there are none."""
    engines = [found for name, found in entry.items() if name.endswith("j") and found["episodes"]]
    counts = np.array([found["episodes"] - found["errors"] for found in engines], float)
    if not counts.sum():
        return None
    names = ("win_rate", "length_mean", "ally_left_mean", "enemy_left_mean")
    values = np.array([[found[name] for name in names] for found in engines])
    return (counts @ values / counts.sum()).tolist(), int(counts.sum())


def ours(name, script, episodes):
    """The same statistics of skirmish."""
    env = make_env(name, rules="smaclite", start="jittered")
    battle = env.battle
    full = jnp.asarray(battle.table("hp") + battle.table("shield"))[:, 0]

    def left(state):
        life = jnp.where(state.hp > 0, state.hp + state.shield, 0)
        sides = (battle.side(False), battle.side(True))
        return jnp.stack([life[side].sum() / full[side].sum() for side in sides])

    policy = make_script(env, SCRIPTS[script])
    played, shares = jax.jit(
        lambda key: play(env, policy, key, episodes, lambda state: {"left": left(state)})
    )(jax.random.key(0))
    values = (played.wins.mean(), played.lengths.mean(), *shares["left"].mean(0))
    return [float(value) for value in values]


def within(found, known):
    """True if all four statistics are within their bounds."""
    gaps = [abs(x - y) for x, y in zip(found, known, strict=True)]
    gaps[1] /= known[1]
    return all(gap <= bound for gap, bound in zip(gaps, BOUNDS, strict=True))


def draw(rows, path):
    """The win rate and the length of every cell beside SMAClite's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    for axes, index, label in zip(
        figure.subplots(1, 2), (0, 1), ("Win rate", "Steps"), strict=True
    ):
        for inside, color in ((True, "C0"), (False, "C3")):
            cells = [row for row in rows if row["within"] == inside]
            x, y = ([row[who][index] for row in cells] for who in ("smaclite", "skirmish"))
            axes.scatter(x, y, s=14, color=color, label="within bounds" if inside else "outside")
            for row in () if inside else cells:
                name = f"{row['map']} {row['script']}"
                axes.annotate(name, (row["smaclite"][index], row["skirmish"][index]), fontsize=7)
        most = max(max(row["smaclite"][index], row["skirmish"][index]) for row in rows)
        axes.plot([0, most], [0, most], color="0.6", lw=0.8, zorder=0)
        axes.set(xlabel=f"{label}, SMAClite", ylabel=f"{label}, skirmish")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main():
    """Compare every map and script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", nargs="+")
    parser.add_argument("--maps")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    maps: dict = {}
    for file in arguments.reference:
        for name, scripts in json.loads(Path(file).read_text())["maps"].items():
            maps[name] = maps.get(name, {}) | scripts
    names = arguments.maps.split(",") if arguments.maps else [m for m in maps if m not in EXCLUDED]
    rows = []
    for name in names:
        for script in SCRIPTS:
            if not (known := reference(maps[name].get(script, {}))):
                continue
            values, episodes = known
            found = ours(name, script, arguments.episodes)
            row = {"map": name, "script": script, "skirmish": found, "smaclite": values,
                   "episodes": arguments.episodes, "smaclite_episodes": episodes,
                   "within": within(found, values)}  # fmt: skip
            rows.append(row)
            pairs = "  ".join(f"{x:7.3f} {y:7.3f}" for x, y in zip(found, values, strict=True))
            mark = "" if row["within"] else "  outside"
            print(f"{name:14s} {script:8s} {pairs}  ({episodes}){mark}", flush=True)
            if arguments.out:
                Path(arguments.out).write_text(
                    json.dumps({"fields": FIELDS, "rows": rows}, indent=1)
                )
    print(f"{sum(row['within'] for row in rows)} of {len(rows)} cells within bounds")
    if arguments.out:
        draw(rows, Path(arguments.out).with_suffix(".png"))


if __name__ == "__main__":
    main()
