"""A run is data: what is trained where, for how long, how often, with which settings."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from perla.config import Config, Count, to_json
from perla.errors import UserError
from perla.methods.recipes import Method

Steps = Annotated[int, Meta(ge=1, le=2 * 10**9)]
Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]
OnNonFinite = Literal["stop", "drop-seed"]
"""Where a number of a seed is not finite: stop the run, or go on with the other seeds."""


class Run(Config, frozen=True, kw_only=True):
    """Everything that decides a run's numbers; `config.json` holds it, strictly and in full."""

    env: str
    """The world, by the name that its users know."""
    env_options: dict[str, bool | int | float | str] = msgspec.field(default_factory=dict)
    """Options of the world's family."""
    algo: str
    """The method's name. What it means is in `config`."""
    preset: str = "default"
    """The preset's name. What it means is in `config`."""
    config: Method
    """The learner, fully resolved."""

    steps: Steps
    """Environment steps of each seed, summed over copies; the last update may go past it."""
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1, max_length=1024)] = (0,)
    """Independent repetitions."""
    num_evaluations: Count = 50
    """Evaluations spread evenly over the run, after the one that precedes it."""
    eval_episodes: Count = 32
    """Episodes of an evaluation."""
    absolute_episodes: Count = 320
    """Episodes of the absolute metric: the best parameters, evaluated once more at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds = {self.seeds}: each seed may stand there once")

    @property
    def identity(self) -> str:
        """A digest that two runs share if and only if they are the same."""
        return hashlib.sha256(to_json(self)).hexdigest()


def schedule(steps: int, evaluations: int, per_update: int) -> tuple[int, ...]:
    """0 = t₀ < t₁ < … = `steps`: the steps at which every seed is evaluated, evenly spread.

    They lie at least `per_update` steps apart, so that there is always something new to evaluate;
    where that leaves room for fewer than `evaluations` intervals, there are fewer.
    """
    intervals = max(1, min(evaluations, steps // per_update))
    return tuple(i * steps // intervals for i in range(intervals + 1))
