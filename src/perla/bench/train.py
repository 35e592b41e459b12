"""How fast methods train, at the settings that peers publish.

Every case is trained from its fresh state again and again, the cases taking turns in every
round, so that whatever else the machine does falls on all of them; each figure is the median of
the rounds. A step is one environment transition, summed over copies and seeds; the evaluation
that ends every call is inside the measured time.
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
"""The map that is measured."""


class Case(NamedTuple):
    """A method at somebody's settings."""

    algo: str
    preset: str
    actor: str = "mlp"
    seeds: int = 1


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
    """A row for each case: steps per second (median, slowest, fastest round), the compile time,
    the matrix products' operations per step and their share of the machine's rate."""
    contenders = [_Contender(case, env_id, steps) for case in cases]
    rates = []
    for _ in range(rounds):
        rates.append(matrix_rate())
        for contender in contenders:
            contender.run()
    rate = statistics.median(rates)
    return [contender.row(rate) for contender in contenders]


class _Contender:
    def __init__(self, case: Case, env_id: str, steps: int) -> None:
        self.case = case
        networks = {"mlp": DENSE, "gru": RECURRENT}
        config = make_config(case.algo, case.preset, **networks[case.actor])
        env = make_env(env_id)
        assert not isinstance(env, HostEnv), "how fast worlds of the host train, they decide"
        self.trainer = Trainer(env, config, seeds=tuple(range(case.seeds)), steps=steps)
        self.steps = steps
        self.speeds: list[float] = []
        start = time.perf_counter()
        fresh = self.trainer.init()
        self.flops = self.trainer.work_per_step().flops
        self.fresh = self.trainer.export(fresh)
        self.trainer.advance(fresh, 0)
        self.compile_seconds = time.perf_counter() - start

    def run(self) -> None:
        population = jax.block_until_ready(self.trainer.restore(self.fresh))
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
            "steps/s": speed,
            "slowest": min(self.speeds),
            "fastest": max(self.speeds),
            "compile s": self.compile_seconds,
            "MFLOP/step": self.flops / 1e6,
            "share of matrix rate": self.flops * speed / rate,
            "matrix GFLOP/s": rate / 1e9,
        }
