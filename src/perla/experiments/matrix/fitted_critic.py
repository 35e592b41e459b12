"""Policy gradients through a fitted critic: the effect of an aggregator with a given critic.

The paper's matrix game shows relative overgeneralisation (Wiegand, 2003): action 0 is best only if
all agents choose it, and on average over the other agents it is the worst. Where the other agents
choose it with probability p, the average of the critic prefers action 0 only if

    20 p^(N−1) > 12 (1 − p)^(N−1),   p > p* = 1 / (1 + (5/3)^(1/(N−1)))

and the uniform policy, p = 1/|A|, is below p* for all N ≥ 2 and |A| ≥ 3.
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
from perla.envs.matrix import JointActionDistribution, MatrixGame
from perla.envs.protocol import Observation
from perla.experiments.matrix.data_distributions import (
    map_entries,
    sample_joint_actions,
)
from perla.loops.anakin import UNOPTIMIZED
from perla.methods.aggregators import Aggregator
from perla.methods.estimators import Exact, Sampled
from perla.methods.ppo import PPO
from perla.methods.values import Embedded
from perla.nets.critics import AnyCritic
from perla.types import Array, Float, Int, PRNGKeyArray

EXACT = Exact()
LOGIT_STD = 0.01
"""Standard deviation of the initial logits, so that initial policies are nearly uniform."""
GRADIENT_STEPS = 400
"""Steps of policy gradient ascent."""


class Fit(NamedTuple):
    """Settings of the critic's regression by Adam, in the manner of replay-based learners."""

    num_envs: int = 32
    """Joint actions per collection."""
    updates_per_rollout: int = 4
    """Gradient steps after each collection."""
    buffer_size: int = 5000
    """Joint actions in the replay buffer."""
    batch_size: int = 32
    lr: float = 2e-3


FIT = Fit()


def outcomes(
    game: MatrixGame,
    aggregators: Sequence[Aggregator],
    *,
    estimator: Exact | Sampled = EXACT,
    data: tuple[JointActionDistribution, ...] = ("balanced",),
    seeds: int = 20,
    collections: int = 500,
) -> Float[np.ndarray, "aggregator data seed"]:
    """Return the payoffs of the final greedy policies, for each distribution in `data`.

    A critic Q(aᵢ, a₋ᵢ) is fitted to `collections` collections of joint actions. Then, for each
    aggregator, nearly uniform policies ascend the aggregated critic by exact policy gradients.
    """
    value = Embedded(critic_form="action-value", regress="joint", estimator=estimator)
    config = PPO(value=value, hidden_size=64)

    def learn(
        critic: AnyCritic, joint: Int[Array, "collection env agent"], key: PRNGKeyArray
    ) -> Int[Array, "aggregator agent"]:
        key_fit, key_ascend = jax.random.split(key)
        critic = fit(game, value, critic, joint, key_fit)
        values = [value.replace(aggregator=aggregator) for aggregator in aggregators]
        return jnp.stack([ascend(game, each, critic, key_ascend) for each in values])

    # One run for each pair of a distribution and a seed.
    chosen = np.repeat(np.arange(len(data)), seeds)
    keys = jnp.tile(jax.random.split(jax.random.key(0), (seeds, 2)), (len(data), 1))
    keys_net, keys_data = jax.vmap(jax.random.split, out_axes=1)(keys[:, 0])
    critics = map_entries(partial(create_critic, config, game.spec), keys_net, options=UNOPTIMIZED)
    sampled = sample_joint_actions(
        game, data, keys_data, collections=collections, num_envs=FIT.num_envs
    )
    joint = jnp.stack(sampled)[chosen, np.arange(len(chosen))]
    final = map_entries(learn, critics, joint, keys[:, 1])
    payoffs = np.asarray(game.payoff(jnp.asarray(final))).reshape(len(data), seeds, -1)
    return np.moveaxis(payoffs, -1, 0)


def fit(
    game: MatrixGame,
    value: Embedded,
    critic: AnyCritic,
    joint_actions: Int[Array, "collection env agent"],
    key: PRNGKeyArray,
) -> AnyCritic:
    """Regress the critic at joint actions, which are replayed, on their payoffs."""
    observation, adam = _observe(game), optax.adam(FIT.lr)

    def error(critic: AnyCritic, joint: Int[Array, "batch agent"]) -> Float[Array, ""]:
        context = _context(critic, observation)
        context = jnp.broadcast_to(context, (len(joint), *context.shape[1:]))
        q = create_value(value, game.spec).head.select(critic.joint(context, joint), joint)
        return ((q - game.payoff(joint)[:, None]) ** 2).mean()

    def update(carry, joint):
        critic, state = carry
        changes, state = adam.update(jax.grad(error)(critic, joint), state)
        return (optax.apply_updates(critic, changes), state), None

    def step(carry, inputs):
        learner, replay = carry
        number, key, joint = inputs
        oldest = (number * FIT.num_envs + jnp.arange(FIT.num_envs)) % FIT.buffer_size
        replay = replay.at[oldest].set(joint)
        stored = jnp.minimum((number + 1) * FIT.num_envs, FIT.buffer_size)
        rows = jax.random.randint(key, (FIT.updates_per_rollout, FIT.batch_size), 0, stored)
        return (jax.lax.scan(update, learner, replay[rows])[0], replay), None

    replay = jnp.zeros((FIT.buffer_size, game.spec.agents), jnp.int32)
    start = (critic, adam.init(critic)), replay
    count = len(joint_actions)
    inputs = jnp.arange(count), jax.random.split(key, count), joint_actions
    ((critic, _), _), _ = jax.lax.scan(step, start, inputs)
    return critic


def ascend(
    game: MatrixGame, value: Embedded, critic: AnyCritic, key: PRNGKeyArray
) -> Int[Array, " agent"]:
    """Improve nearly uniform policies by gradient ascent on the aggregated critic.

    Returns the joint action of the final greedy policies.
    """
    key_init, key_samples = jax.random.split(key)
    observation, optimizer = _observe(game), optax.adam(0.05)
    context = _context(critic, observation)

    def loss(logits, key):
        policy = Categorical.masked(logits[None], observation.avail[0])
        q = create_value(value, game.spec).estimate(critic, context, policy, key).action_values
        return -(policy.probs * jax.lax.stop_gradient(q)).sum()

    def step(carry, key):
        logits, state = carry
        changes, state = optimizer.update(jax.grad(loss)(logits, key), state)
        return (logits + changes, state), None

    logits = LOGIT_STD * jax.random.normal(key_init, (game.spec.agents, game.spec.max_actions))
    start = (logits, optimizer.init(logits))
    (logits, _), _ = jax.lax.scan(step, start, jax.random.split(key_samples, GRADIENT_STEPS))
    return Categorical.masked(logits, observation.avail[0, 0]).mode()


def threshold(agents: int) -> float:
    """Return p*, above which the mean prefers action 0."""
    return 1 / (1 + (5 / 3) ** (1 / (agents - 1)))


def _observe(game: MatrixGame) -> Observation:
    """The observation of the game's only state: `[time = 1, env = 1, …]`."""
    return jax.tree.map(lambda x: x[None, None], game.observe())


def _context(critic: AnyCritic, observation: Observation) -> Float[Array, "1 agent width"]:
    hidden_state = critic.body.initial_state((1,))
    return critic.context(observation, hidden_state, jnp.ones((1, 1), bool))[0][0]
