"""Steps per second of training MAPPO on skirmish, beside JaxMARL's on SMAX.

    python benchmarks/smax_training.py --jaxmarl PYTHON:CLONE [--map 3m] [--out FILE]

needs a clone of JaxMARL (github.com/FLAIROx/JaxMARL, 0.2.0) and an environment of its own with its
requirements, of which PYTHON is the interpreter. JaxMARL runs its `baselines/MAPPO/
mappo_rnn_smax.py` with the settings beside it; perla runs the preset `skirmish-gru`
on `skirmish:`, and with a recurrent critic, as JaxMARL's is, on `skirmish:` and on JaxMARL's own
SMAX through the bridge; a single seed on `skirmish:` also with its environments on two devices.
Each contender is one process that compiles once and then trains for `--rollouts` rollouts from the
start whenever it is its turn; no contender evaluates. Results are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

NUM_ENVS, NUM_STEPS = 128, 128
PRESET = "perla, skirmish, preset"
SKIRMISH, SMAX = "perla, skirmish, recurrent critic", "perla, SMAX, recurrent critic"
JAXMARL = "JaxMARL, SMAX"
TWO_DEVICES = ", two devices"
"""Ends the name of a contender whose environments are divided over two devices."""


def jaxmarl(name: str, seeds: int, updates: int):
    """JaxMARL's training, compiled: a function without arguments."""
    import jax
    import wandb
    import yaml
    from baselines.MAPPO import mappo_rnn_smax
    from baselines.MAPPO.mappo_rnn_smax import make_train

    wandb.init(mode="disabled")
    folder = Path(mappo_rnn_smax.__file__).parent / "config"
    config = yaml.safe_load((folder / "mappo_homogenous_rnn_smax.yaml").read_text())
    assert (config["NUM_ENVS"], config["NUM_STEPS"]) == (NUM_ENVS, NUM_STEPS)
    # PyYAML reads 1e7, without a point, as text.
    config |= {"MAP_NAME": name, "TOTAL_TIMESTEPS": updates * NUM_ENVS * NUM_STEPS}
    train = make_train(config)
    keys = jax.random.split(jax.random.PRNGKey(0), seeds)
    if seeds == 1:
        train, keys = jax.jit(train), keys[0]
    else:
        train = jax.jit(jax.vmap(train))
    compiled = train.lower(keys).compile()
    return lambda: jax.block_until_ready(compiled(keys))


def perla(kind: str, name: str, seeds: int, updates: int):
    """perla's training, compiled: a function without arguments."""
    import jax

    from perla.envs.registry import make_env
    from perla.loops.anakin import Trainer
    from perla.methods.recipes import make
    from perla.runs import backend

    devices = 2 if kind.endswith(TWO_DEVICES) else 1
    kind = kind.removesuffix(TWO_DEVICES)
    backend.prepare(devices)
    id = f"jaxmarl:SMAX-{name}" if kind == SMAX else f"skirmish:{name}"
    critic = {} if kind == PRESET else {"critic_network": "gru"}
    config = make("mappo", "skirmish-gru", **critic)
    steps = updates * NUM_ENVS * NUM_STEPS
    trainer = Trainer(
        make_env(id), config, seeds=tuple(range(seeds)), steps=steps, data_parallel=devices
    )
    initial = trainer.export(trainer.init())

    def run():
        jax.block_until_ready(trainer.train(trainer.restore(initial), steps, updates))

    return run


def serve(kind: str, name: str, seeds: int, updates: int) -> None:
    """Compile, then train for each line of the standard input and print the seconds it took."""
    start = time.perf_counter()
    if kind == JAXMARL:
        run = jaxmarl(name, seeds, updates)
    else:
        run = perla(kind, name, seeds, updates)
    run()
    print("READY", time.perf_counter() - start, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print("SECONDS", time.perf_counter() - start, flush=True)


class Contender:
    """A process that trains when it is its turn."""

    def __init__(self, kind: str, seeds: int, arguments: argparse.Namespace) -> None:
        self.kind = kind
        python, environment = sys.executable, dict(os.environ)
        if kind == JAXMARL:
            python, _, clone = arguments.jaxmarl.partition(":")
            environment["PYTHONPATH"] = clone
        command = [python, __file__, "--serve", kind, "--map", arguments.map]
        command += ["--seeds", str(seeds), "--rollouts", str(arguments.rollouts)]
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.ready_seconds = self._answer("READY")
        self.seconds: list[float] = []

    def train(self) -> None:
        """Train once and note the time."""
        assert self.process.stdin
        print("go", file=self.process.stdin, flush=True)
        self.seconds.append(self._answer("SECONDS"))

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _answer(self, word: str) -> float:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(word):
                return float(line.split()[1])
        raise SystemExit(f"{self.kind}: ended with {self.process.wait()}")


def race(kinds: list[str], seeds: int, arguments: argparse.Namespace) -> list[dict]:
    """Train with all contenders in turn in every round; a row for each."""
    contenders = [Contender(kind, seeds, arguments) for kind in kinds]
    for _ in range(arguments.rounds):
        for contender in contenders:
            contender.train()
    for contender in contenders:
        contender.close()
    steps = seeds * arguments.rollouts * NUM_ENVS * NUM_STEPS
    last = statistics.median(contenders[-1].seconds)
    return [
        {
            "contender": contender.kind,
            "seeds": seeds,
            "steps_per_second": steps / statistics.median(contender.seconds),
            "slowest": steps / max(contender.seconds),
            "fastest": steps / min(contender.seconds),
            "of the last": last / statistics.median(contender.seconds),
            "ready_s": contender.ready_seconds,
        }
        for contender in contenders
    ]


def main() -> None:
    """Race the contenders, print a table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jaxmarl", help="PYTHON:CLONE")
    parser.add_argument("--map", default="3m")
    parser.add_argument("--seeds", default="1,2", help="numbers of seeds")
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.map, int(arguments.seeds), arguments.rollouts)
        return
    kinds = [PRESET, SKIRMISH, SMAX] + ([JAXMARL] if arguments.jaxmarl else [])
    rows = []
    for seeds in map(int, arguments.seeds.split(",")):
        divided = [kind + TWO_DEVICES for kind in (PRESET, SKIRMISH)] if seeds == 1 else []
        for row in race(divided + kinds, seeds, arguments):
            print(f"{row['contender']:46} {seeds} seeds  {row['steps_per_second']:10,.0f}"
                  f"  {row['of the last']:5.2f}", flush=True)  # fmt: skip
            rows.append(row)
    if arguments.out:
        facts = {"map": arguments.map, "rows": rows}
        Path(arguments.out).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
