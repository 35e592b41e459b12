"""How the average over the others' actions is taken."""

from __future__ import annotations

from perla.config import Config, Count
from perla.errors import UserError

LARGEST_ENUMERATION = 65_536
"""Joint actions of the others beyond which enumeration is refused."""


class Sampled(Config, tag="sampled", frozen=True):
    """K independent draws from the joint policy, weighted equally (paper, Eq. 2)."""

    k: Count = 100
    """Joint actions drawn at each state."""


class Exact(Config, tag="exact", frozen=True):
    """Every joint action of the others with its probability (paper, Eq. 1)."""


class Auto(Config, tag="auto", frozen=True):
    """Exact where it needs no more critic evaluations than sampling would, else sampled."""

    budget: Count = 100
    """Most critic evaluations a state; K where the marginal is sampled."""


Estimator = Sampled | Exact | Auto


def resolve(estimator: Estimator, agents: int, actions: int) -> Sampled | Exact:
    """The estimator that is really used for `agents` with `actions` each.

    Raises `UserError` where the others' joint actions are too many to enumerate.
    """
    joint = actions ** (agents - 1)
    if isinstance(estimator, Auto):
        return Exact() if joint <= estimator.budget else Sampled(k=estimator.budget)
    if isinstance(estimator, Exact) and joint > LARGEST_ENUMERATION:
        raise UserError(
            f"estimator 'exact': {agents} agents with {actions} actions have {joint:,} joint "
            f"actions of the others, more than {LARGEST_ENUMERATION:,}; use 'sampled' or 'auto'"
        )
    return estimator


def evaluations(estimator: Sampled | Exact, agents: int, actions: int) -> int:
    """Joint actions at which the critic is evaluated at each state."""
    return estimator.k if isinstance(estimator, Sampled) else actions ** (agents - 1)
