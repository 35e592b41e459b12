"""Actor-critics on random games with known values: does the gradient of the return vanish?

Tabular softmax policies and tabular critics learn from the same number of transitions with step
sizes of two time scales (Konda and Tsitsiklis, 1999). They differ in the value that stands in the
policy gradient: the critic at the joint action taken (centralised), its average over K draws of the
others' actions (PERLA), or a critic of the agent's own action alone (decentralised). The norm of
the exact gradient of the return, which none of them sees, tells whether they approach an optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.distributions import Categorical
from perla.experiments.theory.random_games import Game, marginalised
from perla.methods.estimators import Sampled
from perla.types import Array, Float, Int, PRNGKeyArray

Kind = Literal["centralised", "PERLA", "decentralised"]
CHAINS = 64
"""Transitions of an update: one step of each of these chains."""
CRITIC_RATE, CRITIC_DECAY = 0.5, 0.6
ACTOR_RATE, ACTOR_DECAY = 1.0, 0.8
"""Step sizes c / (1 + t / 1000)^d: their sums diverge, the sums of their squares do not, and the
actor's falls faster than the critic's."""


class State(NamedTuple):
    """Everything that an actor-critic changes."""

    logits: Float[Array, "state agent action"]
    critic: Float[Array, "..."]
    """Q(s, a) `[state, *joint]`; of a decentralised critic Qᵢ(s, aᵢ) `[state, agent, action]`."""
    now: Int[Array, " chain"]
    """The state of each chain."""


def gradient_norms(
    game: Game, kind: Kind, k: int, updates: Sequence[int], seed: int
) -> Float[np.ndarray, " update"]:
    """‖∇J(θ)‖ of the policies after each number of `updates`, in rising order; J is the return from
    uniform states."""
    learn = jax.jit(partial(_learn, game, kind, k))
    shape = game.policy.shape if kind == "decentralised" else game.reward.shape
    state = State(
        jnp.log(jnp.asarray(game.policy, float)), jnp.zeros(shape), jnp.zeros(CHAINS, int)
    )
    key, done, norms = jax.random.key(seed), 0, []
    for until in updates:
        state = learn(state, key, jnp.int32(done), jnp.int32(until))
        policy = np.asarray(jax.nn.softmax(state.logits), float)
        norms.append(gradient_norm(game._replace(policy=policy)))
        done = until
    return np.asarray(norms)


def gradient_norm(game: Game) -> float:
    """‖∇J(θ)‖ of the game's softmax policies, exactly."""
    policy, q = game.policy, game.values
    v, transition = game.average(q), game.average(game.transition)
    # d = (I − γ P̄ᵀ)⁻¹ μ: the discounted visits of the states, from the uniform μ
    start = np.full(len(v), 1 / len(v))
    visits = np.linalg.solve(np.eye(len(v)) - game.gamma * transition.T, start)
    own = np.stack([game.average(q, agent) for agent in range(game.agents)], axis=1)
    # ∂J / ∂θᵢ(s, a) = d(s) πᵢ(a|s) (Q̃ᵢ(s, a) − v(s))                    (policy gradient theorem)
    return float(np.linalg.norm(visits[:, None, None] * policy * (own - v[:, None, None])))


def _learn(
    game: Game,
    kind: Kind,
    k: int,
    state: State,
    key: PRNGKeyArray,
    start: Int[Array, ""],
    until: Int[Array, ""],
) -> State:
    reward, transition = jnp.asarray(game.reward, float), jnp.asarray(game.transition, float)
    entries = partial(_entries, kind)

    def value_of(critic: Array, log_policy: Array, joint: Array, states: Array, key: Array):
        """The value of each agent's action in the policy gradient: `[chain, agent]`."""
        if kind == "PERLA":
            probs, estimator = jnp.exp(log_policy), Sampled(num_samples=k)
            return marginalised(probs, critic, estimator, states, joint, key)
        values = critic[entries(states, joint)]
        return values if kind == "decentralised" else jnp.tile(values[:, None], game.agents)

    def update(t: Array, state: State) -> State:
        key_action, key_next, key_after, key_values, key_end, key_start = jax.random.split(
            jax.random.fold_in(key, t), 6
        )
        rate, now = 1 + t / 1000, state.now
        log_policy = jax.nn.log_softmax(state.logits)
        policy = Categorical(log_policy[now])
        joint = policy.sample(key_action)
        index = (now, *jnp.moveaxis(joint, -1, 0))
        following = Categorical(jnp.log(transition[index])).sample(key_next)
        after = Categorical(log_policy[following]).sample(key_after)

        # Q(s, a) ← Q(s, a) + α (r + γ Q(s′, a′) − Q(s, a)), the mean of all visits of an entry
        at, gain = entries(now, joint), reward[index]
        gain = gain[:, None] if kind == "decentralised" else gain
        bootstrap = state.critic[entries(following, after)]
        error = gain + game.gamma * bootstrap - state.critic[at]
        sums = jnp.zeros_like(state.critic).at[at].add(error)
        visits = jnp.zeros_like(state.critic).at[at].add(jnp.ones_like(error))
        step = CRITIC_RATE / rate**CRITIC_DECAY
        critic = state.critic + step * sums / jnp.maximum(visits, 1)

        # θᵢ ← θᵢ + β Q ∇ log πᵢ(aᵢ | s), for a softmax table ∇ log π = 1[s] (1[a] − π(s))
        values = value_of(critic, log_policy, joint, now, key_values)
        score = jax.nn.one_hot(joint, policy.probs.shape[-1]) - policy.probs
        gradient = jnp.zeros_like(state.logits).at[now].add(values[..., None] * score) / CHAINS
        logits = state.logits + ACTOR_RATE / rate**ACTOR_DECAY * gradient

        # Ending with probability 1 − γ makes the states those of the discounted return.
        ends = jax.random.bernoulli(key_end, 1 - game.gamma, (CHAINS,))
        fresh = jax.random.randint(key_start, (CHAINS,), 0, len(reward))
        return State(logits, critic, jnp.where(ends, fresh, following))

    return jax.lax.fori_loop(start, until, update, state)


def _entries(kind: Kind, states: Array, joint: Array) -> tuple[Array, ...]:
    """The entries of the critic at joint actions."""
    if kind == "decentralised":
        return states[:, None], jnp.arange(joint.shape[-1])[None], joint
    return states, *jnp.moveaxis(joint, -1, 0)
