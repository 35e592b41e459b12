"""Steps per second of one seed whose environments are on one device, and divided over two.

    python benchmarks/data_parallel.py [--out FILE]

Settings of `perla bench train` on foraging 8x8-2p-2f-coop, and skirmish's presets on 3m. Both ways
are trained in turn in every round; results are medians, from one process with two devices.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from perla import machine
from perla.bench.train import Case, measure
from perla.files import write_atomic
from perla.runs import backend
from perla.runs.store import dump

CASES = {
    "lbf:Foraging-8x8-2p-2f-coop-v2": (
        Case("ippo", "epymarl"),
        Case("ippo", "epymarl", "gru"),
        Case("perla-ippo", "default", "gru"),
    ),
    "skirmish:3m": (Case("mappo", "skirmish"), Case("mappo", "skirmish-gru", "gru")),
}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    backend.prepare(cpu_devices=2)
    rows = []
    for env, cases in CASES.items():
        both = tuple(case._replace(data_parallel=n) for case in cases for n in (1, 2))
        steps = 20_000 if env.startswith("lbf") else 65_536
        found = measure(both, steps=steps, rounds=arguments.rounds, env_id=env)
        for one, two in zip(found[::2], found[1::2], strict=True):
            slow, fast = one["steps/s"], two["steps/s"]
            name = " ".join(one[word] for word in ("method", "preset", "actor"))
            print(f"{env}  {name}: {slow:,.0f} and {fast:,.0f} steps/s, {fast / slow:.2f} times")
            rows += [{"env": env, **one}, {"env": env, **two}]
    if arguments.out:
        facts = {"rows": rows, "versions": machine.versions(), "hardware": machine.hardware()}
        write_atomic(arguments.out, dump(facts))


if __name__ == "__main__":
    main()
