"""Estimate of a run's duration, from its operations and the machine's speed."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from perla import machine
from perla.envs.processes.pool import seconds_per_step
from perla.envs.protocol import Env, HostEnv
from perla.envs.registry import make_env
from perla.flops import Work, element_rate, matrix_rate
from perla.loops import host
from perla.loops.anakin import Trainer
from perla.runs import backend
from perla.runs.spec import Evaluations, Run, plan_evaluations

START_SECONDS = 15.0
"""Duration of starting a process, tracing and compiling."""
ELEMENT_SHARE = 0.4
"""Share of the measured element rate that training reaches, over several settings."""


class Machine(NamedTuple):
    """Speed of this machine, with all its cores."""

    matrix_rate: float
    """Floating-point operations per second of matrix products."""
    element_rate: float
    """Elements per second of all other operations."""

    @classmethod
    def measure(cls) -> Machine:
        """Measure this machine's rates; takes a second."""
        backend.prepare()
        return cls(matrix_rate(), element_rate())

    def seconds(self, work: Work) -> float:
        """Return the duration of `work`."""
        return work.flops / self.matrix_rate + work.elements / (ELEMENT_SHARE * self.element_rate)


class Costs:
    """Estimates durations of runs on a machine.

    Runs that differ only in numeric settings share a trace.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.traced: dict[object, tuple[float, float, float]] = {}

    def seconds(self, run: Run) -> float:
        """Estimate the duration of `run` if it has the machine to itself."""
        env = make_env(run.env, **run.env_options)
        plan = plan_evaluations(run, env)
        key = shape(run, plan)
        if key not in self.traced:
            self.traced[key] = self._trace(run, env, plan)
        step, evaluation, absolute = self.traced[key]
        intervals = len(plan.schedule)
        return START_SECONDS + len(run.seeds) * (
            run.steps * step + intervals * evaluation + absolute
        )

    def _trace(self, run: Run, env: Env | HostEnv, plan: Evaluations) -> tuple[float, float, float]:
        """Return the seconds of a training step, of an evaluation and of the absolute metric."""
        options: Any = {"seeds": run.seeds[:1], "steps": run.steps}
        trainer: Trainer | host.Trainer
        step = 0.0
        if isinstance(env, HostEnv):
            trainer = host.Trainer(env, lambda: env, run.config, **options)
            step = seconds_per_step(env) / machine.cores()
            env.close()
        else:
            trainer = Trainer(env, run.config, **options)

        stepping = step * 2 * plan.episodes * (env.spec.limit or 0)
        evaluation = self.machine.seconds(trainer.work_per_evaluation(plan.episodes)) + stepping
        return (
            self.machine.seconds(trainer.work_per_step()) + step,
            evaluation,
            evaluation * plan.absolute / plan.episodes,
        )


def shape(run: Run, plan: Evaluations) -> object:
    """Return everything that the work of `run` depends on: the environment, the episodes of its
    evaluations, and all settings except floats, such as learning rates."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {name: strip(each) for name, each in value.items()}
        return 0.0 if isinstance(value, float) else value

    facts = [run.env, run.env_options, plan.episodes, plan.absolute, run.config]
    return msgspec.json.encode([strip(fact) for fact in msgspec.to_builtins(facts)])
