"""Branches: continuations from visited states, which share some random events and not others.

From every visit there are `OWN` actions of the agent, and `OTHERS` joint actions of the other
agents; each pair of them is played with `OUTCOMES` outcomes of the environment's step, and each
outcome is continued `CONTINUATIONS` times to the episode's end. Outcomes and continuations of the
same number have the same random keys at all pairs of actions, so that differences between actions
have little noise; those of different numbers are independent.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perla.envs.protocol import Env, Observation, TimeStep
from perla.types import Actions, Array, Bool, Float, Int, Key, PRNGKeyArray
from perla.variance.critic import FixedLearner
from perla.variance.states import Visits

OWN, OTHERS, OUTCOMES, CONTINUATIONS = 3, 2, 2, 2
"""Branches of each kind: the fewest for which every estimator of `components` is unbiased."""
LEAVES = OWN * OTHERS * OUTCOMES * CONTINUATIONS
"""Continuations of each visit."""


class Branches(NamedTuple):
    """The returns of one agent over the continuations of each visit, in the learner's units."""

    returns: Float[Array, "visit own others outcome continuation lam"]
    """λ-returns up to the rollout's end, as training computes them."""
    undisturbed: Float[Array, "visit own others outcome continuation"]
    """Returns with λ = 1 up to the episode's end."""
    score: Float[Array, "visit own parameter"]
    """∇ log π of the agent's own actions with respect to the policy's own parameters."""
    same_own: Bool[Array, "visit own own"]
    """Own actions that are equal."""
    same_others: Bool[Array, "visit others others"]
    """Joint actions of the others that are equal."""
    same_outcome: Bool[Array, "visit own others outcome outcome"]
    """Outcomes of the environment's step that are equal."""


class Leaf(NamedTuple):
    """A continuation that is being played. Returns have an entry for each λ, and a last one for the
    undisturbed return."""

    state: Any
    observation: Observation
    hidden_state: Float[Array, "agent hidden"]
    critic_hidden_state: Float[Array, "agent hidden"]
    agent: Int[Array, ""]
    left: Int[Array, ""]
    """Steps to the end of the rollout."""
    terminated: Bool[Array, ""]
    ended: Bool[Array, ""]
    """The episode has ended."""
    total: Float[Array, " return"]
    """The returns so far."""
    factor: Float[Array, " return"]
    """(γλ)ᵏ after k steps."""
    open: Bool[Array, " return"]
    """Returns that are not complete."""
    key: PRNGKeyArray


def branch(
    env: Env,
    fixed: FixedLearner,
    visits: Visits,
    keys: Key[Array, " visit"],
    lambdas: Float[Array, " lam"],
) -> Branches:
    """The returns of all continuations of these visits, each with a key."""
    lam = jnp.append(lambdas, 1.0)
    begun = jax.vmap(partial(_begin, env, fixed, lam))(visits, keys)
    leaves, score, same_own, same_others, same_outcome = begun
    shape = leaves.left.shape
    count = math.prod(shape)
    leaves = jax.tree.map(lambda x: x.reshape(count, *x.shape[len(shape) :]), leaves)
    step = jax.vmap(partial(_step, env, fixed, lam))
    leaves = jax.lax.while_loop(lambda leaves: leaves.open.any(), step, leaves)
    returns = leaves.total.reshape(*shape, -1)
    return Branches(returns[..., :-1], returns[..., -1], score, same_own, same_others, same_outcome)


