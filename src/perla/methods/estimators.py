"""How the average over the others' actions is taken."""

from __future__ import annotations

from typing import Literal

from perla.config import Config, Count
from perla.errors import UserError

LARGEST_ENUMERATION = 65_536
"""Joint actions of the others beyond which enumeration is refused."""


class Sampled(Config, tag="sampled", frozen=True):
    """K draws from the joint policy, weighted equally (paper, Eq. 2)."""

    k: Count = 100
    """Joint actions drawn at each state."""
    sampler: Literal["iid", "latin"] = "iid"
    """`iid`: independent draws, as in the paper. `latin`: every action of every agent comes as
    often as its probability says, to within one, and only which of them meet is left to chance
    (Latin hypercube sampling; McKay, Beckman and Conover, 1979); fastest where K is prime."""


class Exact(Config, tag="exact", frozen=True):
    """Every joint action of the others with its probability (paper, Eq. 1)."""


class Auto(Config, tag="auto", frozen=True):
    """Exact where the others' joint actions are few, else 23 draws of the Latin sampler."""

    budget: Count = 100
    """Most joint actions that are enumerated."""


Estimator = Sampled | Exact | Auto


def resolve(estimator: Estimator, agents: int, actions: int) -> Sampled | Exact:
    """The estimator that is really used for `agents` with `actions` each.

    Raises `UserError` where the others' joint actions are too many to enumerate.
    """
    joint = actions ** (agents - 1)
    if isinstance(estimator, Auto):
        return Exact() if joint <= estimator.budget else Sampled(k=23, sampler="latin")
    if isinstance(estimator, Exact) and joint > LARGEST_ENUMERATION:
        raise UserError(
            f"estimator 'exact': {agents} agents with {actions} actions have {joint:,} joint "
            f"actions of the others, more than {LARGEST_ENUMERATION:,}; use 'sampled' or 'auto'"
        )
    return estimator
