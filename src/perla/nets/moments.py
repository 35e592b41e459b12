"""Moment matching: a hidden layer averaged over random inputs by their mean and variance.

A sum of independent inputs is taken to be Gaussian, so that the average of a ReLU has a closed form
(Wang and Manning, *Fast dropout training*, 2013).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from perla.types import Array, Float

SMALLEST = 1e-12
"""The smallest variance: that of a constant, but for rounding."""


def embed(
    first: Float[Array, "*batch agent feature"],
    spread: Float[Array, "*batch agent feature"],
    rows: Float[Array, "agent feature width"],
    *,
    one_hot: bool,
) -> tuple[Float[Array, "*batch agent width"], Float[Array, "*batch agent width"]]:
    """The mean and variance of Σ_f x_f w_f for every agent, of features x with means `first`, which
    are independent with variances `spread`, or `one_hot` with second moments `spread` (which are
    their means)."""

    def of_agent(inputs):
        first, spread, rows = inputs
        mean = first @ rows
        variance = spread @ rows**2
        return mean, variance - mean**2 if one_hot else variance

    def by_agent(x):
        return x.reshape(-1, *x.shape[-2:]).swapaxes(0, 1)

    # One agent after another: XLA transposes the operands of a batched product, at many times its
    # cost.
    each = jax.lax.map(of_agent, (by_agent(first), by_agent(spread), rows))
    mean, variance = (x.swapaxes(0, 1).reshape(*first.shape[:-1], -1) for x in each)
    return mean, variance


@jax.custom_vjp
def rectified(
    mean: Float[Array, "*shape"], variance: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """E max(0, x) of a Gaussian x."""
    return _forward(mean, variance)[0]


def _forward(mean, variance):
    # σ / σ², as XLA makes 1 / σ a slow reciprocal square root.
    deviation = jnp.sqrt(variance)
    inverse = deviation / variance
    z = mean * inverse
    above = 0.5 + 0.5 * jax.lax.erf(math.sqrt(0.5) * z)
    density = jnp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    # E max(0, x) = μ Φ(z) + σ φ(z), with ∂/∂μ = Φ(z) and ∂/∂σ² = φ(z) / 2σ for z = μ/σ
    return mean * above + deviation * density, (above, 0.5 * inverse * density)


def _backward(derivatives, d_average):
    by_mean, by_variance = derivatives
    return d_average * by_mean, d_average * by_variance


rectified.defvjp(_forward, _backward)
