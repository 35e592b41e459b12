"""E over a₋ᵢ: a joint-action critic averaged over the other agents' current policies.

    Q̃ᵢ(s, aᵢ) = E_{a₋ᵢ ~ π₋ᵢ} [Qᵢ(s, aᵢ, a₋ᵢ)]                              (paper, Eq. 1)
    Q̂ᵢ(s, aᵢ) = 1/K Σⱼ Qᵢ(s, aᵢ, a₋ᵢ⁽ʲ⁾),   a₋ᵢ⁽ʲ⁾ ~ π₋ᵢ                    (paper, Eq. 2)

An estimator turns the policies at one state into a set of weighted joint actions. One set serves
all agents, because agent i ignores its own entry.
"""

from __future__ import annotations

from perla.config import Config, Count


class Sampled(Config, tag="sampled"):
    """K independent draws from the joint policy, weighted equally (paper, Eq. 2)."""

    k: Count = 100
    """Joint actions drawn at each state."""


class Exact(Config, tag="exact"):
    """Every joint action of the others with its probability (paper, Eq. 1)."""


class Auto(Config, tag="auto"):
    """Exact where it needs no more critic evaluations than sampling would, else sampled."""

    budget: Count = 100
    """Most critic evaluations a state; also K where sampling is chosen."""
