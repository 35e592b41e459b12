"""What the average over the others' actions is like, and what it does to the policy gradient."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perla.algos.alive import LossMask
from perla.algos.normalise import mean
from perla.algos.values import Estimate, MarginalSchedule, estimate, resolved, taken, worth
from perla.distributions import Policy
from perla.flops import work
from perla.marginal.estimators import draw, joint_actions
from perla.methods.estimators import CANDIDATES, Analytic, Exact, Sampled, candidates
from perla.methods.values import Embedded
from perla.nets.critics import AnyCritic
from perla.types import Actions, Array, Float, Int, Metrics, PRNGKeyArray

AFFORDABLE = 256
"""Joint actions of the others up to which the exact average is taken beside the estimate."""
OTHERS = Sampled(num_samples=31)
"""From what the spread is taken where that is too many."""


class Look(NamedTuple):
    """A learner's critic at some states `[*batch]`, in the critic's own units."""

    spread: Float[Array, "*batch agent"]
    """Variance of the critic over a₋ᵢ, at the own action taken."""
    noise: Float[Array, "*batch agent"] | None
    """Variance of the estimate of its average; none where it is exact."""
    error: Float[Array, "*batch agent"] | None
    """Squared error of that estimate; none where it is exact, or unaffordable to know."""
    views: dict[str, Estimate]
    """`centralised`: the critic at the joint action taken. `perla`: averaged as the method does.
    `decentralised`: averaged exactly, where that is affordable."""


def look(
    value: Embedded,
    critic: AnyCritic,
    context: Float[Array, "*batch agent width"],
    policy: Policy,
    action: Actions,
    estimated: Estimate,
    key: PRNGKeyArray,
    marginal: MarginalSchedule,
) -> Look:
    """Look at the critic of which `estimated` is the estimate at these states."""
    key_draws, key_again = jax.random.split(key)
    affordable = policy.choices is not None and joint_actions(Exact(), policy) <= AFFORDABLE
    at = partial(taken, value, action=action)

    draws = draw(Exact() if affordable else OTHERS, policy, key_draws)
    each = jax.lax.map(lambda others: at(critic.joint(context, others)), draws.actions)
    average = (draws.weights * each).sum(0)
    spread = (draws.weights * (each - average[None]) ** 2).sum(0)
    if not affordable:
        spread = spread * len(each) / (len(each) - 1)

    views = {
        "centralised": worth(value, policy, critic.joint(context, action)),
        "perla": estimated,
    }
    if isinstance(resolved(value, policy), Exact | Analytic):
        return Look(spread, None, None, views | {"decentralised": estimated})
    found = at(estimated.action_values)
    # Half the squared difference of two independent estimates is their variance, on average.
    again = estimate(value, critic, context, policy, key_again, marginal)
    noise = (found - at(again.action_values)) ** 2 / 2
    if not affordable:
        return Look(spread, noise, None, views)
    value = value.replace(estimator=Exact())
    exact = estimate(value, critic, context, policy, key, marginal)
    error = (found - at(exact.action_values)) ** 2
    return Look(spread, noise, error, views | {"decentralised": exact})


def gradient_variance(
    policy: Policy,
    action: Actions,
    advantage: Float[Array, "*batch agent"],
    valid: LossMask,
) -> Float[Array, ""]:
    """E ‖g − E g‖² of g = Aᵢ ∇ log πᵢ(aᵢ), with respect to what a policy has for parameters: its
    logits, or its means and logarithmic deviations                            (paper, Eq. 3, 4)"""
    gradient = advantage[..., None] * policy.score(action)
    parts = jnp.moveaxis(gradient, -1, 0)
    average = jnp.stack([mean(part, valid) for part in parts])
    return mean((gradient**2).sum(-1), valid) - (average**2).sum()


def size(value: Embedded, policy: Policy, marginal: MarginalSchedule) -> Array:
    """The joint actions at which the critic is evaluated at each state; none in closed form."""
    estimator = resolved(value, policy)
    if isinstance(estimator, Analytic):
        return jnp.float32(0)
    counts = [joint_actions(candidate, policy) for candidate in candidates(estimator)]
    return jnp.asarray(counts, jnp.float32)[marginal.candidate]


def candidate(
    noise: Float[Array, ""], samples: Float[Array, ""], allowed: Float[Array, ""]
) -> Int[Array, ""]:
    """The first place on the ladder where the average's variance is `allowed`, or the last: at
    `samples` joint actions it is `noise`, and it falls as one over them."""
    needed = noise * samples / (allowed + 1e-12)
    found = (jnp.asarray(CANDIDATES, float) < needed).sum()
    return jnp.minimum(found, len(CANDIDATES) - 1)


def cost(
    value: Embedded,
    critic: AnyCritic,
    context: Float[Array, "*batch agent width"],
    policy: Policy,
    marginal: MarginalSchedule,
) -> Array:
    """Floating-point operations of the average at one state for all agents."""
    one_context, one_policy = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[-2:], x.dtype), (context, policy)
    )
    costs, critic = [], critic.gather_per_agent()
    estimator = resolved(value, policy)
    rungs = (estimator,) if isinstance(estimator, Analytic) else candidates(estimator)
    for candidate in rungs:
        average = partial(estimate, value.replace(estimator=candidate), critic)
        done = work(average, one_context, one_policy, jax.random.key(0))
        costs.append(done.flops + done.elements)
    return jnp.asarray(costs, jnp.float32)[marginal.candidate]


def report(found: Look, valid: LossMask, unit: float | Array) -> Metrics:
    """`found` in the rewards' units, of which one of the critic's is `unit`."""
    spread = mean(found.spread, valid)
    metrics = {"spread": unit * jnp.sqrt(spread)}
    if found.noise is not None:
        metrics["marginal_noise"] = unit * jnp.sqrt(mean(found.noise, valid))
        # As many independent draws would be as near to the average.
        metrics["effective_samples"] = spread / (mean(found.noise, valid) + 1e-12)
    if found.error is not None:
        metrics["marginal_error"] = unit * jnp.sqrt(mean(found.error, valid))
    return metrics
