"""Steps per second of skirmish beside SMAX (JaxMARL) and SMAClite, on the maps that both have.

    python benchmarks/skirmish.py [--maps 3m,2s3z] [--num-envs 64,256] [--cores 0,1] [--out FILE]

Actions are uniformly random among those available. Skirmish and SMAX are stepped in one compiled
loop with auto-reset, in one process for each core, and the best number of environments counts.
SMAClite, if it is installed, is stepped in one process for each core by its NumPy engine. Every
process is bound to its core. `seconds of the core` are those that the process itself ran, so that
other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time

from perla.envs.skirmish.files import names

SMAX_MAPS = ("3m", "2s3z", "8m", "3s5z", "25m", "5m_vs_6m", "10m_vs_11m", "27m_vs_30m",
             "3s5z_vs_3s6z", "6h_vs_8z")  # fmt: skip
"""Maps that SMAX has, too."""
LITE_MAPS = ("3m", "2s3z", "MMM2", "2c_vs_64zg")
"""Maps that SMAClite is measured on."""
STEPS = 64
REPEATS = 5


def compiled_rate(env, num_envs: int) -> tuple[float, float]:
    """Steps per second of the core of an `Env`, and the seconds of the core to compile it."""
    import jax

    from perla.envs.wrappers import AutoReset, sample_actions

    many = AutoReset(env, num_envs)

    def body(carry, key):
        state, avail = carry
        key_action, key_step = jax.random.split(key)
        state, timestep = many.step(key_step, state, sample_actions(key_action, env.spec, avail))
        return (state, timestep.observation.avail), (
            timestep.observation.obs.sum(), timestep.observation.state.sum(),
            timestep.reward.sum(), timestep.terminated.sum(),
        )  # fmt: skip

    def roll(key, carry):
        return jax.lax.scan(body, carry, jax.random.split(key, STEPS))

    state, observation = jax.jit(many.reset)(jax.random.key(0))
    carry, start = (state, observation.avail), time.process_time()
    run = jax.jit(roll).lower(jax.random.key(1), carry).compile()
    compiling = time.process_time() - start
    best = float("inf")
    for repeat in range(REPEATS):
        start = time.process_time()
        carry, _ = jax.block_until_ready(run(jax.random.key(repeat), carry))
        best = min(best, time.process_time() - start)
    return STEPS * num_envs / best, compiling


def lite_rate(name: str) -> float:
    """Steps per second of the core of SMAClite."""
    import numpy as np
    from smaclite_reference import make

    from perla.envs.skirmish.maps import load_map

    limit = load_map(name, "smac").limit
    env, rng = make(name), np.random.default_rng(0)
    env.reset()
    steps, time_of_episode, start = 0, 0, time.process_time()
    while time.process_time() - start < 10:
        masks = env.get_avail_actions()
        *_, done, _, _ = env.step([int(rng.choice(np.flatnonzero(mask))) for mask in masks])
        env.get_state()
        steps, time_of_episode = steps + 1, time_of_episode + 1
        if done or time_of_episode == limit:
            env.reset()
            time_of_episode = 0
    return steps / (time.process_time() - start)


def measure(task: str, core: int) -> None:
    """Measure one `task`, `kind:map:num_envs`, on a core; print the result as JSON."""
    os.sched_setaffinity(0, {core})
    kind, name, num_envs = task.split(":")
    if kind == "smaclite":
        rate, compiling = lite_rate(name), 0.0
    else:
        from perla.envs import registry

        id = f"skirmish:{name}" if kind == "skirmish" else f"jaxmarl:SMAX-{name}"
        rate, compiling = compiled_rate(registry.make_env(id), int(num_envs))
    print("RESULT " + json.dumps({"rate": rate, "compile_s": compiling}))


def main() -> None:
    """Measure every map, print a table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", default=",".join(names()))
    parser.add_argument("--num-envs", default="64,256")
    parser.add_argument("--cores", default=",".join(map(str, sorted(os.sched_getaffinity(0)))))
    parser.add_argument("--kinds", default="skirmish,smax,smaclite")
    parser.add_argument("--out")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cores = [int(core) for core in arguments.cores.split(",")]
    if arguments.measure:
        return measure(arguments.measure, cores[0])
    kinds = arguments.kinds.split(",")
    if not importlib.util.find_spec("smaclite"):
        kinds = [kind for kind in kinds if kind != "smaclite"]
    sizes = [int(size) for size in arguments.num_envs.split(",")]
    table = {}
    for name in arguments.maps.split(","):
        for kind in kinds:
            if name not in {"smax": SMAX_MAPS, "smaclite": LITE_MAPS}.get(kind, (name,)):
                continue
            results = [
                on_all(f"{kind}:{name}:{size}", cores)
                for size in sizes[: None if kind != "smaclite" else 1]
            ]
            best = max(results, key=lambda result: result["rate"])
            table.setdefault(name, {})[kind] = best
            print(f"{name:16s} {kind:9s} {best['rate']:12,.0f} steps/s  "
                  f"{best['compile_s']:5.1f} s to compile", flush=True)  # fmt: skip
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"cores": len(cores), "maps": table}, file, indent=1)
    return None


def on_all(task: str, cores: list[int]) -> dict[str, float]:
    """The sum of the rates of a task on all cores at once, and the longest compilation."""
    programs = [
        subprocess.Popen(
            [sys.executable, __file__, "--measure", task, "--cores", str(core)],
            stdout=subprocess.PIPE, text=True,
        )
        for core in cores
    ]  # fmt: skip
    lines = [line for each in programs for line in each.communicate()[0].splitlines()]
    found = [
        json.loads(line.removeprefix("RESULT ")) for line in lines if line.startswith("RESULT")
    ]
    if len(found) < len(cores):
        sys.exit(f"{task} failed")
    rate = sum(result["rate"] for result in found)
    return {"rate": rate, "compile_s": max(result["compile_s"] for result in found)}


if __name__ == "__main__":
    main()
