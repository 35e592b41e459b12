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
    def shape(self) -> tuple[int, ...]:
        """`*batch`: that of the actions."""
        return self.log_probs.shape[:-1]

    @property
    def probs(self) -> Float[Array, "*batch action"]:
        """Probabilities; zero where the action is not available."""
        return jnp.exp(self.log_probs)

    @property
    def moments(self) -> Float[Array, "*batch action"]:
        """The average of the actions' `features`: the probabilities."""
        return self.probs

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """One draw from every distribution."""
        return self.quantile(jax.random.uniform(key, self.shape))

    def quantile(self, u: Float[Array, "*batch"]) -> Int[Array, "*batch"]:
        """The actions at quantiles `u` in [0, 1)."""
        return inverse_cdf(self.probs, u)

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


class EpsilonGreedy(NamedTuple):
    """The best action with probability 1 − ε, else any available one."""

    values: Float[Array, "*batch action"]
    """What each action is worth; `IMPOSSIBLE` where it may not be chosen."""
    epsilon: Float[Array, ""]

    @property
    def shape(self) -> tuple[int, ...]:
        """`*batch`: that of the actions."""
        return self.values.shape[:-1]

    @property
    def probs(self) -> Float[Array, "*batch action"]:
        """Probabilities; zero where the action is not available."""
        avail = self.values > IMPOSSIBLE
        uniform = avail / avail.sum(-1, keepdims=True)
        greedy = jax.nn.one_hot(self.mode(), self.values.shape[-1])
        return (1 - self.epsilon) * greedy + self.epsilon * uniform

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """One draw from every distribution."""
        return inverse_cdf(self.probs, jax.random.uniform(key, self.shape))

    def mode(self) -> Int[Array, "*batch"]:
        """The best action, the first of several."""
        return self.values.argmax(-1)


class Gaussian(NamedTuple):
    """A distribution over continuous actions, independent in every dimension."""

    mean: Float[Array, "*batch dimension"]
    deviation: Float[Array, "*batch dimension"]

    @property
    def shape(self) -> tuple[int, ...]:
        """`[*batch, dimension]`: that of the actions."""
        return self.mean.shape

    @property
    def moments(self) -> Float[Array, "*batch feature"]:
        """The average of the actions' `features`: μ and μ² + σ²."""
        return jnp.concatenate([self.mean, self.mean**2 + self.deviation**2], -1)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch dimension"]:
        """One draw from every distribution, differentiable in its parameters."""
        return self.mean + self.deviation * jax.random.normal(key, self.shape)

    def quantile(self, u: Float[Array, "*batch dimension"]) -> Float[Array, "*batch dimension"]:
        """The actions at quantiles `u` in [0, 1), differentiable in the parameters."""
        # Within 5.3 deviations either way: single precision has no number between 1 − 6e-8 and 1.
        inside = jnp.clip(u, 6e-8, 1 - 6e-8)
        return self.mean + self.deviation * jax.scipy.special.ndtri(inside)

    def mode(self) -> Float[Array, "*batch dimension"]:
        """The likeliest action."""
        return self.mean

    def log_prob(self, action: Float[Array, "*batch dimension"]) -> Float[Array, "*batch"]:
        """log p(a), summed over dimensions."""
        return jax.scipy.stats.norm.logpdf(action, self.mean, self.deviation).sum(-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """½ log(2πe σ²), in nats, summed over dimensions."""
        return (0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(self.deviation)).sum(-1)


Policy = Categorical | Gaussian


def features(actions: Array, size: int) -> Float[Array, "*batch feature"]:
    """What a multilinear critic sees of actions: discrete ones `[*batch]` one-hot among `size`,
    continuous ones `[*batch, dimension]` themselves and their squares."""
    if jnp.issubdtype(actions.dtype, jnp.integer):
        return jax.nn.one_hot(actions, size)
    return jnp.concatenate([actions, actions**2], -1)


def inverse_cdf(
    probs: Float[Array, "*batch action"], u: Float[Array, "*batch"]
) -> Int[Array, "*batch"]:
    """The action at quantile `u` in [0, 1): the first whose cumulative probability exceeds it.

    An action of probability zero is never returned: the cumulative sums are made monotone, however
    they are rounded, and `u` is scaled by their total, which it stays below.
    """
    cumulative = jax.lax.cummax(probs.cumsum(-1), axis=probs.ndim - 1)
    return (cumulative <= u[..., None] * cumulative[..., -1:]).sum(-1)
