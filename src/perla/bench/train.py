"""Benchmark of training speed, with published settings of other libraries.

All cases are trained from their initial state, one after another in every round, so that other load
on the machine affects all of them; results are medians over rounds. Steps are environment
transitions, summed over environments and seeds. The measured time includes one evaluation.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import jax

from perla.envs.protocol import HostEnv
from perla.envs.registry import make_env
from perla.flops import matrix_rate
from perla.loops.anakin import Trainer
from perla.methods.presets import DENSE, RECURRENT
from perla.methods.recipes import make as make_config

MAP = "lbf:Foraging-8x8-2p-2f-coop-v2"
"""The environment."""


class Case(NamedTuple):
    """A method with a preset."""

    algo: str
    preset: str
    actor: str = "mlp"
    seeds: int = 1
    data_parallel: int = 1


CASES = (
    Case("ippo", "epymarl", "mlp"),
    Case("mappo", "epymarl", "mlp"),
    Case("ippo", "epymarl", "gru"),
    Case("mappo", "epymarl", "gru"),
    Case("ippo", "mava"),
    Case("mappo", "mava"),
    Case("ippo", "default", "gru"),
    Case("mappo", "default", "gru"),
    Case("perla-ippo", "default", "gru"),
    Case("perla-mappo", "default", "gru"),
    Case("ippo", "epymarl", "mlp", seeds=4),
    Case("ippo", "mava", seeds=4),
)


def measure(
    cases: tuple[Case, ...] = CASES, steps: int = 20_000, rounds: int = 5, env_id: str = MAP
) -> list[dict[str, Any]]:
    """Measure each case; one row each.

    A row has steps per second (median, slowest and fastest round), the compile time, the operations
    of matrix products per step and their share of the machine's rate.
    """
    benchmarks = [_Benchmark(case, env_id, steps) for case in cases]
    rates = []
    for _ in range(rounds):
        rates.append(matrix_rate())
        for benchmark in benchmarks:
            benchmark.run()
    rate = statistics.median(rates)
    return [benchmark.row(rate) for benchmark in benchmarks]


class _Benchmark:
    def __init__(self, case: Case, env_id: str, steps: int) -> None:
        self.case = case
        networks = {"mlp": DENSE, "gru": RECURRENT}
        config = make_config(case.algo, case.preset, **networks[case.actor])
        env = make_env(env_id)
        assert not isinstance(env, HostEnv), (
            "host environments limit the speed of training themselves"
        )
        seeds, devices = tuple(range(case.seeds)), case.data_parallel
        self.trainer = Trainer(env, config, seeds=seeds, steps=steps, data_parallel=devices)
        self.steps = steps
        self.speeds: list[float] = []
        start = time.perf_counter()
        initial = self.trainer.init()
        self.flops = self.trainer.work_per_step().flops
        self.initial = self.trainer.export(initial)
        self.trainer.advance(initial, 0)
        self.compile_seconds = time.perf_counter() - start

    def run(self) -> None:
        population = jax.block_until_ready(self.trainer.restore(self.initial))
        start = time.perf_counter()
        _, rows = self.trainer.advance(population, self.steps)
        self.speeds.append(sum(row["step"] for row in rows) / (time.perf_counter() - start))

    def row(self, rate: float) -> dict[str, Any]:
        speed = statistics.median(self.speeds)
        return {
            "method": self.case.algo,
            "preset": self.case.preset,
            "actor": self.case.actor,
            "seeds": self.case.seeds,
            "devices": self.case.data_parallel,
            "steps/s": speed,
            "slowest": min(self.speeds),
            "fastest": max(self.speeds),
            "compile s": self.compile_seconds,
            "MFLOP/step": self.flops / 1e6,
            "share of matrix rate": self.flops * speed / rate,
            "matrix GFLOP/s": rate / 1e9,
        }
