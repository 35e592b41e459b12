"""What an aggregate does to learning, apart from what a critic knows: policies that climb a critic
which was fitted beforehand.

Relative overgeneralisation (Wiegand, 2003) is what the paper's matrix game is made of: the best
action is best only if all choose it, and on average over the others it is the worst. With the
others at p = P(action 0), the average of the critic prefers action 0 only if

    20 p^(N−1) > 12 (1 − p)^(N−1),   p > p* = 1 / (1 + (5/3)^(1/(N−1)))

and a uniform policy, p = 1/|A|, is below p* for every N ≥ 2 and |A| ≥ 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perla.algos.actor_critic import create_critic
from perla.algos.values import create_value
from perla.distributions import Categorical
from perla.envs.matrix import Data, MatrixGame
from perla.experiments.matrix.data_regimes import ONCE, draws, every
from perla.methods.aggregators import Aggregator
from perla.methods.estimators import Auto, Exact, Sampled
from perla.methods.ppo import PPO
from perla.methods.values import Embedded
from perla.nets.critics import AnyCritic
from perla.types import Array, Float, Int, PRNGKeyArray

AUTO = Auto()
NEAR_UNIFORM = 0.01
"""Deviation of the first policies' logits."""
CLIMBS = 400
"""Policy gradients by which they climb."""


class Fit(NamedTuple):
    """How a critic is fitted, by Adam: as learners that replay learn."""

    num_envs: int = 32
    """Joint actions of a collection."""
    updates_per_rollout: int = 4
    """Gradient steps after each collection."""
    buffer_size: int = 5000
    """Of how many, the newest, batches are drawn."""
    batch_size: int = 32
    lr: float = 2e-3


FIT = Fit()


def outcomes(
    game: MatrixGame,
    aggregators: Sequence[Aggregator],
    *,
    estimator: Auto | Exact | Sampled = AUTO,
    data: tuple[Data, ...] = ("balanced",),
    seeds: int = 20,
    collections: int = 500,
) -> Float[np.ndarray, "aggregator data seed"]:
    """What the greedy policies of every seed earn in the end, under each of `data`.

    A critic Q(aᵢ, a₋ᵢ) is fitted to so many collections of joint actions; then nearly uniform
    policies climb each aggregate of it over each other, by exact policy gradients.
    """
    settings = Embedded(critic_form="action-value", regress="joint", estimator=estimator)
    config = PPO(value=settings, hidden_size=64)
    spec, seen = game.spec, game.observe()
    head = create_value(settings, spec).head
    observation = jax.tree.map(lambda x: x[None, None], seen)
    adam = optax.adam(FIT.lr)

    def context_of(critic: AnyCritic) -> Float[Array, "1 agent width"]:
        initial_state = critic.body.initial_state((1,))
        return critic.context(observation, initial_state, jnp.ones((1, 1), bool))[0][0]

    def error(critic: AnyCritic, joint: Int[Array, "batch agent"]) -> Float[Array, ""]:
        context = context_of(critic)
        context = jnp.broadcast_to(context, (len(joint), *context.shape[1:]))
        q = head.select(critic.joint(context, joint), joint)
        return ((q - game.payoff(joint)[:, None]) ** 2).mean()

    def improve(carry, joint):
        critic, state = carry
        changes, state = adam.update(jax.grad(error)(critic, joint), state)
        return (optax.apply_updates(critic, changes), state), None

    def fitted(
        critic: AnyCritic, played: Int[Array, "collection copy agent"], key: PRNGKeyArray
    ) -> AnyCritic:
        def step(carry, inputs):
            learner, replay = carry
            number, key, joint = inputs
            oldest = (number * FIT.num_envs + jnp.arange(FIT.num_envs)) % FIT.buffer_size
            replay = replay.at[oldest].set(joint)
            held = jnp.minimum((number + 1) * FIT.num_envs, FIT.buffer_size)
            rows = jax.random.randint(key, (FIT.updates_per_rollout, FIT.batch_size), 0, held)
            return (jax.lax.scan(improve, learner, replay[rows])[0], replay), None

        replay = jnp.zeros((FIT.buffer_size, spec.agents), jnp.int32)
        start = (critic, adam.init(critic)), replay
        inputs = jnp.arange(collections), jax.random.split(key, collections), played
        ((critic, _), _), _ = jax.lax.scan(step, start, inputs)
        return critic

    def climb(aggregator: Aggregator, critic: AnyCritic, key: PRNGKeyArray) -> Int[Array, " agent"]:
        key_first, key_draws = jax.random.split(key)
        context = context_of(critic)
        value = create_value(settings.replace(aggregator=aggregator), spec)
        optimiser = optax.adam(0.05)

        def worth(logits, key):
            policy = Categorical.masked(logits[None], observation.avail[0])
            q = value.estimate(critic, context, policy, key).action_values
            return -(policy.probs * jax.lax.stop_gradient(q)).sum()

        def step(carry, key):
            logits, state = carry
            changes, state = optimiser.update(jax.grad(worth)(logits, key), state)
            return (logits + changes, state), None

        logits = NEAR_UNIFORM * jax.random.normal(key_first, (spec.agents, spec.max_actions))
        start = (logits, optimiser.init(logits))
        (logits, _), _ = jax.lax.scan(step, start, jax.random.split(key_draws, CLIMBS))
        return Categorical.masked(logits, seen.avail).mode()

    def learn(
        critic: AnyCritic, played: Int[Array, "collection copy agent"], key: PRNGKeyArray
    ) -> Int[Array, "aggregator agent"]:
        key_fit, key_climb = jax.random.split(key)
        critic = fitted(critic, played, key_fit)
        return jnp.stack([climb(each, critic, key_climb) for each in aggregators])

    # A run for each of the data with each of the seeds.
    chosen = np.repeat(np.arange(len(data)), seeds)
    keys = jnp.tile(jax.random.split(jax.random.key(0), (seeds, 2)), (len(data), 1))
    keys_net, keys_data = jax.vmap(jax.random.split, out_axes=1)(keys[:, 0])
    critics = every(partial(create_critic, config, spec), keys_net, options=ONCE)
    drawn = draws(game, data, keys_data, collections, FIT.num_envs)
    played = jnp.stack(drawn)[chosen, np.arange(len(chosen))]
    joint = every(learn, critics, played, keys[:, 1])
    earned = np.asarray(game.payoff(jnp.asarray(joint))).reshape(len(data), seeds, -1)
    return np.moveaxis(earned, -1, 0)


def threshold(agents: int) -> float:
    """p*, above which the mean leads to action 0."""
    return 1 / (1 + (5 / 3) ** (1 / (agents - 1)))
