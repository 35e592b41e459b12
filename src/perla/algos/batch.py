"""The batch of an actor-critic update, and its minibatches."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, TypeVar

import jax

from perla.algos.alive import LossMask, loss_mask
from perla.distributions import Policy
from perla.envs.protocol import Observation
from perla.types import Array, Bool, Float, Int, PRNGKeyArray

Steps = TypeVar("Steps")
"""A batch: a tree of arrays `[time, env, ...]`."""


class Batch(NamedTuple):
    """The inputs of the losses: sequences `[time, env, ...]` of steps."""

    observation: Observation
    is_first: Bool[Array, "time env"]
    valid: Bool[Array, "time env"]
    hidden_state: Float[Array, "sequence env agent hidden"]
    """The actor's before each sequence's first step."""
    critic_hidden_state: Float[Array, "sequence env agent hidden"]
    action: Int[Array, "time env agent"] | Float[Array, "time env agent dimension"]
    policy: Policy
    prediction: Float[Array, "time env agent"]
    """The critic's prediction before the update, in its own units."""
    target: Float[Array, "time env agent"]
    """The returns, in units of the rewards."""
    advantage: Float[Array, "time env agent"]
    weight: Float[Array, "time env agent"] | None = None
    """M, the probability ratio of the agents updated before (HAPPO); none: all move at once."""

    @property
    def loss_mask(self) -> LossMask:
        """The steps that enter the losses."""
        return loss_mask(self.valid, self.observation)

    def of(self, agent: Int[Array, ""]) -> Batch:
        """The batch of one agent, with an agent axis of length one."""
        take = partial(jax.lax.dynamic_index_in_dim, index=agent, axis=2)
        obs, state, avail, alive = self.observation
        return self._replace(
            observation=Observation(take(obs), state, take(avail), jax.tree.map(take, alive)),
            hidden_state=take(self.hidden_state),
            critic_hidden_state=take(self.critic_hidden_state),
            action=take(self.action),
            policy=jax.tree.map(take, self.policy),
            prediction=take(self.prediction),
            target=take(self.target),
            advantage=take(self.advantage),
        )


def minibatches(batch: Steps, count: int, length: int, key: PRNGKeyArray) -> Steps:
    """`batch` cut into sequences of `length` steps, which are shuffled and split into `count`
    minibatches: `[minibatch, time, env, ...]`.

    The agents of a step stay together. A single minibatch is not shuffled. An array may have one
    entry for each sequence instead of each step.
    """
    if count == 1:
        return jax.tree.map(lambda x: x[None], batch)
    time, env = jax.tree.leaves(batch)[0].shape[:2]
    sequences = time // length
    order = jax.random.permutation(key, sequences * env)

    def split(x):
        time, env, *rest = x.shape
        entries = time // sequences
        x = x.reshape(sequences, entries, env, *rest).swapaxes(0, 1)
        x = x.reshape(entries, order.size, *rest)[:, order]
        return x.reshape(entries, count, order.size // count, *rest).swapaxes(0, 1)

    return jax.tree.map(split, batch)
