"""Gradient descent: losses of errors, optimisers, and target networks."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from perla.methods.parts import Adam, Hard, Huber, RAdam, RMSProp, Soft, Squared
from perla.types import Array, Float, Int

Tree = TypeVar("Tree")


def residual(loss: Squared | Huber, error: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The squared or Huber loss of each error."""
    match loss:
        case Huber(huber_delta=delta):
            return optax.losses.huber_loss(error, delta=delta)
        case _:
            return error**2


def create_optimiser(
    kind: Adam | RAdam | RMSProp, rate: float, max_grad_norm: float | None
) -> optax.GradientTransformation:
    """Adam, RAdam or RMSProp, after clipping by the global norm."""
    match kind:
        case Adam(eps=eps):
            optimiser = optax.adam(rate, eps=eps)
        case RAdam(radam_eps=eps):
            optimiser = optax.radam(rate, eps=eps)
        case RMSProp(decay=decay, momentum=momentum, rms_eps=eps):
            optimiser = optax.rmsprop(rate, decay=decay, eps=eps, momentum=momentum or None)
    if max_grad_norm is None:
        return optimiser
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optimiser)


def apply_gradients(optimiser, gradient, state, parameters, rate=1.0):
    """One step of `optimiser`, scaled by `rate`: the new parameters and its new state."""
    steps, state = optimiser.update(gradient, state, parameters)
    return jax.tree.map(lambda p, step: p + rate * step, parameters, steps), state


def update_target(
    kind: Soft | Hard | None, newest: Tree, target: Tree, updates: Int[Array, ""]
) -> Tree:
    """The target network after the update number `updates`, which resulted in `newest`."""
    match kind:
        case Soft(target_update_tau=tau):
            # θ⁻ ← θ⁻ + max(τ, 1/n) (θ − θ⁻): the plain average of the first 1/τ networks, then a
            # moving average, so the random initial network is forgotten at once.
            share = jnp.maximum(tau, 1.0 / updates)
            return optax.incremental_update(newest, target, share)
        case Hard(target_update_interval=interval):
            due = updates % interval == 0
            return jax.tree.map(lambda new, old: jnp.where(due, new, old), newest, target)
        case _:
            return newest
