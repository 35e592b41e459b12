"""Aggregators: statistics of a critic's values over weighted joint actions.

`create_aggregator` makes one from its settings. An aggregator is called with a function of the
joint action, weighted joint actions, and the optimism coefficient (1 to 0). Only the mean is linear
in the critic's values; all others hold the values at all joint actions at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from perla.marginal.joint_actions import Draws, average
from perla.methods import aggregators as settings
from perla.types import Array, Float

SMALLEST_ETA = 1e-6
"""η below which the entropic average equals the mean to single precision."""

JointFunction = Callable[[Array], Float[Array, "*batch agent out"]]
"""A critic at some states, as a function of the joint action."""
Optimism = float | Float[Array, ""]


@dataclass(frozen=True)
class Mean:
    """Σⱼ wⱼ qⱼ."""

    linear: ClassVar[bool] = True

    def __call__(
        self, f: JointFunction, draws: Draws, optimism: Optimism = 1.0
    ) -> Float[Array, "*batch agent out"]:
        """The weighted average of f."""
        return average(f, draws)


@dataclass(frozen=True)
class Entropic:
    """(1/η) log Σⱼ wⱼ exp(η qⱼ)."""

    eta: float
    anneal: bool
    linear: ClassVar[bool] = False

    def __call__(
        self, f: JointFunction, draws: Draws, optimism: Optimism = 1.0
    ) -> Float[Array, "*batch agent out"]:
        """The entropic average of f."""
        eta = self.eta * optimism if self.anneal else self.eta
        return entropic(values_at(f, draws), draws.weights[..., None], eta)


@dataclass(frozen=True)
class UpperQuantile:
    """The smallest value whose cumulative weight reaches the quantile."""

    quantile: float
    linear: ClassVar[bool] = False

    def __call__(
        self, f: JointFunction, draws: Draws, optimism: Optimism = 1.0
    ) -> Float[Array, "*batch agent out"]:
        """The weighted quantile of f."""
        return weighted_quantile(values_at(f, draws), draws.weights[..., None], self.quantile)


@dataclass(frozen=True)
class Max:
    """The largest value of positive weight."""

    linear: ClassVar[bool] = False

    def __call__(
        self, f: JointFunction, draws: Draws, optimism: Optimism = 1.0
    ) -> Float[Array, "*batch agent out"]:
        """The maximum of f."""
        return jnp.where(draws.weights[..., None] > 0, values_at(f, draws), -jnp.inf).max(0)


Aggregator = Mean | Entropic | UpperQuantile | Max


def create_aggregator(config: settings.Aggregator) -> Aggregator:
    """The aggregator with these settings."""
    match config:
        case settings.Mean():
            return Mean()
        case settings.Entropic(eta=eta, anneal_eta=anneal):
            return Entropic(eta, anneal)
        case settings.UpperQuantile(quantile=quantile):
            return UpperQuantile(quantile)
        case settings.Max():
            return Max()


def values_at(f: JointFunction, draws: Draws) -> Float[Array, "sample *batch agent out"]:
    """The values of f at all joint actions."""
    return jax.lax.map(jax.checkpoint(f, prevent_cse=False), draws.actions)


def entropic(
    values: Float[Array, "sample *rest"],
    weights: Float[Array, "sample *rest_or_one"],
    eta: float | Float[Array, ""],
) -> Float[Array, "*rest"]:
    """The entropic average, accurate for small and large η and for values of any scale."""
    # (1/η) log Σⱼ wⱼ exp(η qⱼ)
    eta = jnp.maximum(eta, SMALLEST_ETA)
    mean = (weights * values).sum(0)
    x = eta * (values - mean[None])  # Relative to the mean, so that small η lose no digits.
    top = jax.lax.stop_gradient(jnp.where(weights > 0, x, -jnp.inf).max(0))
    small = jnp.log1p((weights * jnp.expm1(jnp.minimum(x, 1.0))).sum(0))
    large = top + jnp.log((weights * jnp.exp(jnp.minimum(x - top[None], 0.0))).sum(0))
    return mean + jnp.where(top < 1.0, small, large) / eta


def weighted_quantile(
    values: Float[Array, "sample *rest"], weights: Float[Array, "sample *rest_or_one"], q: float
) -> Float[Array, "*rest"]:
    """The smallest value whose cumulative weight, relative to the total, is at least q."""
    order = values.argsort(0)
    shares = jnp.take_along_axis(jnp.broadcast_to(weights, values.shape), order, 0).cumsum(0)
    # The tolerance absorbs the rounding of the cumulative sums.
    first = (shares < q * shares[-1:] - 1e-6).sum(0, keepdims=True)
    return jnp.take_along_axis(jnp.take_along_axis(values, order, 0), first, 0)[0]
