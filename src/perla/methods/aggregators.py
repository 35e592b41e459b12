"""What becomes of a critic's values at the joint actions that were drawn."""

from __future__ import annotations

from perla.config import Config, Fraction, Positive


class Mean(Config, tag="mean", frozen=True):
    """Their average: the paper's, and what the policies are really worth."""


class Entropic(Config, tag="entropic", frozen=True):
    """(1/η) log E exp(η Q): between the average (η → 0) and the best (η → ∞)."""

    eta: Positive = 1.0
    """How optimistic it is, in one over the critic's units."""
    anneal_eta: bool = False
    """Whether η falls to zero over the run, linearly."""


class UpperQuantile(Config, tag="upper-quantile", frozen=True):
    """The smallest value that the critic stays at or below with at least this probability."""

    quantile: Fraction = 0.9
    """The probability; ½ is the median, 1 the best that may happen."""


class Max(Config, tag="max", frozen=True):
    """The best of them."""


Aggregator = Mean | Entropic | UpperQuantile | Max
