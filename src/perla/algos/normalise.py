"""Masked means and variances, and the running mean and standard deviation of a stream."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from perla.algos.alive import LossMask
from perla.parallel import total
from perla.types import Array, Float


def mean(x: Float[Array, "*batch agent"], mask: LossMask) -> Float[Array, ""]:
    """The mean of `x` over the masked-in steps, of all agents or of each; 0 if there are none."""
    if mask.ndim == x.ndim:
        return total(jnp.where(mask, x, 0.0).sum()) / jnp.maximum(total(mask.sum()), 1)
    count = jnp.maximum(total(mask.sum()), 1) * x.shape[-1]
    return total(jnp.where(mask[..., None], x, 0.0).sum()) / count


def variance(x: Float[Array, "*batch agent"], mask: LossMask) -> Float[Array, ""]:
    """The variance of `x` over the masked-in steps, of all agents or of each."""
    return mean((x - mean(x, mask)) ** 2, mask)


class RunningMeanStd(NamedTuple):
    """Mean and variance of all steps seen so far, merged batch by batch (Chan et al., 1979)."""

    seen: Float[Array, ""]
    """Number of steps seen."""
    mean: Float[Array, ""]
    """Their mean."""
    variance: Float[Array, ""]
    """Their variance."""

    @classmethod
    def create(cls) -> RunningMeanStd:
        """No steps seen: mean 0 and variance 1."""
        return cls(jnp.float32(0.0), jnp.float32(0.0), jnp.float32(1.0))

    def update(self, x: Float[Array, "*batch agent"], mask: LossMask) -> RunningMeanStd:
        """The statistics after the masked-in steps of `x`."""
        more = total(mask.sum(dtype=jnp.float32))
        seen = self.seen + more
        share = more / jnp.maximum(seen, 1.0)
        shift = mean(x, mask) - self.mean
        spread = (1 - share) * self.variance + share * variance(x, mask)
        return RunningMeanStd(
            seen, self.mean + share * shift, spread + share * (1 - share) * shift**2
        )

    @property
    def deviation(self) -> Float[Array, ""]:
        """The standard deviation, at least a tenth.

        Where rewards are rare, their early deviation is tiny, and dividing by it would make the
        first rewards enormous.
        """
        return jnp.sqrt(self.variance + 1e-2)

    def standardise(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """(x − mean) / deviation."""
        return (x - self.mean) / self.deviation

    def restore(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The inverse of `standardise`."""
        return x * self.deviation + self.mean


class Identity(NamedTuple):
    """The scale of values that are not normalised."""

    deviation: float = 1.0

    def standardise(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """x."""
        return x

    def restore(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """x."""
        return x


Scale = RunningMeanStd | Identity
"""The relation of a critic's units to those of the rewards."""
