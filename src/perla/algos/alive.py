"""Agents that no longer take part: which of their steps count, and what comes after them."""

from __future__ import annotations

import jax.numpy as jnp

from perla.envs.protocol import Observation
from perla.types import Array, Bool, Float

LossMask = Bool[Array, "*batch"] | Bool[Array, "*batch agent"]
"""The steps that are learnt from: of all agents alike, or of each."""


def loss_mask(valid: Bool[Array, "*batch"], observation: Observation) -> LossMask:
    """The valid steps at which agents take part."""
    alive = observation.alive
    return valid if alive is None else valid[..., None] & alive


def mask_dead_agents(
    values: Float[Array, "*batch agent"], observation: Observation, *, common: bool
) -> Float[Array, "*batch agent"]:
    """`values` of states to every agent, where no critic has learnt what a state is worth to those
    that no longer take part: what it is to the others, on average, where all earn the same, or else
    nothing."""
    alive = observation.alive
    if alive is None:
        return values
    others = jnp.zeros_like(values)
    if common:
        total = jnp.where(alive, values, 0.0).sum(-1, keepdims=True)
        others = others + total / jnp.maximum(alive.sum(-1, keepdims=True), 1)
    return jnp.where(alive, values, others)
