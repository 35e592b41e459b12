"""Settings of the aggregators: statistics of a critic's values over joint actions."""

from __future__ import annotations

from perla.config import Config, Fraction, Positive


class Mean(Config, tag="mean", frozen=True):
    """The average, as in the paper: the value of the current policies."""


class Entropic(Config, tag="entropic", frozen=True):
    """(1/η) log E exp(η Q): between the average (η → 0) and the maximum (η → ∞)."""

    eta: Positive = 1.0
    """η, the degree of optimism, in one over the critic's units."""
    anneal_eta: bool = False
    """Anneal η linearly to zero over the run."""


class UpperQuantile(Config, tag="upper-quantile", frozen=True):
    """A quantile of the critic's values."""

    quantile: Fraction = 0.9
    """The probability of values at or below it; ½ is the median, 1 the maximum."""


class Max(Config, tag="max", frozen=True):
    """The maximum of the critic's values."""


Aggregator = Mean | Entropic | UpperQuantile | Max
