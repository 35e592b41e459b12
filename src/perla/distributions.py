"""Policies: distributions over each agent's actions, masked where actions are unavailable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from perla.types import Actions, Array, Bool, Float, Int, PRNGKeyArray

MASKED_LOGIT = -1e10
"""The logit of an unavailable action: its probability is exactly zero."""
NODES = 32
"""Quadrature points of an average over a squashed Gaussian, in each dimension."""


def action_mask(
    avail: Bool[Array, "*batch action"], alive: Bool[Array, "*batch"] | None
) -> Bool[Array, "*batch action"]:
    """The action mask: the available actions, of a dead agent only the first of them."""
    if alive is None:
        return avail
    return avail & (alive[..., None] | (avail.cumsum(-1) == 1))


@runtime_checkable
class JointPolicy(Protocol):
    """The policies of all agents at one step, as rollouts and evaluations use them."""

    def sample(self, key: PRNGKeyArray) -> Actions:
        """One sample of every agent's action."""
        ...

    def mode(self) -> Actions:
        """The greedy action of every agent."""
        ...

    def given(self, action: Actions) -> Any:
        """The record of the policies in a trajectory, once this `action` was taken: each agent's
        distribution given the actions that it depends on. Where agents act independently that is
        the policies themselves."""
        ...


class Categorical(NamedTuple):
    """A distribution over discrete actions, with normalised log-probabilities."""

    log_probs: Float[Array, "*batch action"]
    """log π(a), whose exponentials add up to 1."""

    @classmethod
    def masked(
        cls,
        logits: Float[Array, "*batch action"],
        avail: Bool[Array, "*batch action"],
        alive: Bool[Array, "*batch"] | None = None,
    ) -> Categorical:
        """The softmax of `logits` over the available actions; a dead agent takes the first of
        them with probability one."""
        return cls(jax.nn.log_softmax(jnp.where(action_mask(avail, alive), logits, MASKED_LOGIT)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `*batch` of the actions."""
        return self.log_probs.shape[:-1]

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape `*batch` of the distributions."""
        return self.log_probs.shape[:-1]

    @property
    def choices(self) -> int:
        """Number of actions."""
        return self.log_probs.shape[-1]

    @property
    def probs(self) -> Float[Array, "*batch action"]:
        """Probabilities; zero where the action is not available."""
        return jnp.exp(self.log_probs)

    @property
    def moments(self) -> Float[Array, "*batch action"]:
        """The mean of the actions' `features`: the probabilities."""
        return self.probs

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """One sample from every distribution."""
        return self.quantile(jax.random.uniform(key, self.shape))

    def quantile(self, u: Float[Array, "*batch"]) -> Int[Array, "*batch"]:
        """The actions at quantiles `u` in [0, 1)."""
        return inverse_cdf(self.probs, u)

    def relaxed(self, key: PRNGKeyArray, temperature: float) -> Float[Array, "*batch action"]:
        """One-hot samples whose gradient is that of their relaxation (straight-through
        Gumbel-softmax; Jang et al., 2017)."""
        # y = softmax((log π + g) / T),   g ~ Gumbel(0, 1)
        noise = jax.random.gumbel(key, self.log_probs.shape)
        soft = jax.nn.softmax((self.log_probs + noise) / temperature)
        hard = jax.nn.one_hot(soft.argmax(-1), soft.shape[-1])
        return hard + (soft - jax.lax.stop_gradient(soft))

    def mode(self) -> Int[Array, "*batch"]:
        """The most likely action."""
        return self.log_probs.argmax(-1)

    def given(self, action: Int[Array, "*batch"]) -> Categorical:
        """The policies themselves: agents act independently."""
        return self

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """log π(a)."""
        chosen = jax.nn.one_hot(action, self.log_probs.shape[-1], dtype=bool)
        return jnp.where(chosen, self.log_probs, 0.0).sum(-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """−Σₐ π(a) log π(a), in nats."""
        return -(self.probs * self.log_probs).sum(-1)

    def score(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch action"]:
        """∇ log π(a) with respect to the logits."""
        # 1[a] − π
        return jax.nn.one_hot(action, self.log_probs.shape[-1]) - self.probs


class EpsilonGreedy(NamedTuple):
    """ε-greedy: the greedy action with probability 1 − ε, else a uniform available one."""

    values: Float[Array, "*batch action"]
    """Q-values of the actions; `MASKED_LOGIT` where unavailable."""
    epsilon: Float[Array, ""]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `*batch` of the actions."""
        return self.values.shape[:-1]

    @property
    def probs(self) -> Float[Array, "*batch action"]:
        """Probabilities; zero where the action is not available."""
        avail = self.values > MASKED_LOGIT
        uniform = avail / avail.sum(-1, keepdims=True)
        greedy = jax.nn.one_hot(self.mode(), self.values.shape[-1])
        return (1 - self.epsilon) * greedy + self.epsilon * uniform

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """One sample from every distribution."""
        return inverse_cdf(self.probs, jax.random.uniform(key, self.shape))

    def mode(self) -> Int[Array, "*batch"]:
        """The greedy action, the first of several."""
        return self.values.argmax(-1)

    def given(self, action: Int[Array, "*batch"]) -> EpsilonGreedy:
        """The policies themselves: agents act independently."""
        return self


class Perturbed(NamedTuple):
    """Samples use the noisy Q-values; the mode uses the noise-free ones."""

    noisy: EpsilonGreedy
    settled: EpsilonGreedy

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `*batch` of the actions."""
        return self.noisy.shape

    @property
    def probs(self) -> Float[Array, "*batch action"]:
        """Probabilities under this noise; zero where the action is not available."""
        return self.noisy.probs

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """One sample from every distribution."""
        return self.noisy.sample(key)

    def mode(self) -> Int[Array, "*batch"]:
        """The noise-free greedy action, the first of several."""
        return self.settled.mode()

    def given(self, action: Int[Array, "*batch"]) -> Perturbed:
        """The policies themselves: agents act independently."""
        return self


class Gaussian(NamedTuple):
    """A distribution over continuous actions, independent in every dimension.

    A dimension of standard deviation zero is padding: it is always at its mean, and enters neither
    log-probability nor entropy nor divergence.
    """

    mean: Float[Array, "*batch dimension"]
    """Its mean, which is its mode too."""
    deviation: Float[Array, "*batch dimension"]
    """Its standard deviation."""

    @classmethod
    def masked(
        cls,
        mean: Float[Array, "*batch dimension"],
        deviation: Float[Array, "*batch dimension"],
        avail: Bool[Array, "*batch dimension"],
        alive: Bool[Array, "*batch"] | None = None,
    ) -> Gaussian:
        """The Gaussian of the available dimensions; all others are zero, as are all dimensions
        of a dead agent."""
        avail = avail if alive is None else avail & alive[..., None]
        return cls(jnp.where(avail, mean, 0.0), jnp.where(avail, deviation, 0.0))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `[*batch, dimension]` of the actions."""
        return self.mean.shape

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape `*batch` of the distributions."""
        return self.mean.shape[:-1]

    @property
    def choices(self) -> None:
        """Number of actions; none: they are continuous."""
        return None

    @property
    def moments(self) -> Float[Array, "*batch feature"]:
        """The mean of the actions' `features`: μ and μ² + σ²."""
        return jnp.concatenate([self.mean, self.mean**2 + self.deviation**2], -1)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch dimension"]:
        """One sample from every distribution, differentiable in its parameters."""
        return self.mean + self.deviation * jax.random.normal(key, self.shape)

    def quantile(self, u: Float[Array, "*batch dimension"]) -> Float[Array, "*batch dimension"]:
        """The actions at quantiles `u` in [0, 1), differentiable in the parameters."""
        # Within 5.3 deviations either way: single precision has no number between 1 − 6e-8 and 1.
        inside = jnp.clip(u, 6e-8, 1 - 6e-8)
        return self.mean + self.deviation * jax.scipy.special.ndtri(inside)

    def mode(self) -> Float[Array, "*batch dimension"]:
        """The most likely action."""
        return self.mean

    def given(self, action: Float[Array, "*batch dimension"]) -> Gaussian:
        """The policies themselves: agents act independently."""
        return self

    def log_prob(self, action: Float[Array, "*batch dimension"]) -> Float[Array, "*batch"]:
        """log p(a), summed over dimensions."""
        return self.total(jax.scipy.stats.norm.logpdf(action, self.mean, self.scale))

    def entropy(self) -> Float[Array, "*batch"]:
        """½ log(2πe σ²), in nats, summed over dimensions."""
        return self.total(0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(self.scale))

    def score(self, action: Float[Array, "*batch dimension"]) -> Float[Array, "*batch parameter"]:
        """∇ log p(a) with respect to every μ and every log σ."""
        # (a − μ) / σ²,   ((a − μ) / σ)² − 1
        z = (action - self.mean) / self.scale
        both = jnp.stack([z / self.scale, z**2 - 1], -2)
        both = jnp.where(self.deviation[..., None, :] > 0, both, 0.0)
        return both.reshape(*self.batch, -1)

    def divergence(self, other: Gaussian) -> Float[Array, "*batch"]:
        """KL(self ‖ other), in nats, summed over dimensions."""
        # log σ′/σ + (σ² + (μ − μ′)²) / 2σ′² − ½
        ratio = jnp.log(other.scale / self.scale)
        square = self.scale**2 + (self.mean - other.mean) ** 2
        return self.total(ratio + square / (2 * other.scale**2) - 0.5)

    @property
    def scale(self) -> Float[Array, "*batch dimension"]:
        """The standard deviation, or 1 in padded dimensions, as a divisor."""
        return jnp.where(self.deviation > 0, self.deviation, 1.0)

    def total(self, each: Float[Array, "*batch dimension"]) -> Float[Array, "*batch"]:
        """The sum over the dimensions that are not padding."""
        return jnp.where(self.deviation > 0, each, 0.0).sum(-1)


class Squashed(NamedTuple):
    """tanh of a Gaussian: continuous actions within (−1, 1)."""

    gaussian: Gaussian

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `[*batch, dimension]` of the actions."""
        return self.gaussian.shape

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape `*batch` of the distributions."""
        return self.gaussian.batch

    @property
    def choices(self) -> None:
        """Number of actions; none: they are continuous."""
        return None

    @property
    def moments(self) -> Float[Array, "*batch feature"]:
        """The mean of the actions' `features`, tanh u and tanh² u, by quadrature."""
        return jnp.concatenate(
            [self.average(jnp.tanh), self.average(lambda u: jnp.tanh(u) ** 2)], -1
        )

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch dimension"]:
        """One sample from every distribution, differentiable in its parameters."""
        return jnp.tanh(self.gaussian.sample(key))

    def quantile(self, u: Float[Array, "*batch dimension"]) -> Float[Array, "*batch dimension"]:
        """The actions at quantiles `u` in [0, 1), differentiable in the parameters."""
        return jnp.tanh(self.gaussian.quantile(u))

    def mode(self) -> Float[Array, "*batch dimension"]:
        """tanh μ, the median."""
        return jnp.tanh(self.gaussian.mean)

    def given(self, action: Float[Array, "*batch dimension"]) -> Squashed:
        """The policies themselves: agents act independently."""
        return self

    def log_prob(self, action: Float[Array, "*batch dimension"]) -> Float[Array, "*batch"]:
        """log p(a), summed over dimensions."""
        # log p(a) = log N(u; μ, σ) − log(1 − tanh² u),   u = atanh a
        u = self.inverse(action)
        return self.gaussian.log_prob(u) - self.gaussian.total(log_slope(u))

    def entropy(self) -> Float[Array, "*batch"]:
        """½ log(2πe σ²) + E log(1 − tanh² u), in nats, summed over dimensions; by quadrature."""
        return self.gaussian.entropy() + self.gaussian.total(self.average(log_slope))

    def score(self, action: Float[Array, "*batch dimension"]) -> Float[Array, "*batch parameter"]:
        """∇ log p(a) with respect to every μ and every log σ of the Gaussian."""
        return self.gaussian.score(self.inverse(action))

    def divergence(self, other: Squashed) -> Float[Array, "*batch"]:
        """KL(self ‖ other), in nats: equal to that of the Gaussians, as tanh is invertible."""
        return self.gaussian.divergence(other.gaussian)

    def inverse(self, action: Float[Array, "*batch dimension"]) -> Float[Array, "*batch dimension"]:
        """atanh of the actions, clipped a little inside ±1."""
        return jnp.arctanh(jnp.clip(action, -1 + 1e-6, 1 - 1e-6))

    def average(self, f: Callable[[Array], Array]) -> Float[Array, "*batch dimension"]:
        """E f(u) in every dimension, by Gauss-Hermite quadrature."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        spread = self.gaussian.deviation[..., None] * jnp.asarray(nodes, float).reshape(
            *(1 for _ in self.shape), NODES
        )
        return f(self.gaussian.mean[..., None] + spread) @ jnp.asarray(
            weights / weights.sum(), float
        )


def log_slope(u: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """log(1 − tanh² u), where |u| may be large."""
    return 2 * (jnp.log(2.0) - u - jax.nn.softplus(-2 * u))


Policy = Categorical | Gaussian | Squashed
"""The agents' distributions over actions, `[*batch, agent, ...]`."""


def encode(actions: Array, size: int) -> Float[Array, "*batch feature"]:
    """Actions as inputs of a network: discrete ones `[*batch]` one-hot among `size`, of continuous
    ones `[*batch, dimension]` the first `size` dimensions."""
    if jnp.issubdtype(actions.dtype, jnp.integer):
        return jax.nn.one_hot(actions, size)
    return actions[..., :size]


def features(actions: Array, size: int) -> Float[Array, "*batch feature"]:
    """Actions as inputs of a multilinear critic: discrete ones `[*batch]` one-hot among `size`,
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
