"""Unbiased estimates of the parts of a return's variance, from the branches of each visit.

With Q = E[G | s, aᵢ, a₋ᵢ], Q̃ = E[G | s, aᵢ] and V̄ = E[G | s] the parts are

    own          Var Q̃                        over aᵢ
    others       E Var[Q | aᵢ]                over a₋ᵢ
    environment  E Var[E[G | s, a, s′, r] | a]     over the outcome of the step

Every square of a difference of means is estimated by the product of two independent estimates of
the difference: from other actions of those over which the difference is averaged, and from other
outcomes or continuations. Branches with equal actions, or equal outcomes, have a difference that is
exactly zero. Sums run over all ways to choose different branches.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

import numpy as np

from perla.types import Float
from perla.variance.branches import Branches

Values = Float[np.ndarray, "visit lam"]


class Components(NamedTuple):
    """Estimates for each visit, in squared units of the learner's rewards. Means over visits
    converge; a single one may be negative."""

    own: Values
    others: Values
    environment: Values
    whole: Values
    """Var[G | s, aᵢ]."""
    bias: Values
    """The square of E[G | s, aᵢ] − V(s) − A(s, aᵢ): the critic's error in the advantage, where A is
    the advantage of undisturbed returns."""
    error: Float[np.ndarray, " visit"]
    """The square of V(s) − E[G | s] for undisturbed returns G."""
    signal: Values
    """‖E[g | s]‖², where g = (G − V) ∇ log π(aᵢ)."""
    noise: dict[str, Values]
    """E[‖g‖² | s] − ‖E[g | s]‖² for each of `ESTIMATORS`."""


ESTIMATORS = {
    "critic": "the λ-return less the critic's value, as in training",
    "state": "the λ-return less V̄(s): a critic without error",
    "baseline": "the λ-return less E[G | s, a₋ᵢ]: a baseline at the others' actual actions",
    "marginal": "the λ-return less Q(s, a) − Q̃(s, aᵢ) + V̄(s): the others' actions averaged out",
    "counterfactual": "Q(s, a) − E[G | s, a₋ᵢ]: COMA, a critic instead of the return",
    "averaged": "Q̃(s, aᵢ) − V̄(s): an averaged critic instead of the return",
}
"""Advantages whose gradients are compared, with exact critics save for the first."""


def estimate(branches: Branches, value: Float[np.ndarray, " visit"]) -> Components:
    """The components at every visit; `value` is the critic's."""
    return _Estimator(branches, value).components()


