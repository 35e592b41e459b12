"""How fast worlds step: ours and, where it is installed, jumanji's on the same map.

All contenders run one after another in every round, so that whatever else the machine does falls
on all of them; each figure is the median of the rounds. Actions are uniform among those that the
world allows, drawn inside the measured loop. Worlds of JAX run in this process, and their
observations and rewards are summed, so that none is optimised away; those of the host run in
processes of their own. A step is one environment transition, summed over copies.
"""

from __future__ import annotations

import math
import multiprocessing
import operator
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perla.envs.foraging import Foraging
from perla.envs.processes.pool import Pool, draw, first, pace
from perla.envs.processes.worker import Factory
from perla.envs.protocol import Env, HostEnv, Spec
from perla.envs.registry import factory, make
from perla.envs.wrappers import AutoReset
from perla.envs.wrappers import draw as uniform
from perla.loops.host import Trainer
from perla.loops.host_envs import halves
from perla.machine import cores
from perla.methods.recipes import make as learner

MAP = "lbf:Foraging-8x8-2p-2f-coop-v2"
"""The map that is measured where none is named."""

_SCAN = 200
"""Steps of every copy per compiled call."""

_HOST_STEPS = 20
"""Steps of every copy in a pool between two looks at the clock."""
_BARE_STEPS = 200
"""The same of a bare copy of a host world."""
_HOST_ROUNDS = 3
"""Rounds of a host world for each of another's: where several processes take part, whatever else
the machine does shows more."""

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
    action masks, from which its actions are drawn. Worlds of the host are measured otherwise: see
    `_measure_host`.
    """
    env = make(env_id)
    if isinstance(env, HostEnv):
        with closing(env):
            return _measure_host(env_id, env, seconds, _HOST_ROUNDS * rounds)
    builders: dict[str, Callable[[int], Run]] = {"perla": lambda n: _ours(env, n)}
    if isinstance(env, Foraging) and not env.grid:
        # jumanji refuses maps that are too small for it by an assertion
        with suppress(ModuleNotFoundError, AssertionError):
            world = _jumanji(env)
            builders["jumanji"] = lambda n: _theirs(world, env.spec, n)

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
            "num_envs": n,
            "steps/s": medians[name, n],
            "slowest": min(rates),
            "fastest": max(rates),
            "of jumanji's best": medians[name, n] / rival,
        }
        for (name, n), rates in speeds.items()
    ]


def _measure_host(
    env_id: str, env: HostEnv, seconds: float, rounds: int, copies: int = 32
) -> list[dict[str, Any]]:
    """Rows for bare copies, one in each of as many processes as there are cores, all at once; for
    the pool of `copies` in as many processes; and for IPPO under two presets. What each takes for a
    step is given as a multiple of what the bare copies take in the same round (the median), whose
    actions are uniform, as the pool's are."""
    workers, make_env = cores(), factory(env_id)
    with ExitStack() as stack:
        contenders = {
            ("bare", workers): stack.enter_context(_bare(make_env, workers)),
            ("pool", copies): stack.enter_context(_pooled(env, make_env, copies, workers)),
        }
        for preset in ("cleanrl", "default"):
            config = learner("ippo", preset)
            trainer = Trainer(env, make_env, config, seeds=(0,), steps=10**9, workers=workers)
            stack.enter_context(closing(trainer))
            contenders[f"ippo, {preset}", config.num_envs] = _trained(trainer)
        speeds: dict[tuple[str, int], list[float]] = {which: [] for which in contenders}
        for _ in range(rounds):
            for which, run in contenders.items():
                speeds[which].append(_speed(run, seconds))
    bare = speeds["bare", workers]
    return [
        {
            "world": f"{env_id}, {name}",
            "num_envs": count,
            "processes": workers,
            "steps/s": statistics.median(rates),
            "slowest": min(rates),
            "fastest": max(rates),
            "time of bare": statistics.median(map(operator.truediv, bare, rates)),
        }
        for (name, count), rates in speeds.items()
    ]


def _trained(trainer: Trainer) -> Run:
    """Training its only seed, without evaluations."""
    trainer.compile()
    population = trainer.init()

    def run() -> int:
        nonlocal population
        before = int(population[0].steps)
        population, _ = trainer.update(population, np.array([True]))
        return int(population[0].steps) - before

    return run


@contextmanager
def _bare(make_env: Factory, processes: int) -> Iterator[Run]:
    """A bare copy in each of so many processes, stepped all at once."""
    context = multiprocessing.get_context("spawn")
    pipes, started = [], []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        process = context.Process(target=_alone, args=(theirs, make_env), daemon=True)
        process.start()
        pipes.append(ours)
        started.append(process)

    def run() -> int:
        for pipe in pipes:
            pipe.send(_BARE_STEPS)
        return sum(pipe.recv() for pipe in pipes)

    run()
    try:
        yield run
    finally:
        for pipe in pipes:
            pipe.send(0)
        for process in started:
            process.join()


def _alone(pipe: Connection, make_env: Factory) -> None:
    """Step one copy as often as is asked for, until that is never."""
    with closing(make_env()) as env:
        while steps := pipe.recv():
            pace(env, steps)
            pipe.send(steps)


@contextmanager
def _pooled(env: HostEnv, make_env: Factory, copies: int, workers: int) -> Iterator[Run]:
    """The pool, whose halves are stepped in turn."""
    spec, random = env.spec, np.random.default_rng(0)
    groups = [[f"copy {copy}" for copy in range(copies)[half]] for half in halves(copies)]
    pool = Pool(make_env, spec, groups, alive=first(env).alive is not None, workers=workers)

    def act(group: int) -> None:
        timestep, _ = pool.receive(group)
        pool.step(group, draw(spec, random, timestep.observation.avail))

    def run() -> int:
        for _ in range(_HOST_STEPS):
            for group in range(len(groups)):
                act(group)
        return _HOST_STEPS * copies

    with closing(pool):
        for group, names in enumerate(groups):
            pool.reset(group, [(0, group, copy) for copy in range(len(names))])
        run()
        yield run
        for group in range(len(groups)):
            pool.receive(group)


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

    def step(carried, key):
        state, avail = carried
        key_action, key_step = jax.random.split(key)
        state, timestep = world.step(key_step, state, uniform(key_action, env.spec, avail))
        return (state, timestep.observation.avail), timestep

    state, observation = jax.jit(world.reset)(jax.random.key(0))
    return _runner((state, observation.avail), copies, step)


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


def _theirs(env: Any, spec: Spec, copies: int) -> Run:
    from jumanji.wrappers import VmapAutoResetWrapper

    world = VmapAutoResetWrapper(env)

    def step(carried, key):
        state, avail = carried
        state, timestep = world.step(state, uniform(key, spec, avail))
        seen = timestep.observation
        return (state, seen.action_mask), (seen, timestep.reward, timestep.discount)

    state, timestep = jax.jit(world.reset)(jax.random.split(jax.random.key(0), copies))
    return _runner((state, timestep.observation.action_mask), copies, step)
