"""Weighted joint actions: enumerated, or drawn by Latin hypercube sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.distributions import Categorical
from perla.types import Array, Float, Int, PRNGKeyArray


class Draws(NamedTuple):
    """Weighted joint actions at each state, shared by all agents."""

    actions: Array
    """Discrete: `[sample, *batch_or_none, agent]`, without batch axes where they are the same at
    every state. Continuous: `[sample, *batch, agent, dimension]`."""
    weights: Float[Array, "sample *batch agent"]
    """wᵢⱼ: they sum to one for each agent (in expectation, where they are drawn)."""


def average(
    f: Callable[[Array], Float[Array, "*batch agent out"]], draws: Draws
) -> Float[Array, "*batch agent out"]:
    """The weighted average of f over joint actions.

    A scan evaluates one joint action after another, and recomputes each in the backward pass, so
    memory holds one at a time.
    """

    # Q̂ᵢ = Σⱼ wᵢⱼ f(a⁽ʲ⁾)ᵢ                                                   (paper, Eq. 2)
    @partial(jax.checkpoint, prevent_cse=False)
    def term(actions, weights):
        return weights[..., None] * f(actions)

    total, _ = jax.lax.scan(
        lambda total, one: (total + term(*one), None),
        jnp.zeros(jax.eval_shape(f, draws.actions[0]).shape),
        (draws.actions, draws.weights),
    )
    return total


def enumerated(policy: Categorical, table: Int[Array, "sample agent"]) -> Draws:
    """The joint actions of `table`, weighted by the other agents' probabilities of them."""
    agents, actions = policy.log_probs.shape[-2:]
    # log π₋ᵢ(a₋ᵢ) = Σ_{m≠i} log πₘ(aₘ): summed without i, because the log-probability of a masked
    # action is so large that subtracting it from the full sum would lose all digits.
    one_hot = jax.nn.one_hot(table, actions)
    log_probs = jnp.einsum("jma,...ma->j...m", one_hot, policy.log_probs)
    others = 1.0 - jnp.eye(agents)
    return Draws(table, jnp.exp(jnp.einsum("j...m,im->j...i", log_probs, others)))


def zero_sum(agents: int, actions: int) -> Int[np.ndarray, "sample agent"]:
    """All joint actions whose sum is 0 modulo `actions`.

    Any N − 1 entries of such a joint action determine the last one. So if agent i's own entry is
    ignored, the rest enumerates every joint action of the others exactly once, for every i: one
    set of |A|^(N−1) joint actions serves all agents.
    """
    free = np.indices((actions,) * (agents - 1), dtype=np.int32)
    free = free.reshape(agents - 1, actions ** (agents - 1)).T
    last = -free.sum(-1, keepdims=True) % actions
    return np.concatenate([free, last.astype(np.int32)], -1)


def latin_hypercube(
    key: PRNGKeyArray, shape: tuple[int, ...], rows: Int[Array, " sample"] | None = None
) -> Float[Array, "sample *rest"]:
    """K points, each uniform on the unit cube, with one point in each of K equal intervals of
    every dimension (McKay, Beckman and Conover, 1979). `shape` is K, then the cube's dimensions
    and batch axes; `rows` selects points by their index modulo K.

    For a prime K, the intervals of a dimension are visited in steps of a random length from a
    random start, modulo K. Any two points then fall into any two different intervals with equal
    probability, so the variance of an average is that of a random permutation; but it takes two
    random numbers for a dimension, where a permutation draws K and sorts them.
    """
    k, *rest = shape
    key_start, key_step = jax.random.split(key)
    start = jax.random.uniform(key_start, (1, *rest), maxval=k)
    rows = jnp.arange(k) if rows is None else rows % k
    if is_prime(k):
        step = jax.random.randint(key_step, (1, *rest), 1, k)
        order = rows.reshape(rows.size, *(1 for _ in rest)) * step % k
    else:
        order = jax.random.uniform(key_step, shape).argsort(0)[rows]
    u = (order + start) / k
    return u - jnp.floor(u)


def is_prime(n: int) -> bool:
    """True if `n` is a prime number."""
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))
