"""Policies at one moment: distributions over each agent's actions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from perla.types import Array, Bool, Float, Int, PRNGKeyArray

IMPOSSIBLE = -1e10
"""The logit of an action that may not be chosen: its probability is exactly zero."""


class Categorical(NamedTuple):
    """A distribution over discrete actions, with normalised log-probabilities."""

    log_probs: Float[Array, "*batch action"]

    @classmethod
    def masked(
        cls, logits: Float[Array, "*batch action"], avail: Bool[Array, "*batch action"]
    ) -> Categorical:
        """The softmax of `logits` over the available actions."""
        return cls(jax.nn.log_softmax(jnp.where(avail, logits, IMPOSSIBLE)))

    @property
    def probs(self) -> Float[Array, "*batch action"]:
        """Probabilities; zero where the action is not available."""
        return jnp.exp(self.log_probs)

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """One draw from every distribution."""
        return inverse_cdf(self.probs, jax.random.uniform(key, self.log_probs.shape[:-1]))

    def mode(self) -> Int[Array, "*batch"]:
        """The likeliest action."""
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """log π(a)."""
        chosen = jax.nn.one_hot(action, self.log_probs.shape[-1], dtype=bool)
        return jnp.where(chosen, self.log_probs, 0.0).sum(-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """−Σₐ π(a) log π(a), in nats."""
        return -(self.probs * self.log_probs).sum(-1)


def inverse_cdf(
    probs: Float[Array, "*batch action"], u: Float[Array, "*batch"]
) -> Int[Array, "*batch"]:
    """The action at quantile `u` in [0, 1): the first whose cumulative probability exceeds it.

    An action of probability zero is never returned: the cumulative sums are made monotone, however
    they are rounded, and `u` is scaled by their total, which it stays below.
    """
    cumulative = jax.lax.cummax(probs.cumsum(-1), axis=probs.ndim - 1)
    return (cumulative <= u[..., None] * cumulative[..., -1:]).sum(-1)