class _Estimator:
    """Sums over branches, with own actions j, others' actions k, outcomes m, continuations r."""

    def __init__(self, branches: Branches, value: Float[np.ndarray, " visit"]) -> None:
        self.value = np.asarray(value, float)[:, None]
        self.leaf = np.asarray(branches.returns, float)
        self.mean = self.leaf.mean(4)
        self.undisturbed = np.asarray(branches.undisturbed, float).mean(4)[..., None]
        self.score = np.asarray(branches.score, float)
        self.weight = (self.score**2).sum(-1)
        """‖∇ log π(aᵢ)‖² of each own action."""
        self.other_own = ~np.asarray(branches.same_own)
        self.other_others = ~np.asarray(branches.same_others)
        self.other_outcome = ~np.asarray(branches.same_outcome)

    def components(self) -> Components:
        """All of them."""
        flat = np.ones_like(self.weight)
        return Components(
            own=self.own(flat),
            others=self.others(flat),
            environment=self.environment(),
            whole=self.given_own(),
            bias=self.bias(),
            error=self.error(),
            signal=(signal := self.signal()),
            noise={name: square - signal for name, square in self.squares().items()},
        )

    def squares(self) -> dict[str, Values]:
        """E[‖g‖² | s] of each of `ESTIMATORS`, from as few differences of large numbers as can be:
        an exact critic takes parts out of the square of the learnt critic's advantage."""
        w = self.weight
        critic, own, counterfactual = self.square(), self.own(w), self.counterfactual()
        # E[w (G − V)²] − E[w (Q̃ − V)²] + E[w (Q̃ − V̄)²]
        state = critic - self.from_value(given_others=False) + own
        return {
            "critic": critic,
            "state": state,
            # E[w (G − V)²] − E[w (Q − V)²] + E[w (Q − E[G | s, a₋ᵢ])²]
            "baseline": critic - self.from_value(given_others=True) + counterfactual,
            "marginal": state - self.others(w),
            "counterfactual": counterfactual,
            "averaged": own,
        }

    def own(self, weight: np.ndarray) -> Values:
        """E[w (Q̃ − V̄)²], with a weight w of each own action."""
        terms = (
            weight[:, j, None]
            * self.over_own(self.mean, j, j1, k, m)
            * self.over_own(self.mean, j, j2, k1, m1)
            for j, j1, j2 in different(self.leaf, 1, 3)
            for k, k1 in different(self.leaf, 2, 2)
            for m, m1 in different(self.leaf, 3, 2)
        )
        return average(terms)

    def others(self, weight: np.ndarray) -> Values:
        """E[w Var[Q | aᵢ]]."""
        terms = (
            weight[:, j, None] * self.over_others(j, k, k1, 0) * self.over_others(j, k, k1, 1) / 2
            for j in range(self.leaf.shape[1])
            for k, k1 in different(self.leaf, 2, 2)
        )
        return average(terms)

    def environment(self) -> Values:
        """E Var[E[G | s, a, s′, r] | a]."""
        difference = self.leaf[:, :, :, 0] - self.leaf[:, :, :, 1]
        other = self.other_outcome[:, :, :, 0, 1, None]
        return (other * difference[:, :, :, 0] * difference[:, :, :, 1] / 2).mean((1, 2))

    def given_own(self) -> Values:
        """E Var[G | s, aᵢ]."""
        terms = (
            ((self.leaf[:, :, k, 0, r] - self.leaf[:, :, k1, 1, r1]) ** 2 / 2).mean(1)
            for k, k1 in different(self.leaf, 2, 2)
            for r in range(self.leaf.shape[4])
            for r1 in range(self.leaf.shape[4])
        )
        return average(terms)

    def from_value(self, *, given_others: bool) -> Values:
        """E[w (Q − V)²], or without `given_others` E[w (Q̃ − V)²]."""
        error = self.mean - self.value[:, None, None, None]
        again = error if given_others else error[:, :, ::-1]
        product = (error[:, :, :, 0] * again[:, :, :, 1]).mean(2)
        return (self.weight[..., None] * product).mean(1)

    def square(self) -> Values:
        """E[w (G − V)²]."""
        square = ((self.leaf - self.value[:, None, None, None, None]) ** 2).mean((2, 3, 4))
        return (self.weight[..., None] * square).mean(1)

    def counterfactual(self) -> Values:
        """E[w (Q − E[G | s, a₋ᵢ])²]."""
        terms = (
            self.weight[:, j, None]
            * self.over_own(self.mean, j, j1, k, 0)
            * self.over_own(self.mean, j, j2, k, 1)
            for j, j1, j2 in different(self.leaf, 1, 3)
            for k in range(self.leaf.shape[2])
        )
        return average(terms)

    def signal(self) -> Values:
        """‖E[(G − V) ∇ log π]‖²."""
        advantage = self.mean - self.value[:, None, None, None]
        terms = (
            (self.score[:, j] * self.score[:, j1]).sum(-1)[:, None]
            * advantage[:, j, k, 0]
            * advantage[:, j1, k1, 1]
            for j, j1 in different(self.leaf, 1, 2)
            for k, k1 in different(self.leaf, 2, 2)
        )
        return average(terms)

    def bias(self) -> Values:
        """The square of E[G | s, aᵢ] − V − (Q̃ − V̄), the latter of undisturbed returns."""

        def error(j: int, j1: int, k: int, m: int) -> np.ndarray:
            advantage = self.mean[:, j, k, m] - self.value
            return advantage - self.over_own(self.undisturbed, j, j1, k, m)

        terms = (
            error(j, j1, k, 0) * error(j, j2, k1, 1)
            for j, j1, j2 in different(self.leaf, 1, 3)
            for k, k1 in different(self.leaf, 2, 2)
        )
        return average(terms)

    def error(self) -> Float[np.ndarray, " visit"]:
        """(V̄ − V)² of undisturbed returns."""
        error = self.undisturbed - self.value[:, None, None, None]
        terms = (
            error[:, j, k, 0] * error[:, j1, k1, 1]
            for j, j1 in different(self.leaf, 1, 2)
            for k, k1 in different(self.leaf, 2, 2)
        )
        return average(terms)[:, 0]

    def over_own(self, means: np.ndarray, j: int, j1: int, k: int, m: int) -> np.ndarray:
        """The difference between two own actions at one joint action of the others."""
        return self.other_own[:, j, j1, None] * (means[:, j, k, m] - means[:, j1, k, m])

    def over_others(self, j: int, k: int, k1: int, m: int) -> np.ndarray:
        """The difference between two joint actions of the others at one own action."""
        difference = self.mean[:, j, k, m] - self.mean[:, j, k1, m]
        return self.other_others[:, k, k1, None] * difference


def different(leaf: np.ndarray, axis: int, count: int) -> Iterator[tuple[int, ...]]:
    """All ordered choices of `count` different branches along an axis."""
    return permutations(range(leaf.shape[axis]), count)


def average(terms: Iterator[np.ndarray]) -> np.ndarray:
    """The mean of all terms."""
    return np.mean(list(terms), axis=0)
