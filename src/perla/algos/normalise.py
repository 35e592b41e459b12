"""Means over the steps that count, and the running mean and deviation of a stream."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from perla.types import Array, Bool, Float


def mean(x: Float[Array, "*batch agent"], valid: Bool[Array, "*batch"]) -> Float[Array, ""]:
    """The mean of `x` over valid steps and all agents."""
    return jnp.where(valid[..., None], x, 0.0).sum() / (valid.sum() * x.shape[-1])


def variance(x: Float[Array, "*batch agent"], valid: Bool[Array, "*batch"]) -> Float[Array, ""]:
    """The variance of `x` over valid steps and all agents."""
    return mean((x - mean(x, valid)) ** 2, valid)


class Running(NamedTuple):
    """Mean and variance of all steps seen so far, merged batch by batch (Chan et al., 1979)."""

    seen: Float[Array, ""]
    """Steps seen."""
    mean: Float[Array, ""]
    variance: Float[Array, ""]

    @classmethod
    def create(cls) -> Running:
        """Nothing seen: the identity."""
        return cls(jnp.float32(0.0), jnp.float32(0.0), jnp.float32(1.0))

    def update(self, x: Float[Array, "*batch agent"], valid: Bool[Array, "*batch"]) -> Running:
        """After seeing the valid steps of `x`."""
        more = valid.sum(dtype=jnp.float32)
        seen = self.seen + more
        share = more / seen
        shift = mean(x, valid) - self.mean
        spread = (1 - share) * self.variance + share * variance(x, valid)
        return Running(seen, self.mean + share * shift, spread + share * (1 - share) * shift**2)

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
