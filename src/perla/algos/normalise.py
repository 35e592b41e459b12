"""Running mean and deviation of a stream, for rewards and for targets."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from perla.types import Array, Float


class Running(NamedTuple):
    """Mean and variance of everything seen so far, merged batch by batch (Chan et al., 1979)."""

    count: Float[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]

    @classmethod
    def create(cls) -> Running:
        """Nothing seen: the identity."""
        return cls(jnp.float32(0.0), jnp.float32(0.0), jnp.float32(1.0))

    def update(self, x: Float[Array, "..."]) -> Running:
        """After seeing all entries of `x`."""
        count = self.count + x.size
        share = x.size / count
        shift = x.mean() - self.mean
        variance = (
            (1 - share) * self.variance + share * x.var() + share * (1 - share) * shift**2
        )
        return Running(count, self.mean + share * shift, variance)

    @property
    def deviation(self) -> Float[Array, ""]:
        """The standard deviation, bounded away from zero."""
        return jnp.sqrt(self.variance + 1e-5)

    def standardise(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """(x − mean) / deviation."""
        return (x - self.mean) / self.deviation

    def restore(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The inverse of `standardise`."""
        return x * self.deviation + self.mean
