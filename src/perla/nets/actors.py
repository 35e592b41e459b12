"""Actors: from each agent's observations to its policy.

An actor's memory is its own: whoever plays begins with `blank`, hands it back at every step and
tells the actor what was done, by `remember`.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.distributions import IMPOSSIBLE, Categorical, EpsilonGreedy
from perla.envs.protocol import Observation
from perla.nets.body import Body
from perla.types import Array, Bool, Float, Int


class Actor(eqx.Module):
    """π(·|τᵢ) of every agent: decentralised, each sees its own observations only."""

    body: Body

    def blank(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent hidden"]:
        """The memory before an episode's first step."""
        return self.body.blank(batch)

    def remember(
        self, memory: Float[Array, "*batch agent hidden"], action: Int[Array, "*batch agent"]
    ) -> Float[Array, "*batch agent hidden"]:
        """The memory after `action`: these policies do not ask what was done."""
        return memory

    def unroll(
        self,
        observation: Observation,
        memory: Float[Array, "*batch agent hidden"],
        fresh: Bool[Array, "time *batch"],
    ) -> tuple[Categorical, Float[Array, "time *batch agent hidden"]]:
        """The policies at consecutive steps and the memory after each; `observation` leads with
        the time axis."""
        context, memories = self.body.context(observation.obs, memory, fresh)
        return Categorical.masked(self.body.finish(context), observation.avail), memories

    def __call__(
        self,
        observation: Observation,
        memory: Float[Array, "*batch agent hidden"],
        fresh: Bool[Array, "*batch"],
    ) -> tuple[Categorical, Float[Array, "*batch agent hidden"]]:
        """One step: the policies now and the memory after."""
        one = Observation(*(x[None] for x in observation))
        policy, memories = self.unroll(one, memory, fresh[None])
        return Categorical(policy.log_probs[0]), memories[0]


class Utilities(eqx.Module):
    """Qᵢ(τᵢ, ·) of every agent, from its own observations and, if it recalls it, its last action.

    The memory is the body's and, behind it, the last action, one-hot.
    """

    body: Body
    recalls: int = eqx.field(static=True)
    """Actions among which the last one is an input; 0 if it is none."""

    def blank(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent memory"]:
        """The memory before an episode's first step."""
        return jnp.zeros((*batch, self.body.agents, self.memory))

    @property
    def memory(self) -> int:
        """Features of the memory."""
        return self.body.memory + self.recalls

    def forget(
        self, memory: Float[Array, "*batch agent memory"]
    ) -> Float[Array, "*batch agent memory"]:
        """The memory of the last action alone."""
        return memory.at[..., : self.body.memory].set(0.0)

    def remember(
        self, memory: Float[Array, "*batch agent memory"], action: Int[Array, "*batch agent"]
    ) -> Float[Array, "*batch agent memory"]:
        """The memory after `action`."""
        hidden = memory[..., : self.body.memory]
        return jnp.concatenate([hidden, jax.nn.one_hot(action, self.recalls)], -1)

    def unroll(
        self,
        obs: Float[Array, "time *batch agent feature"],
        action: Int[Array, "time *batch agent"],
        memory: Float[Array, "*batch agent memory"],
        fresh: Bool[Array, "time *batch"],
    ) -> tuple[Float[Array, "time *batch agent action"], Float[Array, "time *batch agent memory"]]:
        """The values at consecutive steps, where `action` is done at each, and the memory after
        each."""
        done = jax.nn.one_hot(action, self.recalls)
        last = jnp.concatenate([memory[None, ..., self.body.memory :], done[:-1]])
        x = jnp.concatenate([obs, jnp.where(fresh[..., None, None], 0.0, last)], -1)
        context, hidden = self.body.context(x, memory[..., : self.body.memory], fresh)
        return self.body.finish(context), jnp.concatenate([hidden, done], -1)

    def __call__(
        self,
        obs: Float[Array, "*batch agent feature"],
        memory: Float[Array, "*batch agent memory"],
        fresh: Bool[Array, "*batch"],
    ) -> tuple[Float[Array, "*batch agent action"], Float[Array, "*batch agent memory"]]:
        """One step: the values now, and the memory before it is told what is done."""
        nothing = jnp.zeros((1, *obs.shape[:-1]), int)
        values, memories = self.unroll(obs[None], nothing, memory, fresh[None])
        return values[0], memories[0]


class GreedyActor(eqx.Module):
    """What is best by the agents' utilities, but for a share ε of random actions."""

    utilities: Utilities
    epsilon: Float[Array, ""]

    def blank(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent memory"]:
        """The memory before an episode's first step."""
        return self.utilities.blank(batch)

    def remember(
        self, memory: Float[Array, "*batch agent memory"], action: Int[Array, "*batch agent"]
    ) -> Float[Array, "*batch agent memory"]:
        """The memory after `action`."""
        return self.utilities.remember(memory, action)

    def __call__(
        self,
        observation: Observation,
        memory: Float[Array, "*batch agent memory"],
        fresh: Bool[Array, "*batch"],
    ) -> tuple[EpsilonGreedy, Float[Array, "*batch agent memory"]]:
        """One step: the policies now and the memory after."""
        values, memory = self.utilities(observation.obs, memory, fresh)
        return EpsilonGreedy(possible(values, observation.avail), self.epsilon), memory


AnyActor = Actor | GreedyActor


def possible(
    values: Float[Array, "*batch action"], avail: Bool[Array, "*batch action"]
) -> Float[Array, "*batch action"]:
    """`values` of the actions that may be chosen, far less than any value for the others."""
    return jnp.where(avail, values, IMPOSSIBLE)
