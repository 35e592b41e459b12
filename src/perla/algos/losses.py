"""Losses of actor-critics, which make several passes over a batch."""

from __future__ import annotations

import jax.numpy as jnp

from perla.algos.batch import Batch
from perla.algos.descent import residual
from perla.algos.normalise import Scale, mean, variance
from perla.distributions import Policy
from perla.methods.parts import Huber, Squared
from perla.types import Array, Float, Metrics


def value_loss(
    predicted: Float[Array, "time env agent"],
    part: Batch,
    scale: Scale,
    *,
    loss: Squared | Huber,
    clip_eps: float | None,
) -> Float[Array, ""]:
    """The mean loss of the values `predicted` now, in the critic's units, on the batch's targets.

    With `clip_eps` a value further than that from the prediction before the update gains nothing.
    """
    target = scale.standardise(part.target)
    error = residual(loss, predicted - target)
    if clip_eps is not None:
        # max(ℓ(V − G), ℓ(V₀ + clip(V − V₀, −ε, ε) − G)), with V₀ before the update
        change = jnp.clip(predicted - part.prediction, -clip_eps, clip_eps)
        error = jnp.maximum(error, residual(loss, part.prediction + change - target))
    return mean(error, part.loss_mask)


def policy_loss(
    policy: Policy,
    part: Batch,
    advantage: Float[Array, "time env agent"],
    entropy_weight: Float[Array, ""],
    *,
    clip_eps: float | None,
    normalize_advantages: bool,
) -> tuple[Float[Array, ""], Metrics]:
    """The surrogate of the policy gradient, less the entropy bonus, where `policy` is the current
    policy of every agent and the batch's the one that acted; and metrics.

    Without `clip_eps` the surrogate is that of the plain policy gradient (A2C).
    """
    mask = part.loss_mask
    if normalize_advantages:
        centred = advantage - mean(advantage, mask)
        advantage = centred / (jnp.sqrt(variance(advantage, mask)) + 1e-8)
    log_ratio = policy.log_prob(part.action) - part.policy.log_prob(part.action)
    ratio = jnp.exp(log_ratio)
    if clip_eps is None:
        surrogate = policy.log_prob(part.action) * advantage
        outside = jnp.zeros_like(ratio)
    else:
        # min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)                          (Schulman et al., 2017, Eq. 7)
        clipped = jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
        surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
        outside = (clipped != ratio).astype(float)
    if part.weight is not None:
        # M min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)                               (Kuba et al., 2022)
        surrogate = part.weight * surrogate
    entropy = mean(policy.entropy(), mask)
    metrics = {
        "entropy": entropy,
        # KL(π₀ ‖ π) ≈ E [ρ − 1 − log ρ]
        "kl": mean(ratio - 1 - log_ratio, mask),
        "clip_fraction": mean(outside, mask),
    }
    return -mean(surrogate, mask) - entropy_weight * entropy, metrics


def value_metrics(prediction: Float[Array, "time env agent"], part: Batch, scale: Scale) -> Metrics:
    """The error of a critic's `prediction` on the batch's targets, in units of the rewards."""
    mask, error = part.loss_mask, part.target - scale.restore(prediction)
    unexplained = variance(error, mask) / (variance(part.target, mask) + 1e-8)
    return {
        "td_error": jnp.sqrt(mean(error**2, mask)),
        "explained_variance": 1.0 - unexplained,
    }