def _begin(
    env: Env, fixed: FixedLearner, lam: Float[Array, " return"], visit: Visits, key: PRNGKeyArray
) -> tuple[Leaf, Array, Array, Array, Array]:
    """The first step of all continuations `[own, others, outcome, continuation]` of one visit; the
    own actions' scores; and the own actions, joint actions and outcomes that are equal."""
    key_own, key_others, key_outcome, key_continue = jax.random.split(key, 4)
    policy, hidden_state = fixed.actor(visit.observation, visit.hidden_state, visit.is_first)
    own = jax.vmap(policy.sample)(jax.random.split(key_own, OWN))
    others = jax.vmap(policy.sample)(jax.random.split(key_others, OTHERS))
    me = jnp.arange(env.spec.agents) == visit.agent
    me = me.reshape(-1, *(1 for _ in own.shape[2:]))

    def outcome(own: Actions, others: Actions, key: PRNGKeyArray) -> tuple[Any, TimeStep]:
        action = jnp.where(me, own, others)
        return env.step(key, visit.state, env.spec.bounded(action))

    def leaf(own: Actions, others: Actions, reached: Any, key: PRNGKeyArray) -> Leaf:
        state, timestep = reached
        reward = fixed.rewards(timestep.reward)[visit.agent]
        action = jnp.where(me, own, others)
        return Leaf(
            state,
            timestep.observation,
            fixed.actor.update_state(hidden_state, action),
            visit.critic_hidden_state,
            visit.agent,
            visit.left - 1,
            timestep.terminated,
            timestep.terminated | timestep.truncated,
            total=jnp.full(lam.shape, reward),
            factor=jnp.ones(lam.shape),
            open=jnp.ones(lam.shape, bool),
            key=key,
        )

    keys_outcome = jax.random.split(key_outcome, OUTCOMES)
    keys_continue = jax.random.split(key_continue, (OUTCOMES, CONTINUATIONS))
    reached = _over(outcome, (0, None, None), (None, 0, None), (None, None, 0))(
        own, others, keys_outcome
    )
    leaves = _over(
        leaf, (0, None, 0, None), (None, 0, 0, None), (None, None, 0, 0), (None, None, None, 0)
    )(own, others, reached, keys_continue)
    score = jax.vmap(policy.score)(own)[:, visit.agent]
    mine, theirs = own[:, visit.agent], jnp.where(me, jnp.zeros_like(others), others)
    same_outcome = _over(lambda reached: equal(reached), 0, 0)(reached)
    return leaves, score, equal(mine), equal(theirs), same_outcome


def _step(env: Env, fixed: FixedLearner, lam: Float[Array, " return"], leaf: Leaf) -> Leaf:
    """Complete the returns that end before this step, and make the step for the others."""
    gamma = fixed.algorithm.config.gamma
    key, key_action, key_env = jax.random.split(leaf.key, 3)
    policy, hidden_state = fixed.actor(leaf.observation, leaf.hidden_state, jnp.zeros((), bool))
    action = policy.sample(key_action)
    values, critic_hidden_state = fixed.bootstrap(
        policy, action, leaf.observation, leaf.critic_hidden_state
    )
    value = jnp.where(leaf.terminated, 0.0, values[leaf.agent])

    # G = Σₖ (γλ)ᵏ (rₖ + γ (1 − λ) v′ₖ), with γ v′ₖ instead of γ (1 − λ) v′ₖ at the last step
    cut = (leaf.left == 0) & (jnp.arange(lam.size) < lam.size - 1)
    last = leaf.ended | cut
    total = leaf.total + leaf.factor * gamma * jnp.where(last, 1.0, 1.0 - lam) * value
    factor, open = leaf.factor * gamma * lam, leaf.open & ~last
    state, timestep = env.step(key_env, leaf.state, env.spec.bounded(action))
    reward = fixed.rewards(timestep.reward)[leaf.agent]
    return Leaf(
        state,
        timestep.observation,
        fixed.actor.update_state(hidden_state, action),
        critic_hidden_state,
        leaf.agent,
        leaf.left - 1,
        timestep.terminated,
        leaf.ended | timestep.terminated | timestep.truncated,
        total=jnp.where(leaf.open, total, leaf.total) + jnp.where(open, factor * reward, 0.0),
        factor=factor,
        open=open,
        key=key,
    )


def equal(rows: Any) -> Bool[Array, "row row"]:
    """The pairs of rows of a tree of arrays `[row, ...]` that are equal in all of them."""

    def pairs(x: Array) -> Bool[Array, "row row"]:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        x = x.reshape(len(x), math.prod(x.shape[1:]))
        return (x[:, None] == x[None]).all(-1)

    each = [pairs(x) for x in jax.tree.leaves(rows)]
    return jnp.stack(each).all(0)


def _over(f: Any, *in_axes: Any) -> Any:
    """`f`, vectorised over one more axis for each of `in_axes`, the outermost first."""
    for axes in reversed(in_axes):
        f = jax.vmap(f, in_axes=axes)
    return f
