"""A diagnosis as data, and its execution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from perla.config import Fraction, convert, to_plain
from perla.envs.protocol import Env, HostEnv
from perla.methods.ppo import PPO
from perla.methods.settings import Naming, configure
from perla.runs import backend
from perla.runs.spec import Seed, Steps
from perla.variance.critic import check
from perla.variance.diagnosis import Diagnosis, Progress, diagnose

States = Annotated[int, Meta(ge=64, le=1_000_000)]
"""Visited states: with fewer than 64 an interval means little."""
Lambdas = Annotated[tuple[Fraction, ...], Meta(min_length=1, max_length=32)]


class Plan(NamedTuple):
    """All that determines a diagnosis."""

    env: str
    env_options: Mapping[str, Any]
    algo: str
    preset: str
    config: PPO
    steps: int
    states: int
    lambdas: tuple[float, ...]
    seed: int

    @classmethod
    def read(
        cls,
        env: str,
        env_options: Mapping[str, Any],
        algo: str,
        preset: str,
        settings: Mapping[str, Any],
        *,
        name: Naming = str,
        **numbers: Any,
    ) -> Plan:
        """The plan with these settings and numbers, text or not; `name` spells a setting's name.
        Raises `UserError` for every mistake in them."""
        kinds = {"steps": Steps, "states": States, "lambdas": Lambdas, "seed": Seed}
        read = {
            each: convert(to_plain(value), kinds[each], name=name(each))
            for each, value in numbers.items()
        }
        config = configure(algo, preset, settings, flag_name=name)
        return cls(env, env_options, algo, preset, config, **read)

    @property
    def title(self) -> str:
        """The method, the environment and the steps of training."""
        return f"{self.algo} on {self.env} after {self.steps:,} steps"

    def carry_out(self, env: Env | HostEnv, progress: Progress) -> Diagnosis:
        """Train, branch and estimate. Raises `UserError` for a method or an environment that cannot
        be diagnosed, and if a number in training is not finite."""
        backend.prepare()
        return diagnose(
            check(self.algo, self.config, env),
            self.config,
            steps=self.steps,
            states=self.states,
            lambdas=self.lambdas,
            seed=self.seed,
            progress=progress,
        )
