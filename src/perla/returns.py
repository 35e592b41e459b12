"""Returns of one agent in one environment: n-step returns and λ-returns.

All functions take, for each step t, the reward rₜ, the value v′ₜ of the successor state, and a flag
that the episode ended there. `successors` bootstraps: v′ is zero after a termination, the value of
the final observation after a truncation, and else the value of the next step. No reward after an
episode's end, or after the last step, enters a return.
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
    """v′, the values of the successor states; `values` are of all states, one more than there are
    transitions."""
    return jnp.where(terminated, 0.0, jnp.where(truncated, final_values, values[1:]))


def n_step(
    rewards: Float[Array, " time"],
    next_values: Float[Array, " time"],
    ended: Bool[Array, " time"],
    *,
    gamma: float,
    n: int,
) -> Float[Array, " time"]:
    """n-step returns: G⁽ⁿ⁾ₜ = Σ_{k<n} γᵏ rₜ₊ₖ + γⁿ V(sₜ₊ₙ)."""
    stop = ended.at[-1].set(True)
    # G⁽¹⁾ₜ = rₜ + γ v′ₜ
    one_step = rewards + gamma * next_values

    def extend(_, shorter):
        # G⁽ⁿ⁾ₜ = rₜ + γ G⁽ⁿ⁻¹⁾ₜ₊₁
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
    """λ-returns; less the value they are the advantage estimates GAE(λ) (Schulman et al., 2016)."""
    stop = ended.at[-1].set(True)

    def step(following, inputs):
        reward, next_value, stop = inputs
        following = jnp.where(stop, next_value, following)
        # Gₜ = rₜ + γ ((1 − λ) v′ₜ + λ Gₜ₊₁)
        current = reward + gamma * ((1 - lam) * next_value + lam * following)
        return current, current

    return jax.lax.scan(
        step, jnp.zeros_like(rewards[0]), (rewards, next_values, stop), reverse=True
    )[1]
