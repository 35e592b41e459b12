"""Going down a gradient: errors, optimisers, and targets that follow what is learnt."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from perla.methods.parts import Adam, Hard, Huber, RMSProp, Soft, Squared
from perla.types import Array, Float, Int

Tree = TypeVar("Tree")


def residual(loss: Squared | Huber, error: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Squared or Huber loss of each error."""
    match loss:
        case Huber(huber_delta=delta):
            return optax.losses.huber_loss(error, delta=delta)
        case _:
            return error**2


def create_optimiser(
    kind: Adam | RMSProp, rate: float, max_grad_norm: float | None
) -> optax.GradientTransformation:
    """Clipping by the global norm, then Adam or RMSProp."""
    match kind:
        case Adam(eps=eps):
            optimiser = optax.adam(rate, eps=eps)
        case RMSProp(decay=decay, momentum=momentum, rms_eps=eps):
            optimiser = optax.rmsprop(rate, decay=decay, eps=eps, momentum=momentum or None)
    if max_grad_norm is None:
        return optimiser
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optimiser)


def apply_gradients(optimiser, gradient, state, parameters, rate=1.0):
    """`rate` times one step of `optimiser`: the new parameters and its new state."""
    steps, state = optimiser.update(gradient, state, parameters)
    return jax.tree.map(lambda p, step: p + rate * step, parameters, steps), state


def update_target(
    kind: Soft | Hard | None, newest: Tree, target: Tree, updates: Int[Array, ""]
) -> Tree:
    """The target after as many `updates`, of which `newest` is the outcome."""
    match kind:
        case Soft(target_update_tau=tau):
            # The plain average of all so far until there are 1/τ of them, then a moving one: so
            # the first, random one is forgotten at once, as by Adam's correction.
            share = jnp.maximum(tau, 1.0 / updates)
            return optax.incremental_update(newest, target, share)
        case Hard(target_update_interval=every):
            due = updates % every == 0
            return jax.tree.map(lambda new, old: jnp.where(due, new, old), newest, target)
        case _:
            return newest
