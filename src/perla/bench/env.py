"""How fast worlds step: ours and, where it is installed, jumanji's on the same map.

All contenders run in one process, one after another in every round, so that whatever else the
machine does falls on all of them; each figure is the median of the rounds. Actions are uniform,
drawn inside the measured loop; observations and rewards are summed, so that none is optimised
away. A step is one environment transition, summed over copies.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.foraging import Foraging
from perla.envs.pool import Pool, cores, draw, first, pace
from perla.envs.protocol import Env, HostEnv
from perla.envs.registry import factory, make
from perla.envs.wrappers import AutoReset

MAP = "lbf:Foraging-8x8-2p-2f-coop-v2"
"""The map that is measured where none is named."""

_SCAN = 200
"""Steps of every copy per compiled call."""

_HOST_STEPS = 20
"""Steps of every copy of a host world between two looks at the clock."""

Run = Callable[[], int]
"""Steps on from where the last call ended; returns the number of steps made."""


def measure(
    env_id: str = MAP,
    copies: tuple[int, ...] = (128, 512, 1024, 4096),
    seconds: float = 0.5,
    rounds: int = 5,
) -> list[dict[str, Any]]:
    """A row for each world and number of copies: steps per second (median, slowest, fastest round),
    and the median as a multiple of jumanji's best.

    `seconds` is spent on each contender in each round, after compiling. Jumanji's world takes part
    where it is installed and can play the map, with its own auto-reset, `VmapAutoResetWrapper`.
    Its rules differ a little (no following, no swapping; other spawning), and it also computes
    action masks. Worlds of the host are measured otherwise: see `_measure_host`.
    """
    env = make(env_id)
    if isinstance(env, HostEnv):
        with closing(env):
            return _measure_host(env_id, env, seconds, rounds)
    builders: dict[str, Callable[[int], Run]] = {"perla": lambda n: _ours(env, n)}
    if isinstance(env, Foraging) and not env.grid:
        # jumanji refuses maps that are too small for it by an assertion
        with suppress(ModuleNotFoundError, AssertionError):
            world = _jumanji(env)
            builders["jumanji"] = lambda n: _theirs(world, n, env.players)

    runs = {(name, n): build(n) for n in copies for name, build in builders.items()}
    for run in runs.values():
        run()  # compiles
    speeds: dict[tuple[str, int], list[float]] = {which: [] for which in runs}
    for _ in range(rounds):
        for which, run in runs.items():
            speeds[which].append(_speed(run, seconds))

    medians = {which: statistics.median(rates) for which, rates in speeds.items()}
    rival = max(
        (rate for (name, _), rate in medians.items() if name == "jumanji"), default=math.nan
    )
    return [
        {
            "world": name,
            "copies": n,
            "steps/s": medians[name, n],
            "slowest": min(rates),
            "fastest": max(rates),
            "of jumanji's best": medians[name, n] / rival,
        }
        for (name, n), rates in speeds.items()
    ]


def _measure_host(
    env_id: str, env: HostEnv, seconds: float, rounds: int, copies: int = 16
) -> list[dict[str, Any]]:
    """Rows for one copy stepped in this process, and for the pool of so many in as many processes
    as there are cores; and what the pool makes of its processes: its speed as a share of the bare
    one's times their number. Actions are uniform."""
    spec, random = env.spec, np.random.default_rng(0)
    workers = cores()

    def bare() -> int:
        pace(env, _HOST_STEPS * copies)
        return _HOST_STEPS * copies

    alive = first(env).alive is not None
    halves = {"half 1": copies // 2, "half 2": copies // 2}
    pool = Pool(factory(env_id), spec, halves, alive=alive, workers=workers)

    def act(group: int) -> None:
        timestep, _ = pool.receive(group)
        pool.step(group, draw(spec, random, timestep.observation.avail))

    with closing(pool):
        for group in range(2):
            pool.reset(group, 0)
        for group in range(2):
            act(group)

        def pooled() -> int:
            for _ in range(_HOST_STEPS):
                for group in range(2):
                    act(group)
            return _HOST_STEPS * copies

        contenders = {"bare": bare, "pool": pooled}
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, run in contenders.items():
                speeds[name].append(_speed(run, seconds))
    medians = {name: statistics.median(rates) for name, rates in speeds.items()}
    return [
        {
            "world": f"{env_id}, {name}",
            "copies": count,
            "processes": processes,
            "steps/s": medians[name],
            "slowest": min(speeds[name]),
            "fastest": max(speeds[name]),
            "of bare × processes": medians[name] / (medians["bare"] * processes),
        }
        for name, count, processes in (("bare", 1, 1), ("pool", copies, len(pool.workers)))
    ]


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
    spec, high = env.spec, jnp.asarray(env.spec.actions)[None, :]

    def anything(key):
        if spec.continuous:
            return jax.random.uniform(key, (copies, spec.agents, spec.max_actions), minval=-1.0)
        return jax.random.randint(key, (copies, spec.agents), 0, high)

    def step(state, key):
        key_action, key_step = jax.random.split(key)
        action = anything(key_action)
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
