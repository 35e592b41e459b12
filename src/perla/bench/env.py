"""How fast worlds step: ours and, where it is installed, jumanji's on the same map.

All contenders run in one process, one after another in every round, so that whatever else the
machine does falls on all of them; each figure is the median of the rounds. Actions are uniform,
drawn inside the measured loop; observations and rewards are summed, so that none is optimised
away. A step is one environment transition, summed over copies.
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from perla.envs.foraging import Foraging
from perla.envs.protocol import Env
from perla.envs.registry import make
from perla.envs.wrappers import AutoReset

MAP = "lbf:Foraging-8x8-2p-2f-coop-v2"
"""The map that is measured where none is named."""

_SCAN = 200
"""Steps of every copy per compiled call."""

Run = Callable[[], int]
"""Steps on from where the last call ended; returns the number of steps made."""


def bench_env(
    env_id: str = MAP,
    copies: tuple[int, ...] = (128, 512, 1024, 4096),
    seconds: float = 0.5,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure `env_id` at each number of `copies`: plain data, fit for JSON.

    `seconds` is spent on each contender in each round, after compiling. `rows` has one entry per
    world and number of copies; `best` the fastest of each world, and `ratio` how many times as
    fast as jumanji's best ours is, or None where jumanji cannot play the map or is not installed
    (`rival` says which).

    Jumanji's world plays with its own auto-reset, `VmapAutoResetWrapper`. Its rules differ a
    little (no following, no swapping; other spawning), and it also computes action masks.
    """
    env = make(env_id)
    builders: dict[str, Callable[[int], Run]] = {"perla": lambda n: _ours(env, n)}
    rival = "jumanji plays no such world"
    if isinstance(env, Foraging) and not env.grid:
        try:
            world = _jumanji(env)
        except ModuleNotFoundError:
            rival = "jumanji is not installed"
        except AssertionError as refusal:
            rival = f"jumanji cannot build this map: {refusal}"
        else:
            rival = f"jumanji {importlib.metadata.version('jumanji')}"
            builders["jumanji"] = lambda n: _theirs(world, n, env.players)

    runs = {(name, n): build(n) for n in copies for name, build in builders.items()}
    for run in runs.values():
        run()  # compiles
    speeds: dict[tuple[str, int], list[float]] = {which: [] for which in runs}
    for _ in range(rounds):
        for which, run in runs.items():
            speeds[which].append(_speed(run, seconds))

    rows = [
        {
            "world": name,
            "copies": n,
            "steps_per_second": statistics.median(rates),
            "slowest": min(rates),
            "fastest": max(rates),
        }
        for (name, n), rates in speeds.items()
    ]
    best = {
        name: max(statistics.median(rates) for (world, _), rates in speeds.items() if world == name)
        for name in builders
    }
    return {
        "id": env.spec.id,
        "seconds": seconds,
        "rounds": rounds,
        "rows": rows,
        "best": best,
        "ratio": best["perla"] / best["jumanji"] if "jumanji" in best else None,
        "rival": rival,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }


def table(result: dict[str, Any]) -> str:
    """`result` of [`bench_env`][perla.bench.env.bench_env] for people: one line per row."""
    lines = [
        f"{result['id']}: steps per second, median of {result['rounds']} rounds (range)",
        f"{'world':<8} {'copies':>6} {'steps/s':>12}   range",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['world']:<8} {row['copies']:>6} {row['steps_per_second']:>12,.0f}   "
            f"{row['slowest']:,.0f} to {row['fastest']:,.0f}"
        )
    if result["ratio"] is None:
        lines.append(f"no rival: {result['rival']}")
    else:
        lines.append(f"best against best: {result['ratio']:.1f} times {result['rival']}")
    return "\n".join(lines)


def measure() -> list[dict[str, Any]]:
    """The rows that `perla bench env` prints: [`bench_env`][perla.bench.env.bench_env] of the
    usual map, each row told also as a multiple of jumanji's best."""
    result = bench_env()
    base = result["best"].get("jumanji", float("nan"))
    return [row | {"of_jumanji_best": row["steps_per_second"] / base} for row in result["rows"]]


def _speed(run: Run, seconds: float) -> float:
    start, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or not steps:
        steps += run()
    return steps / spent


def _runner(state: Any, copies: int, step: Callable[[Any, Any], tuple[Any, Any]]) -> Run:
    """Run `step(state, key) -> state, what must be computed` `_SCAN` times per call."""

    @jax.jit
    def scan(state, key):
        def one(carry, key):
            state, total = carry
            state, outcome = step(state, key)
            leaves = jax.tree.leaves(outcome)
            return (state, total + sum(leaf.sum(dtype=jnp.float32) for leaf in leaves)), None

        key, key_steps = jax.random.split(key)
        keys = jax.random.split(key_steps, _SCAN)
        return jax.lax.scan(one, (state, jnp.zeros(())), keys)[0], key

    carried = state, jax.random.key(1)

    def run() -> int:
        nonlocal carried
        (state, total), key = scan(*carried)
        carried = state, key
        jax.block_until_ready(total)
        return copies * _SCAN

    return run


def _ours(env: Env, copies: int) -> Run:
    world = AutoReset(env, copies)
    high = jnp.asarray(env.spec.actions)[None, :]

    def step(state, key):
        key_action, key_step = jax.random.split(key)
        action = jax.random.randint(key_action, (copies, env.spec.agents), 0, high)
        state, timestep = world.step(key_step, state, action)
        return state, timestep

    state, _ = jax.jit(world.reset)(jax.random.key(0))
    return _runner(state, copies, step)


def _jumanji(env: Foraging) -> Any:
    """Jumanji's world of the same map."""
    from jumanji.environments import LevelBasedForaging
    from jumanji.environments.routing.lbf.generator import RandomGenerator

    generator = RandomGenerator(
        grid_size=env.size,
        fov=env.window,
        num_agents=env.players,
        num_food=env.foods,
        force_coop=env.coop,
    )
    return LevelBasedForaging(generator=generator, time_limit=env.limit, penalty=env.penalty)


def _theirs(env: Any, copies: int, agents: int) -> Run:
    from jumanji.wrappers import VmapAutoResetWrapper

    world = VmapAutoResetWrapper(env)

    def step(state, key):
        action = jax.random.randint(key, (copies, agents), 0, 6)
        state, timestep = world.step(state, action)
        return state, (timestep.observation, timestep.reward, timestep.discount)

    state, _ = jax.jit(world.reset)(jax.random.split(jax.random.key(0), copies))
    return _runner(state, copies, step)
