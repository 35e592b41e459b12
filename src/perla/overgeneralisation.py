"""What an aggregate does to learning, apart from what a critic knows: policies that climb a critic
which was fitted beforehand.

Relative overgeneralisation (Wiegand, 2003) is what the paper's matrix game is made of: the best
action is best only if all choose it, and on average over the others it is the worst. With the
others at p = P(action 0), the average of the critic prefers action 0 only if

    20 p^(N−1) > 12 (1 − p)^(N−1),   p > p* = 1 / (1 + (5/3)^(1/(N−1)))

and a uniform policy, p = 1/|A|, is below p* for every N ≥ 2 and |A| ≥ 3.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perla.algos.actor_critic import create_critic
from perla.algos.values import estimate, taken
from perla.distributions import Categorical
from perla.envs.matrix import Data, MatrixGame
from perla.methods.aggregators import Aggregator
from perla.methods.estimators import Auto, Exact, Sampled
from perla.methods.ppo import PPO
from perla.methods.values import Embedded
from perla.nets.critics import AnyCritic
from perla.regimes import BRISK, every
from perla.types import Array, Float, Int, PRNGKeyArray

AUTO = Auto()
NEAR_UNIFORM = 0.01
"""Deviation of the first policies' logits."""


def outcomes(
    game: MatrixGame,
    aggregator: Aggregator,
    *,
    estimator: Auto | Exact | Sampled = AUTO,
    data: tuple[Data, ...] = ("balanced",),
    seeds: int = 20,
    fits: int = 1_000,
    climbs: int = 400,
) -> Float[np.ndarray, "data seed"]:
    """What the greedy policies of every seed earn in the end, under each of `data`.

    A critic Q(aᵢ, a₋ᵢ) is fitted to `fits` batches of joint actions; then nearly uniform
    policies climb the aggregate of it over each other, by `climbs` exact policy gradients.
    """
    value = Embedded(form="action-value", fit="joint", estimator=estimator, aggregator=aggregator)
    config = PPO(value=value, hidden=64)
    spec, seen = game.spec, game.observe()
    observation = jax.tree.map(lambda x: x[None, None], seen)

    def context_of(critic: AnyCritic) -> Float[Array, "1 agent width"]:
        blank = critic.body.blank((1,))
        return critic.context(observation, blank, jnp.ones((1, 1), bool))[0][0]

    def error(critic: AnyCritic, which: Int[Array, ""], key: PRNGKeyArray) -> Float[Array, ""]:
        joint = jnp.stack([game.draw(each, key, 256) for each in data])[which]
        context = context_of(critic)
        context = jnp.broadcast_to(context, (len(joint), *context.shape[1:]))
        q = taken(value, critic.joint(context, joint), joint)
        return ((q - game.payoff(joint)[:, None]) ** 2).mean()

    def fit(which: Int[Array, ""], key: PRNGKeyArray) -> AnyCritic:
        key_net, key_data = jax.random.split(key)
        critic = create_critic(config, spec, key_net)
        optimiser = optax.adam(optax.linear_schedule(5e-3, 0.0, fits))

        def step(carry, key):
            critic, state = carry
            changes, state = optimiser.update(jax.grad(error)(critic, which, key), state)
            return (optax.apply_updates(critic, changes), state), None

        start = (critic, optimiser.init(critic))
        return jax.lax.scan(step, start, jax.random.split(key_data, fits))[0][0]

    def climb(critic: AnyCritic, key: PRNGKeyArray) -> Float[Array, "agent action"]:
        key_first, key_draws = jax.random.split(key)
        context = context_of(critic)
        optimiser = optax.adam(0.05)

        def worth(logits, key):
            policy = Categorical.masked(logits[None], observation.avail[0])
            q = estimate(value, critic, context, policy, key).action_values
            return -(policy.probs * jax.lax.stop_gradient(q)).sum()

        def step(carry, key):
            logits, state = carry
            changes, state = optimiser.update(jax.grad(worth)(logits, key), state)
            return (logits + changes, state), None

        logits = NEAR_UNIFORM * jax.random.normal(key_first, (spec.agents, spec.max_actions))
        start = (logits, optimiser.init(logits))
        return jax.lax.scan(step, start, jax.random.split(key_draws, climbs))[0][0]

    def one(which, key):
        key_fit, key_climb = jax.random.split(key)
        logits = climb(fit(which, key_fit), key_climb)
        return Categorical.masked(logits, seen.avail).mode()

    @partial(jax.jit, compiler_options=BRISK)
    def learn(keys, chosen):
        return every(lambda which: every(partial(one, which), keys), chosen)

    joint = learn(jax.random.split(jax.random.key(0), seeds), jnp.arange(len(data)))
    return np.asarray(game.payoff(joint))


def threshold(agents: int) -> float:
    """p*, above which the mean leads to action 0."""
    return 1 / (1 + (5 / 3) ** (1 / (agents - 1)))
