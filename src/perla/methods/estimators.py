"""Estimators of the average over the other agents' actions."""

from __future__ import annotations

import math
from typing import Literal

from perla.config import Config, Count, Positive
from perla.errors import UserError

LARGEST_ENUMERATION = 65_536
"""The largest number of the others' joint actions that `Exact` enumerates."""
TOLERANCE = 0.1
"""The default of `Sampled.tolerance`."""
CANDIDATES = (2, 7, 23, 71, 211)
"""Numbers of samples that `auto` chooses from: primes, each about thrice the last."""


class Sampled(Config, tag="sampled", frozen=True):
    """K samples from the joint policy, weighted equally (paper, Eq. 2)."""

    num_samples: Count | Literal["auto"] = 100
    """K, the joint actions sampled per state. `auto`: the fewest that meet the tolerance, chosen at
    every update from 2, 7, 23, 71 and 211."""
    tolerance: Positive = TOLERANCE
    """With `--num-samples auto`, the largest standard error of the average, relative to the
    critic's error."""
    gradient_samples: Count | None = None
    """Samples through which the critic's gradient flows; none: all of them."""
    sampler: Literal["iid", "latin"] = "iid"
    """`iid`: independent samples, as in the paper. `latin`: Latin hypercube sampling (McKay,
    Beckman and Conover, 1979): each agent's actions are stratified by their probabilities, and
    their combinations are random; fastest for a prime K."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples == "auto":
            return
        if self.tolerance != TOLERANCE:
            raise UserError(
                f"tolerance = {self.tolerance}: belongs to num_samples auto, and num_samples is "
                f"{self.num_samples}"
            )
        if self.gradient_samples is not None and self.gradient_samples > self.num_samples:
            raise UserError(
                f"gradient_samples = {self.gradient_samples}: at most num_samples = "
                f"{self.num_samples}"
            )


FEW = Sampled(num_samples=17, sampler="latin")
"""The estimator of `Auto` without a closed form and with too many joint actions."""


class Exact(Config, tag="exact", frozen=True):
    """All joint actions of the others, weighted by their probabilities (paper, Eq. 1)."""


class Analytic(Config, tag="analytic", frozen=True):
    """The closed form of the average, for critics multilinear in the others' actions."""


class Auto(Config, tag="auto", frozen=True):
    """Analytic for a critic with a closed form, exact for few joint actions of the others,
    otherwise 17 samples of the Latin sampler."""

    max_joint_actions: Count = 100
    """The largest number of the others' joint actions that is enumerated."""


Estimator = Sampled | Exact | Analytic | Auto


def resolve(
    estimator: Estimator, agents: int, actions: int | None, *, closed_form: bool = False
) -> Sampled | Exact | Analytic:
    """The estimator in use for `agents` with `actions` each (none: continuous actions), given
    whether the critic's average has a closed form.

    Raises `UserError` for `Analytic` without a closed form, and for `Exact` with continuous actions
    or with too many joint actions of the others.
    """
    joint = math.inf if actions is None else actions ** (agents - 1)
    if isinstance(estimator, Auto) and closed_form:
        return Analytic()
    if isinstance(estimator, Analytic) and not closed_form:
        raise UserError(
            "estimator 'analytic': this critic's average has no closed form; use critic_model "
            "'multilinear', or estimator 'sampled', 'exact' or 'auto'"
        )
    if isinstance(estimator, Auto):
        return Exact() if joint <= estimator.max_joint_actions else FEW
    if isinstance(estimator, Exact) and actions is None:
        raise UserError(
            "estimator 'exact': continuous actions cannot be enumerated; use 'sampled', or "
            "critic_model 'multilinear' with 'analytic'"
        )
    if isinstance(estimator, Exact) and joint > LARGEST_ENUMERATION:
        raise UserError(
            f"estimator 'exact': {agents} agents with {actions} actions have {joint:,} joint "
            f"actions of the others, more than {LARGEST_ENUMERATION:,}; use 'sampled' or 'auto'"
        )
    return estimator


def candidates(estimator: Sampled | Exact) -> tuple[Sampled | Exact, ...]:
    """The estimators that `num_samples = auto` chooses from; of any other estimator, itself."""
    if not isinstance(estimator, Sampled) or estimator.num_samples != "auto":
        return (estimator,)
    limit = estimator.gradient_samples
    return tuple(
        Sampled(num_samples=k, sampler=estimator.sampler, gradient_samples=limit and min(limit, k))
        for k in CANDIDATES
    )
