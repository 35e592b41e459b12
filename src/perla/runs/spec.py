"""A run as data: environment, method, settings, seeds, steps and evaluations."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from perla.config import Config, Count, to_json
from perla.envs import options
from perla.envs.protocol import Env, HostEnv
from perla.errors import UserError
from perla.methods.method import Method

Steps = Annotated[int, Meta(ge=1, le=2 * 10**9)]
Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]
OnNonFinite = Literal["stop", "drop-seed"]
"""When a number of a seed is not finite: stop the run, or continue with the other seeds."""


class Run(Config, frozen=True, kw_only=True):
    """Everything that determines a run's numbers. `config.json` holds it in full."""

    env: str
    """The environment's id."""
    env_options: dict[str, Any] = msgspec.field(default_factory=dict)
    """Options of the environment, as JSON has them: tuples become lists."""
    algo: str
    """The method's name. Its settings are in `config`."""
    preset: str = "default"
    """The preset's name. Its settings are in `config`."""
    config: Method
    """All settings of the learner."""

    steps: Steps
    """Environment steps of each seed, summed over environments; the last update may exceed it."""
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1, max_length=1024)] = (0,)
    """Seeds of the independent repetitions."""
    num_evaluations: Count = 50
    """Evaluations spread evenly over the run, in addition to the one before training."""
    eval_episodes: Count = 32
    """Episodes of an evaluation."""
    absolute_episodes: Count = 320
    """Episodes of the absolute metric: the best parameters, evaluated once more at the end."""

    def __post_init__(self) -> None:
        plain = {name: options.plain(name, value) for name, value in self.env_options.items()}
        msgspec.structs.force_setattr(self, "env_options", plain)
        super().__post_init__()
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds = {self.seeds}: a seed occurs more than once")

    @property
    def identity(self) -> str:
        """A digest that is equal for two runs if and only if the runs are."""
        return hashlib.sha256(to_json(self)).hexdigest()


def steps_per_update(run: Run, env: Env | HostEnv) -> int:
    """The largest number of environment steps of an update, summed over environments."""
    return run.config.num_envs * run.config.length(env.spec.limit)


def schedule(steps: int, evaluations: int, per_update: int) -> tuple[int, ...]:
    """0 = t₀ < t₁ < … = `steps`: the steps at which every seed is evaluated, evenly spaced.

    They are at least `per_update` steps apart, so that every evaluation follows an update; if there
    is no room for `evaluations` intervals, there are fewer.
    """
    intervals = max(1, min(evaluations, steps // per_update))
    return tuple(i * steps // intervals for i in range(intervals + 1))
