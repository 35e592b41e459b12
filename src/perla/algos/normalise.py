"""Means over the steps that count, and the running mean and deviation of a stream."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from perla.algos.alive import LossMask
from perla.types import Array, Float


def mean(x: Float[Array, "*batch agent"], valid: LossMask) -> Float[Array, ""]:
    """The mean of `x` over the steps that count, of all agents or of each; 0 if none does."""
    if valid.ndim == x.ndim:
        return jnp.where(valid, x, 0.0).sum() / jnp.maximum(valid.sum(), 1)
    count = jnp.maximum(valid.sum(), 1) * x.shape[-1]
    return jnp.where(valid[..., None], x, 0.0).sum() / count


def variance(x: Float[Array, "*batch agent"], valid: LossMask) -> Float[Array, ""]:
    """The variance of `x` over the steps that count, of all agents alike or of each."""
    return mean((x - mean(x, valid)) ** 2, valid)


class RunningMeanStd(NamedTuple):
    """Mean and variance of all steps seen so far, merged batch by batch (Chan et al., 1979)."""

    seen: Float[Array, ""]
    """Steps seen."""
    mean: Float[Array, ""]
    variance: Float[Array, ""]

    @classmethod
    def create(cls) -> RunningMeanStd:
        """Nothing seen: the identity."""
        return cls(jnp.float32(0.0), jnp.float32(0.0), jnp.float32(1.0))

    def update(self, x: Float[Array, "*batch agent"], valid: LossMask) -> RunningMeanStd:
        """After seeing the steps of `x` that count."""
        more = valid.sum(dtype=jnp.float32)
        seen = self.seen + more
        share = more / jnp.maximum(seen, 1.0)
        shift = mean(x, valid) - self.mean
        spread = (1 - share) * self.variance + share * variance(x, valid)
        return RunningMeanStd(
            seen, self.mean + share * shift, spread + share * (1 - share) * shift**2
        )

    @property
    def deviation(self) -> Float[Array, ""]:
        """The standard deviation, never below a tenth.

        Where rewards are rare, their early deviation is tiny, and dividing by it would make the
        first ones that are met enormous.
        """
        return jnp.sqrt(self.variance + 1e-2)

    def standardise(self, x: Float[Array, ...]) -> Float[Array, ...]:
        """(x − mean) / deviation."""
        return (x - self.mean) / self.deviation

    def restore(self, x: Float[Array, ...]) -> Float[Array, ...]:
        """The inverse of `standardise`."""
        return x * self.deviation + self.mean
