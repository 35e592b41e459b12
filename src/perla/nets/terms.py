"""Loss terms that a component of the networks contributes to its learner's loss."""

from __future__ import annotations

from typing import NamedTuple

from perla.types import Array, Float


class LossTerm(NamedTuple):
    """`coef` times the mean of `values` over the steps in the loss mask."""

    coef: float
    values: Float[Array, "*batch value"]
    """`[*batch, value]`: one for the joint value, or one for each agent."""
