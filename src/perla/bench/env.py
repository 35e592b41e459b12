"""Benchmark of environment steps: perla's and, if it is installed, jumanji's on the same map.

All environments run one after another in every round, so that other load on the machine affects all
of them; results are medians over rounds. Actions are uniform among the legal ones and are drawn
inside the measured loop. JAX environments run in this process, and their observations and rewards
are summed so that none is optimised away. Host environments run in processes of their own. Steps
are environment transitions, summed over parallel environments.
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
from perla.envs.processes.pool import Pool, first_observation, sample_actions, seconds_per_step
from perla.envs.processes.worker import Factory
from perla.envs.protocol import Env, HostEnv, Spec
from perla.envs.registry import env_factory, make_env
from perla.envs.wrappers import AutoReset
from perla.envs.wrappers import sample_actions as sample_jax_actions
from perla.loops.host import Trainer
from perla.loops.host_envs import halves
from perla.machine import cores
from perla.methods.recipes import make as learner

MAP = "lbf:Foraging-8x8-2p-2f-coop-v2"
"""The default environment."""

_SCAN = 200
"""Steps of each environment per compiled call."""

_HOST_STEPS = 20
"""Steps of each environment in a pool between two readings of the clock."""
_BARE_STEPS = 200
"""Steps of a bare host environment between two readings of the clock."""
_HOST_ROUNDS = 3
"""Rounds of host environments per round of JAX ones, as other load on the machine affects several
processes more."""

Run = Callable[[], int]
"""Continues stepping and returns the number of steps made."""


def measure(
    env_id: str = MAP,
    num_envs: tuple[int, ...] = (128, 512, 1024, 4096),
    seconds: float = 0.5,
    rounds: int = 5,
) -> list[dict[str, Any]]:
    """Measure each environment with each number of parallel copies; one row each.

    A row has steps per second (median, slowest and fastest round), and the median as a multiple of
    jumanji's best. Each case runs for `seconds` in each of `rounds`, after compiling. Jumanji is
    measured if it is installed and supports the map, with its own auto-reset,
    `VmapAutoResetWrapper`. Its rules differ slightly (no following, no swapping, other spawning),
    and its actions are drawn from the action masks that it computes. For host environments see
    `_measure_host`.
    """
    env = make_env(env_id)
    if isinstance(env, HostEnv):
        with closing(env):
            return _measure_host(env_id, env, seconds, _HOST_ROUNDS * rounds)
    builders: dict[str, Callable[[int], Run]] = {"perla": lambda n: _run_perla(env, n)}
    if isinstance(env, Foraging) and not env.grid:
        # An assertion in jumanji refuses maps that are too small for it.
        with suppress(ModuleNotFoundError, AssertionError):
            jumanji = _jumanji(env)
            builders["jumanji"] = lambda n: _run_jumanji(jumanji, env.spec, n)

    runs = {(name, n): build(n) for n in num_envs for name, build in builders.items()}
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
            "environment": name,
            "num_envs": n,
            "steps/s": medians[name, n],
            "slowest": min(rates),
            "fastest": max(rates),
            "of jumanji's best": medians[name, n] / rival,
        }
        for (name, n), rates in speeds.items()
    ]


def _measure_host(
    env_id: str, env: HostEnv, seconds: float, rounds: int, num_envs: int = 32
) -> list[dict[str, Any]]:
    """Measure bare environments, a pool of `num_envs`, and IPPO with two presets; one row each.

    Bare environments are stepped at the same time in as many processes as there are cores, without
    a pool; the pool has as many processes. Time per step is given as a multiple of the bare
    environments' in the same round (median). Actions of both are uniform.
    """
    workers, factory = cores(), env_factory(env_id)
    with ExitStack() as stack:
        benchmarks = {
            ("bare", workers): stack.enter_context(_bare(factory, workers)),
            ("pool", num_envs): stack.enter_context(_pooled(env, factory, num_envs, workers)),
        }
        for preset in ("cleanrl", "default"):
            config = learner("ippo", preset)
            trainer = Trainer(env, factory, config, seeds=(0,), steps=10**9, workers=workers)
            stack.enter_context(closing(trainer))
            benchmarks[f"ippo, {preset}", config.num_envs] = _trained(trainer)
        speeds: dict[tuple[str, int], list[float]] = {which: [] for which in benchmarks}
        for _ in range(rounds):
            for which, run in benchmarks.items():
                speeds[which].append(_speed(run, seconds))
    bare = speeds["bare", workers]
    return [
        {
            "environment": f"{env_id}, {name}",
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
    """Train the only seed of `trainer`, without evaluations."""
    trainer.compile()
    population = trainer.init()

    def run() -> int:
        nonlocal population
        before = int(population[0].steps)
        population = trainer.update(population, np.array([True]))
        return int(population[0].steps) - before

    return run


@contextmanager
def _bare(factory: Factory, processes: int) -> Iterator[Run]:
    """Step one bare environment in each of `processes` processes, all at the same time."""
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for _ in range(processes):
        near, far = context.Pipe()
        process = context.Process(target=_step_bare, args=(far, factory), daemon=True)
        process.start()
        pipes.append(near)
        workers.append(process)

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
        for process in workers:
            process.join()


def _step_bare(pipe: Connection, factory: Factory) -> None:
    """Step one environment as many times as each message says, until one says 0."""
    with closing(factory()) as env:
        while steps := pipe.recv():
            seconds_per_step(env, steps)
            pipe.send(steps)


@contextmanager
def _pooled(env: HostEnv, factory: Factory, num_envs: int, workers: int) -> Iterator[Run]:
    """Step a pool of environments, one half after the other."""
    spec, random = env.spec, np.random.default_rng(0)
    groups = [[f"copy {i}" for i in range(num_envs)[half]] for half in halves(num_envs)]
    pool = Pool(
        factory, spec, groups, alive=first_observation(env).alive is not None, workers=workers
    )

    def act(group: int) -> None:
        timestep, _ = pool.receive(group)
        pool.step(group, sample_actions(spec, random, timestep.observation.avail))

    def run() -> int:
        for _ in range(_HOST_STEPS):
            for group in range(len(groups)):
                act(group)
        return _HOST_STEPS * num_envs

    with closing(pool):
        for group, names in enumerate(groups):
            pool.reset(group, [(0, group, i) for i in range(len(names))])
        run()
        yield run
        for group in range(len(groups)):
            pool.receive(group)


def _speed(run: Run, seconds: float) -> float:
    start, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or not steps:
        steps += run()
    return steps / spent


def _create_run(state: Any, num_envs: int, step: Callable[[Any, Any], tuple[Any, Any]]) -> Run:
    """Compile `_SCAN` times `step(state, key) → (state, outcome)`; every outcome is computed."""

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
        return num_envs * _SCAN

    return run


def _run_perla(env: Env, num_envs: int) -> Run:
    envs = AutoReset(env, num_envs)

    def step(carried, key):
        state, avail = carried
        key_action, key_step = jax.random.split(key)
        state, timestep = envs.step(
            key_step, state, sample_jax_actions(key_action, env.spec, avail)
        )
        return (state, timestep.observation.avail), timestep

    state, observation = jax.jit(envs.reset)(jax.random.key(0))
    return _create_run((state, observation.avail), num_envs, step)


def _jumanji(env: Foraging) -> Any:
    """Create jumanji's environment of the same map."""
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


def _run_jumanji(env: Any, spec: Spec, num_envs: int) -> Run:
    from jumanji.wrappers import VmapAutoResetWrapper

    envs = VmapAutoResetWrapper(env)

    def step(carried, key):
        state, avail = carried
        state, timestep = envs.step(state, sample_jax_actions(key, spec, avail))
        seen = timestep.observation
        return (state, seen.action_mask), (seen, timestep.reward, timestep.discount)

    state, timestep = jax.jit(envs.reset)(jax.random.split(jax.random.key(0), num_envs))
    return _create_run((state, timestep.observation.action_mask), num_envs, step)
