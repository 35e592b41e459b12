"""How the average over the others' actions is taken."""

from __future__ import annotations

import itertools
import math

from perla.config import Config, Count
from perla.errors import UserError

LARGEST_ENUMERATION = 65_536
"""Joint actions of the others beyond which enumeration is refused."""


class Sampled(Config, tag="sampled", frozen=True):
    """K independent draws from the joint policy, weighted equally (paper, Eq. 2)."""

    k: Count = 100
    """Joint actions drawn at each state."""


class Stratified(Config, tag="stratified", frozen=True):
    """Draws from the joint policy, weighted equally, in which every action of every agent comes as
    often as its probability says, to within one; only which of them meet is left to chance (Latin
    hypercube sampling; McKay, Beckman and Conover, 1979)."""

    strata: Count = 23
    """Joint actions drawn at each state, a prime number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not prime(self.strata):
            near = next(n for n in itertools.count(self.strata) if prime(n))
            raise UserError(f"strata = {self.strata}: must be a prime number, for example {near}")


def prime(n: int) -> bool:
    """Whether `n` is a prime number."""
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


class Exact(Config, tag="exact", frozen=True):
    """Every joint action of the others with its probability (paper, Eq. 1)."""


class Auto(Config, tag="auto", frozen=True):
    """Exact where the others' joint actions are few, else stratified."""

    budget: Count = 100
    """Most joint actions that are enumerated."""


Estimator = Sampled | Stratified | Exact | Auto


def resolve(estimator: Estimator, agents: int, actions: int) -> Sampled | Stratified | Exact:
    """The estimator that is really used for `agents` with `actions` each.

    Raises `UserError` where the others' joint actions are too many to enumerate.
    """
    joint = actions ** (agents - 1)
    if isinstance(estimator, Auto):
        return Exact() if joint <= estimator.budget else Stratified()
    if isinstance(estimator, Exact) and joint > LARGEST_ENUMERATION:
        raise UserError(
            f"estimator 'exact': {agents} agents with {actions} actions have {joint:,} joint "
            f"actions of the others, more than {LARGEST_ENUMERATION:,}; use 'stratified' or 'auto'"
        )
    return estimator
