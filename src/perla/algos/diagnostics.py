"""Diagnostics of policy-embedded critics: spread, noise and error of the average over the other
agents' actions, and the variance of the policy gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perla.algos.alive import LossMask
from perla.algos.normalise import Scale, mean
from perla.algos.values import EmbeddedValue, Estimate, MarginalSchedule
from perla.distributions import Policy
from perla.flops import work
from perla.marginal.estimators import Enumeration, FixedEstimator, IndependentSamples
from perla.nets.critics import AnyCritic
from perla.types import Actions, Array, Float, Int, Metrics, PRNGKeyArray

STEPS = 2
"""Steps of each environment, in an update, that are inspected."""
AFFORDABLE = 256
"""Largest number of joint actions of the others for which the exact average is computed."""
OTHERS = IndependentSamples(31)
"""The estimator of the spread beyond that number."""


class States(NamedTuple):
    """Steps `[*batch]` of a rollout, with the critic's estimates at them."""

    context: Float[Array, "*batch agent width"]
    """The critic's hidden layer, which does not depend on the others' actions."""
    policy: Policy
    action: Actions
    estimated: Estimate
    returns: Float[Array, "*batch agent"]
    mask: LossMask


class Inspection(NamedTuple):
    """Statistics of a critic at some states `[*batch]`, in the critic's own units."""

    spread: Float[Array, "*batch agent"]
    """Variance of the critic over a₋ᵢ, at the own action taken."""
    noise: Float[Array, "*batch agent"] | None
    """Variance of the estimated average; none where it is not random."""
    error: Float[Array, "*batch agent"] | None
    """Squared error of the estimated average; none where it is exact, or too costly to know."""
    views: dict[str, Estimate]
    """`centralised`: the critic at the joint action taken. `perla`: its average by the method's
    estimator. `decentralised`: its exact average, where affordable."""


def diagnose(
    value: EmbeddedValue,
    critic: AnyCritic,
    states: States,
    critic_error: Float[Array, ""],
    scale: Scale,
    key: PRNGKeyArray,
    schedule: MarginalSchedule,
) -> tuple[Int[Array, ""], Metrics]:
    """The estimator's candidate for the next update, and metrics at a few steps of a rollout.

    `critic_error` is the critic's mean squared error over the rollout, in units of the rewards.
    """
    interval = -(-len(states.returns) // STEPS)
    states = jax.tree.map(lambda x: x[::interval], states)
    inspection = inspect(value, critic, states, key, schedule)
    metrics = report(inspection, states.mask, scale.deviation) | {
        "joint_actions": value.estimator.size(schedule.candidate),
        "average_flops": average_flops(value, critic, states, schedule),
    }
    for name, view in inspection.views.items():
        advantage = value.head.advantages(view, states.action, states.returns, scale)
        metrics[f"gradient_variance_{name}"] = gradient_variance(
            states.policy, states.action, advantage, states.mask
        )
    noise = inspection.noise
    if noise is not None:
        noise = scale.deviation**2 * mean(noise, states.mask)
    candidate = value.estimator.next_candidate(schedule.candidate, noise, critic_error)
    return candidate, metrics


def inspect(
    value: EmbeddedValue,
    critic: AnyCritic,
    states: States,
    key: PRNGKeyArray,
    schedule: MarginalSchedule,
) -> Inspection:
    """Statistics of the critic at these states."""
    context, policy, action, estimated, *_ = states
    key_draws, key_again = jax.random.split(key)
    select = partial(value.head.select, action=action)
    exact = affordable_enumeration(policy)

    draws = (exact or OTHERS).draw(policy, key_draws)
    each = jax.lax.map(lambda others: select(critic.joint(context, others)), draws.actions)
    average = (draws.weights * each).sum(0)
    spread = (draws.weights * (each - average[None]) ** 2).sum(0)
    if exact is None:
        spread = spread * len(each) / (len(each) - 1)

    views = {
        "centralised": value.head.estimate(policy, critic.joint(context, action)),
        "perla": estimated,
    }
    if value.estimator.exact:
        return Inspection(spread, None, None, views | {"decentralised": estimated})
    q, noise = select(estimated.action_values), None
    if value.estimator.random:
        # Var Q̂ = E (Q̂ − Q̂′)² / 2 for two independent estimates.
        again = value.estimate(critic, context, policy, key_again, schedule)
        noise = (q - select(again.action_values)) ** 2 / 2
    if exact is None:
        return Inspection(spread, noise, None, views)
    enumerated = replace(value, estimator=exact).estimate(critic, context, policy, key, schedule)
    error = (q - select(enumerated.action_values)) ** 2
    return Inspection(spread, noise, error, views | {"decentralised": enumerated})


def affordable_enumeration(policy: Policy) -> Enumeration | None:
    """The estimator that enumerates the others' joint actions, if they are few enough."""
    if policy.choices is None:
        return None
    enumeration = Enumeration(policy.batch[-1], policy.choices)
    return enumeration if enumeration.num_joint_actions <= AFFORDABLE else None


def gradient_variance(
    policy: Policy,
    action: Actions,
    advantage: Float[Array, "*batch agent"],
    mask: LossMask,
) -> Float[Array, ""]:
    """The variance of the policy gradient with respect to the policy's own parameters: its logits,
    or its means and logarithmic standard deviations."""
    # g = Aᵢ ∇ log πᵢ(aᵢ)                                                     (paper, Eq. 3, 4)
    gradient = advantage[..., None] * policy.score(action)
    parts = jnp.moveaxis(gradient, -1, 0)
    average = jnp.stack([mean(part, mask) for part in parts])
    # E ‖g − E g‖² = E ‖g‖² − ‖E g‖²
    return mean((gradient**2).sum(-1), mask) - (average**2).sum()


def average_flops(
    value: EmbeddedValue, critic: AnyCritic, states: States, schedule: MarginalSchedule
) -> Float[Array, ""]:
    """Floating-point operations of the average at one state for all agents."""
    context, policy = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[-2:], x.dtype), (states.context, states.policy)
    )
    critic = critic.gather_per_agent()

    def flops(estimator: FixedEstimator) -> float:
        estimate = partial(replace(value, estimator=estimator).estimate, critic)
        done = work(estimate, context, policy, jax.random.key(0))
        return done.flops + done.elements

    return value.estimator.measure(flops, schedule.candidate)


def report(inspection: Inspection, mask: LossMask, unit: float | Array) -> Metrics:
    """The inspection's metrics in units of the rewards, where `unit` is one of the critic's."""
    spread = mean(inspection.spread, mask)
    metrics = {"spread": unit * jnp.sqrt(spread)}
    if inspection.noise is not None:
        metrics["marginal_noise"] = unit * jnp.sqrt(mean(inspection.noise, mask))
    if inspection.error is not None:
        metrics["marginal_error"] = unit * jnp.sqrt(mean(inspection.error, mask))
    # The squared error is the variance of an estimate without bias, and of K independent samples
    # spread / K.
    squared_error = inspection.error if inspection.noise is None else inspection.noise
    if squared_error is not None:
        metrics["effective_samples"] = spread / (mean(squared_error, mask) + 1e-12)
    return metrics
