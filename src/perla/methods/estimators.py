"""How the average over the others' actions is taken."""

from __future__ import annotations

import math
from typing import Literal

from perla.config import Config, Count, Positive
from perla.errors import UserError

LARGEST_ENUMERATION = 65_536
"""Joint actions of the others beyond which enumeration is refused."""
TOLERANCE = 0.1
CANDIDATES = (2, 7, 23, 71, 211)
"""What k `auto` chooses from: primes, each about three times the one before."""


class Sampled(Config, tag="sampled", frozen=True):
    """K draws from the joint policy, weighted equally (paper, Eq. 2)."""

    num_samples: Count | Literal["auto"] = 100
    """Joint actions drawn at each state; `auto`: as many as the tolerance needs, chosen anew at
    every update among a few primes."""
    tolerance: Positive = TOLERANCE
    """What k `auto` allows: the standard error of the average over the error of the critic."""
    gradient_samples: Count | None = None
    """Draws through which the critic's gradient flows; none: all of them."""
    sampler: Literal["iid", "latin"] = "iid"
    """`iid`: independent draws, as in the paper. `latin`: every action of every agent comes as
    often as its probability says, to within one, and only which of them meet is left to chance
    (Latin hypercube sampling; McKay, Beckman and Conover, 1979); fastest where K is prime."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples == "auto":
            return
        if self.tolerance != TOLERANCE:
            raise UserError(
                f"tolerance = {self.tolerance}: belongs to num_samples auto, and num_samples is {self.num_samples}"
            )
        if self.gradient_samples is not None and self.gradient_samples > self.num_samples:
            raise UserError(
                f"gradient_samples = {self.gradient_samples}: at most num_samples = {self.num_samples}"
            )


FEW = Sampled(num_samples=17, sampler="latin")
"""What `Auto` takes where nothing is exact."""


class Exact(Config, tag="exact", frozen=True):
    """Every joint action of the others with its probability (paper, Eq. 1)."""


class Analytic(Config, tag="analytic", frozen=True):
    """The average in closed form, of a critic that has one (multilinear in the others' actions)."""


class Auto(Config, tag="auto", frozen=True):
    """Analytic where the critic has a closed form, exact where the others' joint actions are few,
    else 17 draws of the Latin sampler."""

    max_joint_actions: Count = 100
    """Most joint actions that are enumerated."""


Estimator = Sampled | Exact | Analytic | Auto


def resolve(
    estimator: Estimator, agents: int, actions: int | None, *, closed_form: bool = False
) -> Sampled | Exact | Analytic:
    """The estimator that is really used for `agents` with `actions` each (none: continuous ones),
    and a critic whose average has a closed form or not.

    Raises `UserError` where it has none and is asked for it, and where the others' joint actions
    are too many to enumerate.
    """
    joint = math.inf if actions is None else actions ** (agents - 1)
    if isinstance(estimator, Auto) and closed_form:
        return Analytic()
    if isinstance(estimator, Analytic) and not closed_form:
        raise UserError(
            "estimator 'analytic': this critic's average has no closed form; use "
            "critic_model "
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
    """The estimators among which a k of `auto` chooses; any other's ladder has one rung, itself."""
    if not isinstance(estimator, Sampled) or estimator.num_samples != "auto":
        return (estimator,)
    through = estimator.gradient_samples
    return tuple(
        Sampled(
            num_samples=k, sampler=estimator.sampler, gradient_samples=through and min(through, k)
        )
        for k in CANDIDATES
    )
