"""Dead agents: their steps are masked out of the losses, and their values are replaced."""

from __future__ import annotations

import jax.numpy as jnp

from perla.envs.protocol import Observation
from perla.types import Array, Bool, Float

LossMask = Bool[Array, "*batch"] | Bool[Array, "*batch agent"]
"""The steps that enter the losses: of all agents alike, or of each."""


def loss_mask(valid: Bool[Array, "*batch"], observation: Observation) -> LossMask:
    """The valid steps, of living agents where some may be dead."""
    alive = observation.alive
    return valid if alive is None else valid[..., None] & alive


def mask_dead_agents(
    values: Float[Array, "*batch agent"], observation: Observation, *, common: bool
) -> Float[Array, "*batch agent"]:
    """Values of states, in which dead agents receive the mean value of the living ones (common
    reward), or zero."""
    alive = observation.alive
    if alive is None:
        return values
    others = jnp.zeros_like(values)
    if common:
        total = jnp.where(alive, values, 0.0).sum(-1, keepdims=True)
        others = others + total / jnp.maximum(alive.sum(-1, keepdims=True), 1)
    return jnp.where(alive, values, others)
