"""E over a₋ᵢ: a joint-action critic averaged over the other agents' current policies.

    Q̃ᵢ(s, aᵢ) = E_{a₋ᵢ ~ π₋ᵢ} [Qᵢ(s, aᵢ, a₋ᵢ)]                              (paper, Eq. 1)
    Q̂ᵢ(s, aᵢ) = 1/K Σⱼ Qᵢ(s, aᵢ, a₋ᵢ⁽ʲ⁾),   a₋ᵢ⁽ʲ⁾ ~ π₋ᵢ                    (paper, Eq. 2)

An estimator turns the policies at a state into a set of weighted joint actions. One set serves
all agents, because agent i ignores its own entry:

    Q̂ᵢ(s, aᵢ) = Σⱼ wᵢⱼ Qᵢ(s, aᵢ, a₋ᵢ⁽ʲ⁾)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.distributions import Categorical, inverse_cdf
from perla.methods.estimators import Exact, Sampled, Stratified
from perla.types import Array, Float, Int, PRNGKeyArray


class Draws(NamedTuple):
    """Weighted joint actions at each state, to be shared by all agents."""

    actions: Int[Array, "*batch_or_none sample agent"]
    """Without batch axes where they are the same at every state."""
    weights: Float[Array, "*batch sample agent"]
    """wᵢⱼ: for each agent they sum to one (in expectation, where they are drawn)."""


def draw(estimator: Sampled | Stratified | Exact, policy: Categorical, key: PRNGKeyArray) -> Draws:
    """Weighted joint actions for the policies `[*batch, agent, action]` of every state."""
    *batch, agents, actions = policy.log_probs.shape
    if isinstance(estimator, Sampled | Stratified):
        if isinstance(estimator, Sampled):
            u = jax.random.uniform(key, (*batch, estimator.k, agents))
        else:
            u = latin_hypercube(key, (*batch, estimator.strata, agents))
        each = jax.vmap(partial(inverse_cdf, policy.probs), in_axes=-2, out_axes=-2)
        return Draws(each(u), jnp.full(u.shape, 1.0 / u.shape[-2]))
    table = jnp.asarray(zero_sum(agents, actions))
    # log π₋ᵢ(a₋ᵢ) = Σ_{m≠i} log πₘ(aₘ): summed without i, as the logarithm of a masked action
    # is so large that taking it away again would leave nothing.
    chosen = jax.nn.one_hot(table, actions)
    log_probs = jnp.einsum("jma,...ma->...jm", chosen, policy.log_probs)
    others = 1.0 - jnp.eye(agents)
    return Draws(table, jnp.exp(jnp.einsum("...jm,im->...ji", log_probs, others)))


def latin_hypercube(
    key: PRNGKeyArray, shape: tuple[int, ...]
) -> Float[Array, "*batch sample agent"]:
    """Points that are each uniform on [0, 1)ᴺ, and of which in every direction one lies in each of
    K equal intervals.

    The intervals of an agent are gone through in steps of a random length from a random start,
    modulo K. As K is prime, any two draws are in any two different intervals with the same
    probability, so that for the variance of an average it is as if the order were quite random;
    but it takes two random numbers for an agent where K independent draws take K.
    """
    *batch, k, agents = shape
    key_start, key_step = jax.random.split(key)
    start = jax.random.uniform(key_start, (*batch, 1, agents), maxval=k)
    step = jax.random.randint(key_step, (*batch, 1, agents), 1, k)
    j = jnp.arange(k).reshape((1,) * len(batch) + (k, 1))
    u = (j * step % k + start) / k
    return u - jnp.floor(u)


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


def average(
    f: Callable[[Int[Array, "*batch_or_none agent"]], Float[Array, "*batch agent out"]],
    draws: Draws,
) -> Float[Array, "*batch agent out"]:
    """Σⱼ wᵢⱼ f(a⁽ʲ⁾)ᵢ                                                        (paper, Eq. 2)

    One joint action after another, and again in the backward pass: memory holds one at a time.
    """
    actions = jnp.moveaxis(draws.actions, -2, 0)
    weights = jnp.moveaxis(draws.weights, -2, 0)[..., None]

    @partial(jax.checkpoint, prevent_cse=False)
    def term(actions, weights):
        return weights * f(actions)

    total, _ = jax.lax.scan(
        lambda total, one: (total + term(*one), None),
        jnp.zeros(jax.eval_shape(f, actions[0]).shape),
        (actions, weights),
    )
    return total
