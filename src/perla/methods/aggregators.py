"""Aggregators: one number from a critic's values at the others' joint actions."""

from __future__ import annotations

from perla.config import Config, Fraction, Positive


class Mean(Config, tag="mean", frozen=True):
    """The mean: the value under the policies, as in the paper."""


class Entropic(Config, tag="entropic", frozen=True):
    """(1/η) log E exp(η Q): between the mean (η → 0) and the maximum (η → ∞)."""

    eta: Positive = 1.0
    """Optimism coefficient η, in units of one over the value."""
    anneal_eta: bool = False
    """Anneal η linearly to zero over the run."""


class UpperQuantile(Config, tag="upper-quantile", frozen=True):
    """A quantile of the values: the smallest one with at least this probability at or below it."""

    quantile: Fraction = 0.9
    """The probability: 0.5 is the median, 1 the maximum."""


class Max(Config, tag="max", frozen=True):
    """The maximum."""


Aggregator = Mean | Entropic | UpperQuantile | Max
