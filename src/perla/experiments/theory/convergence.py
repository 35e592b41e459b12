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
from string import ascii_lowercase
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perla.distributions import Categorical
from perla.experiments.theory.random_games import Game
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
    norm = jax.jit(partial(gradient_norm, game))
    shape = game.policy.shape if kind == "decentralised" else game.reward.shape
    state = State(
        jnp.log(jnp.asarray(game.policy, float)), jnp.zeros(shape), jnp.zeros(CHAINS, int)
    )
    key, done, norms = jax.random.key(seed), 0, []
    for until in updates:
        state = learn(state, key, jnp.int32(done), jnp.int32(until))
        norms.append(norm(state.logits))
        done = until
    return np.asarray(norms, float)


def gradient_norm(game: Game, logits: Float[Array, "state agent action"]) -> Float[Array, ""]:
    """‖∇J(θ)‖ of softmax policies, exactly: J = mean of v, v = (I − γ P̄)⁻¹ r̄."""

    def expected_return(logits: Array) -> Array:
        policy = jax.nn.softmax(logits)
        joint = ascii_lowercase[1 : 1 + game.agents]
        inputs = ",".join(["a" + joint + "...", *("a" + m for m in joint)])
        average = partial(jnp.einsum, f"{inputs}->a...")
        policies = [policy[:, m] for m in range(game.agents)]
        reward = average(jnp.asarray(game.reward, float), *policies)
        transition = average(jnp.asarray(game.transition, float), *policies)
        return jnp.linalg.solve(jnp.eye(len(reward)) - game.gamma * transition, reward).mean()

    return jnp.linalg.norm(jax.grad(expected_return)(logits))


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

    def value_of(critic: Array, policy: Categorical, joint: Array, states: Array, key: Array):
        """The value of each agent's action in the policy gradient: `[chain, agent]`."""
        values = critic[entries(states, joint)]
        if kind == "decentralised":
            return values
        if kind == "centralised":
            return jnp.broadcast_to(values[:, None], joint.shape)
        drawn = jax.vmap(policy.sample)(jax.random.split(key, k))
        own = jnp.eye(game.agents, dtype=bool)
        # Of agent i the own action, of all others those drawn: [draw, chain, i, agent].
        mixed = jnp.where(own, joint[None, :, None], drawn[:, :, None])
        return critic[(states[None, :, None], *jnp.moveaxis(mixed, -1, 0))].mean(0)

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
        values = value_of(critic, policy, joint, now, key_values)
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
