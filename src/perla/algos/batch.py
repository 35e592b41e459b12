"""What an actor-critic learner's passes go through: steps, dealt out into minibatches."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax

from perla.algos.alive import LossMask, loss_mask
from perla.distributions import Policy
from perla.envs.protocol import Observation
from perla.types import Array, Bool, Float, Int, PRNGKeyArray


class Batch(NamedTuple):
    """What the losses read: sequences `[time, env, ...]` of steps."""

    observation: Observation
    is_first: Bool[Array, "time env"]
    valid: Bool[Array, "time env"]
    hidden_state: Float[Array, "time env agent hidden"]
    critic_hidden_state: Float[Array, "time env agent hidden"]
    action: Int[Array, "time env agent"] | Float[Array, "time env agent dimension"]
    policy: Policy
    prediction: Float[Array, "time env agent"]
    """The critic's, before the update, in its own units."""
    target: Float[Array, "time env agent"]
    """The returns, in rewards' units."""
    advantage: Float[Array, "time env agent"]
    weight: Float[Array, "time env agent"] | None = None
    """M: how much likelier the agents before it have made what they did; none: all move at once."""

    @property
    def loss_mask(self) -> LossMask:
        """The steps that are learnt from."""
        return loss_mask(self.valid, self.observation)

    def of(self, agent: Int[Array, ""]) -> Batch:
        """What one agent's policy is learnt from."""
        own = partial(jax.lax.dynamic_index_in_dim, index=agent, axis=2)
        obs, state, avail, alive = self.observation
        return self._replace(
            observation=Observation(own(obs), state, own(avail), jax.tree.map(own, alive)),
            hidden_state=own(self.hidden_state),
            critic_hidden_state=own(self.critic_hidden_state),
            action=own(self.action),
            policy=jax.tree.map(own, self.policy),
            prediction=own(self.prediction),
            target=own(self.target),
            advantage=own(self.advantage),
        )


def minibatches(batch: Batch, parts: int, length: int, key: PRNGKeyArray) -> Batch:
    """`batch` cut into sequences of `length` steps, shuffled and dealt out: `[minibatch, time,
    env, ...]`.

    The agents of a step stay together. A single minibatch needs no order and is not touched.
    """
    if parts == 1:
        return jax.tree.map(lambda x: x[None], batch)
    order = jax.random.permutation(key, batch.is_first.size // length)

    def deal(x):
        time, env, *rest = x.shape
        x = x.reshape(time // length, length, env, *rest).swapaxes(0, 1)
        x = x.reshape(length, order.size, *rest)[:, order]
        return x.reshape(length, parts, order.size // parts, *rest).swapaxes(0, 1)

    return jax.tree.map(deal, batch)
