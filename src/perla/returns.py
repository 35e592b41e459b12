"""Returns: from rewards and values to targets, for one agent of one copy.

All functions read, for each step t, the reward rₜ, the value v′ₜ of *what the transition led to*
and whether the episode ended there. Who bootstraps is settled before, in `successors`: v′ is zero
after a termination, the value of the final observation after a truncation, and else the value of
the next step. Beyond an end, and beyond the last step, no reward is counted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from perla.types import Array, Bool, Float


def successors(
    values: Float[Array, " states"],
    final_values: Float[Array, " time"],
    terminated: Bool[Array, " time"],
    truncated: Bool[Array, " time"],
) -> Float[Array, " time"]:
    """v′: the value of what each transition led to; `values` are of all states, one more than
    there are transitions."""
    return jnp.where(terminated, 0.0, jnp.where(truncated, final_values, values[1:]))


def n_step(
    rewards: Float[Array, " time"],
    next_values: Float[Array, " time"],
    ended: Bool[Array, " time"],
    *,
    gamma: float,
    n: int,
) -> Float[Array, " time"]:
    """G⁽ⁿ⁾ₜ = Σ_{k<n} γᵏ rₜ₊ₖ + γⁿ V(sₜ₊ₙ), by G⁽¹⁾ₜ = rₜ + γ v′ₜ and G⁽ⁿ⁾ₜ = rₜ + γ G⁽ⁿ⁻¹⁾ₜ₊₁."""
    stop = ended.at[-1].set(True)
    one_step = rewards + gamma * next_values

    def extend(_, shorter):
        return jnp.where(stop, one_step, rewards + gamma * jnp.roll(shorter, -1))

    return jax.lax.fori_loop(1, n, extend, one_step)


def lambda_returns(
    rewards: Float[Array, " time"],
    next_values: Float[Array, " time"],
    ended: Bool[Array, " time"],
    *,
    gamma: float,
    lam: float,
) -> Float[Array, " time"]:
    """Gₜ = rₜ + γ ((1 − λ) v′ₜ + λ Gₜ₊₁); less the value it is the advantage estimate GAE(λ)."""
    stop = ended.at[-1].set(True)

    def step(following, inputs):
        reward, next_value, stop = inputs
        following = jnp.where(stop, next_value, following)
        current = reward + gamma * ((1 - lam) * next_value + lam * following)
        return current, current

    return jax.lax.scan(
        step, jnp.zeros_like(rewards[0]), (rewards, next_values, stop), reverse=True
    )[1]
