"""What a run will cost here, from counting its work and measuring the machine."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from perla import machine
from perla.envs.processes.pool import pace
from perla.envs.protocol import Env, HostEnv
from perla.envs.registry import make
from perla.flops import Work, element_rate, matrix_rate
from perla.loops import host
from perla.loops.anakin import Trainer
from perla.runs import backend
from perla.runs.spec import Run, schedule, steps_per_update

START_SECONDS = 15.0
"""Starting a process, tracing, and compiling what has not been compiled before."""
ELEMENT_SHARE = 0.4
"""The share of the measured rate of elements that training reaches, over several settings."""


class Machine(NamedTuple):
    """How fast this machine computes, all its cores together."""

    matrix_rate: float
    """Floating-point operations a second of matrix products."""
    element_rate: float
    """Elements a second of everything else."""

    @classmethod
    def measure(cls) -> Machine:
        """This machine's rates; takes a second."""
        backend.prepare()
        return cls(matrix_rate(), element_rate())

    def seconds(self, work: Work) -> float:
        """How long `work` takes."""
        return work.flops / self.matrix_rate + work.elements / (ELEMENT_SHARE * self.element_rate)


class Costs:
    """Estimates runs on a machine, tracing once what differs in numbers alone."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.traced: dict[object, tuple[float, float, float]] = {}

    def seconds(self, run: Run) -> float:
        """About how long `run` will take if the machine is its own."""
        key = shape(run)
        env = make(run.env, **run.env_options)
        if key not in self.traced:
            self.traced[key] = self._trace(run, env)
        step, evaluation, absolute = self.traced[key]
        intervals = len(schedule(run.steps, run.num_evaluations, steps_per_update(run, env)))
        return START_SECONDS + len(run.seeds) * (
            run.steps * step + intervals * evaluation + absolute
        )

    def _trace(self, run: Run, env: Env | HostEnv) -> tuple[float, float, float]:
        """Seconds of an environment step in training, of an evaluation, of the absolute metric."""
        lasts: Any = {"seeds": run.seeds[:1], "steps": run.steps}
        trainer: Trainer | host.Trainer
        step = 0.0
        if isinstance(env, HostEnv):
            trainer = host.Trainer(env, lambda: env, run.config, **lasts)
            step = pace(env) / machine.cores()
            env.close()
        else:
            trainer = Trainer(env, run.config, **lasts)

        def evaluation(episodes: int) -> float:
            world = step * 2 * episodes * (env.spec.limit or 0)
            return self.machine.seconds(trainer.work_per_evaluation(episodes)) + world

        return (
            self.machine.seconds(trainer.work_per_step()) + step,
            evaluation(run.eval_episodes),
            evaluation(run.absolute_episodes),
        )


def shape(run: Run) -> object:
    """What the work of `run` depends on: the world and all settings but plain numbers with a point,
    such as learning rates."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {name: strip(own) for name, own in value.items()}
        return 0.0 if isinstance(value, float) else value

    facts = [run.env, run.env_options, run.eval_episodes, run.absolute_episodes, run.config]
    return msgspec.json.encode([strip(fact) for fact in msgspec.to_builtins(facts)])
