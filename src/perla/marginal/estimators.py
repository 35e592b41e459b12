"""E over a₋ᵢ: a joint-action critic averaged over the other agents' current policies.

    Q̃ᵢ(s, aᵢ) = E_{a₋ᵢ ~ π₋ᵢ} [Qᵢ(s, aᵢ, a₋ᵢ)]                              (paper, Eq. 1)
    Q̂ᵢ(s, aᵢ) = 1/K Σⱼ Qᵢ(s, aᵢ, a₋ᵢ⁽ʲ⁾),   a₋ᵢ⁽ʲ⁾ ~ π₋ᵢ                    (paper, Eq. 2)

An estimator turns the policies at a state into a set of weighted joint actions. One set serves
all agents, because agent i ignores its own entry:

    Q̂ᵢ(s, aᵢ) = Σⱼ wᵢⱼ Qᵢ(s, aᵢ, a₋ᵢ⁽ʲ⁾)

An aggregator may put something more hopeful in the place of the average.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.distributions import Categorical, Policy
from perla.methods.aggregators import Aggregator, Entropic, Max, Mean, UpperQuantile
from perla.methods.estimators import Exact, Sampled
from perla.types import Array, Float, Int, PRNGKeyArray

ENTRY = 8
"""Bytes that an agent's entry of a joint action takes, with its weight."""
SMALLEST_ETA = 1e-6
"""η below which an entropic average is, to single precision, the mean."""


class Draws(NamedTuple):
    """Weighted joint actions at each state, to be shared by all agents."""

    actions: Array
    """Discrete: `[sample, *batch_or_none, agent]`, without batch axes where they are the same at
    every state. Continuous: `[sample, *batch, agent, dimension]`."""
    weights: Float[Array, "sample *batch agent"]
    """wᵢⱼ: for each agent they sum to one (in expectation, where they are drawn)."""


# --- Drawing ------------------------------------------------------------------------------------


def draw(
    estimator: Sampled | Exact,
    policy: Policy,
    key: PRNGKeyArray,
    rows: Int[Array, " sample"] | None = None,
) -> Draws:
    """Weighted joint actions for the policies of every state: discrete `[*batch, agent, action]`
    or continuous `[*batch, agent, dimension]`, which have only the sampled ones.

    With `rows`, these of all the joint actions; one that is past their number weighs nothing.
    """
    total = joint_actions(estimator, policy)
    if isinstance(estimator, Exact):
        assert isinstance(policy, Categorical)
        table = jnp.asarray(zero_sum(*policy.log_probs.shape[-2:]))
        draws = enumerated(policy, table if rows is None else table.at[rows].get(mode="clip"))
    else:
        if estimator.sampler == "latin":
            u = latin_hypercube(key, (total, *policy.shape), rows)
        elif rows is None:
            u = jax.random.uniform(key, (total, *policy.shape))
        else:
            u = jax.random.uniform(jax.random.fold_in(key, rows[0]), (rows.size, *policy.shape))
        weights = jnp.full((len(u), *policy.batch), 1.0 / total)
        draws = Draws(jax.vmap(policy.quantile)(u), weights)
    if rows is None:
        return draws
    real = (rows < total).reshape(rows.size, *(1 for _ in draws.weights.shape[1:]))
    return draws._replace(weights=jnp.where(real, draws.weights, 0.0))


def joint_actions(estimator: Sampled | Exact, policy: Policy) -> int:
    """The joint actions of a state."""
    if isinstance(estimator, Exact):
        assert isinstance(policy, Categorical)
        *_, agents, actions = policy.log_probs.shape
        return actions ** (agents - 1)
    assert estimator.num_samples != "auto", "one of its rungs is drawn"
    return estimator.num_samples


def enumerated(policy: Categorical, table: Int[Array, "sample agent"]) -> Draws:
    """The joint actions of `table`, with the others' probabilities of them."""
    agents, actions = policy.log_probs.shape[-2:]
    # log π₋ᵢ(a₋ᵢ) = Σ_{m≠i} log πₘ(aₘ): summed without i, as the logarithm of a masked action
    # is so large that taking it away again would leave nothing.
    chosen = jax.nn.one_hot(table, actions)
    log_probs = jnp.einsum("jma,...ma->j...m", chosen, policy.log_probs)
    others = 1.0 - jnp.eye(agents)
    return Draws(table, jnp.exp(jnp.einsum("j...m,im->j...i", log_probs, others)))


def latin_hypercube(
    key: PRNGKeyArray, shape: tuple[int, ...], rows: Int[Array, " sample"] | None = None
) -> Float[Array, "sample *rest"]:
    """K points, each uniform on a unit cube, of which in every direction one lies in each of K
    equal intervals. `shape` is K and the cube's directions (and batch axes); with `rows`, these
    of the points (modulo K).

    Where K is prime, the intervals of a direction are gone through in steps of a random length from
    a random start, modulo K. Any two points are then in any two different intervals with the same
    probability, so that for the variance of an average it is as if the order were quite random;
    but it takes two random numbers for a direction, where a random order takes K and sorts them.
    """
    k, *rest = shape
    key_start, key_step = jax.random.split(key)
    start = jax.random.uniform(key_start, (1, *rest), maxval=k)
    rows = jnp.arange(k) if rows is None else rows % k
    if prime(k):
        step = jax.random.randint(key_step, (1, *rest), 1, k)
        order = rows.reshape(rows.size, *(1 for _ in rest)) * step % k
    else:
        order = jax.random.uniform(key_step, shape).argsort(0)[rows]
    u = (order + start) / k
    return u - jnp.floor(u)


