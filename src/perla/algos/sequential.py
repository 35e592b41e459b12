"""HAPPO's sequential policy updates (Kuba et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from perla.algos.batch import Batch
from perla.nets.actors import Actor
from perla.types import Array, Float, Int, Metrics

Policies = tuple[Actor, optax.OptState]
"""An actor and its optimiser's state."""


def update_in_turn(
    policies: Policies,
    batch: Batch,
    order: Int[Array, " agent"],
    improve: Callable[[Policies, Batch, Int[Array, ""]], tuple[Policies, Metrics]],
) -> tuple[Policies, Metrics]:
    """The policies after one agent's update follows another's, in this order.

    `improve(policy, batch, agent)` updates one agent's policy by its batch, whose `weight` is the
    probability ratio of the agents updated before it. The optimiser's state has a leading agent
    axis; the metrics get one for the turns.
    """
    actor, optimiser = policies

    def turn(carry: tuple[Policies, Float[Array, "time env 1"]], agent: Int[Array, ""]):
        all_agents, weight = carry
        data = batch.of(agent)._replace(weight=weight)
        updated, metrics = improve(jax.tree.map(lambda x: x[agent], all_agents), data, agent)
        policy, _ = updated[0].unroll(data.observation, data.hidden_state[0], data.is_first)
        # M ← M π′ᵢ(aᵢ) / πᵢ(aᵢ)                                           (Kuba et al., 2022)
        log_ratio = policy.log_prob(data.action) - data.policy.log_prob(data.action)
        all_agents = jax.tree.map(lambda all, one: all.at[agent].set(one), all_agents, updated)
        return (all_agents, weight * jnp.exp(log_ratio)), metrics

    start = (actor.unstack(), optimiser), jnp.ones((*batch.is_first.shape, 1))
    ((actors, optimiser), _), metrics = jax.lax.scan(turn, start, order)
    return (actor.stack(actors), optimiser), metrics