def prime(n: int) -> bool:
    """Whether `n` is a prime number."""
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def zero_sum(agents: int, actions: int) -> Int[np.ndarray, "sample agent"]:
    """All joint actions whose sum is 0 modulo `actions`.

    Any N − 1 entries of such a joint action determine the last, so whichever agent's own entry
    is ignored, the rest runs through every joint action of the others exactly once: one set of
    |A|^(N−1) joint actions enumerates for all agents.
    """
    free = np.indices((actions,) * (agents - 1), dtype=np.int32)
    free = free.reshape(agents - 1, actions ** (agents - 1)).T
    last = -free.sum(-1, keepdims=True) % actions
    return np.concatenate([free, last.astype(np.int32)], -1)


# --- Combining ----------------------------------------------------------------------------------


def expectation(
    estimator: Sampled | Exact,
    f: Callable[[Array], Float[Array, "*batch agent out"]],
    policy: Policy,
    key: PRNGKeyArray,
    *,
    memory: float = math.inf,
) -> Float[Array, "*batch agent out"]:
    """The average of f over joint actions drawn from `policy`: part by part, where all at once
    would take more than `memory` MiB; with gradients through `estimator.gradient_samples` of them."""
    total = joint_actions(estimator, policy)
    through = (isinstance(estimator, Sampled) and estimator.gradient_samples) or total
    at_once = max(1, int(min(total, memory * 2**20 / (ENTRY * math.prod(policy.shape)))))
    if through == total <= at_once:
        return average(f, draw(estimator, policy, key))

    def between(first: int, last: int) -> Float[Array, "*batch agent out"]:
        parts = math.ceil((last - first) / at_once)
        size = math.ceil((last - first) / parts)

        @partial(jax.checkpoint, prevent_cse=False)
        def part(start: Int[Array, ""]):
            rows = start + jnp.arange(size)
            return average(f, draw(estimator, policy, key, jnp.where(rows < last, rows, total)))

        starts = first + size * jnp.arange(parts)
        zero = jnp.zeros(jax.eval_shape(part, starts[0]).shape)
        return jax.lax.scan(lambda sum, start: (sum + part(start), None), zero, starts)[0]

    if through == total:
        return between(0, total)
    # All give the value, the first the gradient; any of them stand for all.
    head, tail = between(0, through), between(through, total)
    return jax.lax.stop_gradient(head + tail) + total / through * (
        head - jax.lax.stop_gradient(head)
    )


def average(
    f: Callable[[Array], Float[Array, "*batch agent out"]], draws: Draws
) -> Float[Array, "*batch agent out"]:
    """Σⱼ wᵢⱼ f(a⁽ʲ⁾)ᵢ                                                        (paper, Eq. 2)

    One joint action after another, and again in the backward pass: memory holds one at a time.
    """

    @partial(jax.checkpoint, prevent_cse=False)
    def term(actions, weights):
        return weights[..., None] * f(actions)

    total, _ = jax.lax.scan(
        lambda total, one: (total + term(*one), None),
        jnp.zeros(jax.eval_shape(f, draws.actions[0]).shape),
        (draws.actions, draws.weights),
    )
    return total


def combine(
    aggregator: Aggregator,
    f: Callable[[Array], Float[Array, "*batch agent out"]],
    draws: Draws,
    hope: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*batch agent out"]:
    """What `aggregator` makes of f at all joint actions that were drawn.

    `hope` (1 to 0) is what is left of an annealed optimism. All but `Mean` hold the values at all
    joint actions at once.
    """
    if isinstance(aggregator, Mean):
        return average(f, draws)
    values = jax.lax.map(jax.checkpoint(f, prevent_cse=False), draws.actions)
    weights = draws.weights[..., None]
    match aggregator:
        case Entropic(eta=eta, anneal_eta=anneal):
            return entropic(values, weights, eta * hope if anneal else eta)
        case UpperQuantile(quantile=q):
            return quantile(values, weights, q)
        case Max():
            return jnp.where(weights > 0, values, -jnp.inf).max(0)


def entropic(
    values: Float[Array, "sample *rest"],
    weights: Float[Array, "sample *rest_or_one"],
    eta: float | Float[Array, ""],
) -> Float[Array, "*rest"]:
    """(1/η) log Σⱼ wⱼ exp(η qⱼ)"""
    eta = jnp.maximum(eta, SMALLEST_ETA)
    mean = (weights * values).sum(0)
    x = eta * (values - mean[None])  # About the mean, so that small η keep their digits.
    top = jax.lax.stop_gradient(jnp.where(weights > 0, x, -jnp.inf).max(0))
    small = jnp.log1p((weights * jnp.expm1(jnp.minimum(x, 1.0))).sum(0))
    large = top + jnp.log((weights * jnp.exp(jnp.minimum(x - top[None], 0.0))).sum(0))
    return mean + jnp.where(top < 1.0, small, large) / eta


def quantile(
    values: Float[Array, "sample *rest"], weights: Float[Array, "sample *rest_or_one"], q: float
) -> Float[Array, "*rest"]:
    """The smallest value that a share q of the weights does not exceed."""
    order = values.argsort(0)
    shares = jnp.take_along_axis(jnp.broadcast_to(weights, values.shape), order, 0).cumsum(0)
    # As all shares are sums of rounded numbers, what just misses q has reached it.
    first = (shares < q * shares[-1:] - 1e-6).sum(0, keepdims=True)
    return jnp.take_along_axis(jnp.take_along_axis(values, order, 0), first, 0)[0]
