"""Actors: from each agent's observations to its policy.

An actor's memory is its own: whoever plays begins with `initial_state`, hands it back at every step and
tells the actor what was done, by `update_state`. Where there is noise in what actors make of what they
see, it is drawn with the `key` that they are given at a step; without one there is none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.distributions import (
    IMPOSSIBLE,
    Categorical,
    EpsilonGreedy,
    Gaussian,
    Perturbed,
    Policy,
    Squashed,
    choosable,
    encode,
)
from perla.envs.protocol import Observation
from perla.nets.body import Body
from perla.nets.layers import expand_dims_like
from perla.nets.messages import Messages, Said
from perla.types import Actions, Array, Bool, Float, Int, PRNGKeyArray


class Actor(eqx.Module):
    """π(·|τᵢ) of every agent: decentralised, each sees its own observations only.

    What the body puts out are the logits of discrete actions, or the means of continuous ones.
    """

    body: Body
    log_deviation: Float[Array, "*own net dimension"] | None = None
    """log σ of continuous actions, the same in every state, of each of the body's nets; none: the
    actions are discrete."""
    squash: bool = eqx.field(static=True, default=False)
    """Whether continuous actions are tanh of what is drawn."""

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent hidden"]:
        """The memory before an episode's first step."""
        return self.body.initial_state(batch)

    def apart(self) -> Actor:
        """The agents' own actors, stacked: any one of them serves one agent alone."""
        each = jax.tree.map(lambda x: x[:, None], self.log_deviation)
        return replace(self, body=self.body.apart(), log_deviation=each)

    def joined(self, apart: Actor) -> Actor:
        """This actor with the parameters of what `apart` has become."""
        body = replace(self.body, net=apart.body.net)
        each = jax.tree.map(lambda x: x[:, 0], apart.log_deviation)
        return replace(self, body=body, log_deviation=each)

    def update_state(
        self, hidden_state: Float[Array, "*batch agent hidden"], action: Actions
    ) -> Float[Array, "*batch agent hidden"]:
        """The memory after `action`: these policies do not ask what was done."""
        return hidden_state

    def unroll(
        self,
        observation: Observation,
        hidden_state: Float[Array, "*batch agent hidden"],
        is_first: Bool[Array, "time *batch"],
    ) -> tuple[Policy, Float[Array, "time *batch agent hidden"]]:
        """The policies at consecutive steps and the memory after each; `observation` leads with
        the time axis."""
        context, hidden_states = self.body.context(observation.obs, hidden_state, is_first)
        return self.policy(self.body.finish(context), observation), hidden_states

    def policy(self, outputs: Float[Array, "*batch agent out"], observation: Observation) -> Policy:
        """The policies that the body's outputs stand for."""
        if self.log_deviation is None:
            return Categorical.masked(outputs, observation.avail, observation.alive)
        deviation = expand_dims_like(jnp.exp(self.body.own(self.log_deviation)), outputs)
        deviation = jnp.broadcast_to(deviation, outputs.shape)
        gaussian = Gaussian.masked(outputs, deviation, observation.avail, observation.alive)
        return Squashed(gaussian) if self.squash else gaussian

    def __call__(
        self,
        observation: Observation,
        hidden_state: Float[Array, "*batch agent hidden"],
        is_first: Bool[Array, "*batch"],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Policy, Float[Array, "*batch agent hidden"]]:
        """One step: the policies now, in which there is no noise, and the memory after."""
        one = jax.tree.map(lambda x: x[None], observation)
        policy, hidden_states = self.unroll(one, hidden_state, is_first[None])
        return jax.tree.map(lambda x: x[0], policy), hidden_states[0]


class Views(NamedTuple):
    """What agents make of what they have seen."""

    values: Float[Array, "*batch agent action"]
    """Qᵢ(τᵢ, ·)."""
    hidden: Float[Array, "*batch agent known"]
    """hᵢ(τᵢ), the last hidden layer, of which the values are the outputs."""
    said: Said | None = None
    """What the agents tell each other, if they have; the values are then moved by it."""


class Utilities(eqx.Module):
    """A number for each action of every agent, its utility Qᵢ(τᵢ, ·) or its logit (or for each
    dimension of its action), from the agent's own observations, from its last action if it recalls
    it, and from what the others tell it if they do.

    The memory is the body's and, behind it, the last action, a discrete one one-hot.
    """

    body: Body
    messages: Messages | None
    recalls: int = eqx.field(static=True)
    """Actions among which the last one is an input, or dimensions of it; 0 if it is none."""

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent memory"]:
        """The memory before an episode's first step."""
        return jnp.zeros((*batch, self.body.agents, self.hidden_state))

    @property
    def hidden_state(self) -> int:
        """Features of the memory."""
        return self.body.hidden_state + self.recalls

    def forget(
        self, hidden_state: Float[Array, "*batch agent memory"]
    ) -> Float[Array, "*batch agent memory"]:
        """The memory of the last action alone."""
        return hidden_state.at[..., : self.body.hidden_state].set(0.0)

    def update_state(
        self, hidden_state: Float[Array, "*batch agent memory"], action: Actions
    ) -> Float[Array, "*batch agent memory"]:
        """The memory after `action`."""
        hidden = hidden_state[..., : self.body.hidden_state]
        return jnp.concatenate([hidden, encode(action, self.recalls)], -1)

    def unroll(
        self,
        obs: Float[Array, "time *batch agent feature"],
        action: Int[Array, "time *batch agent"] | Float[Array, "time *batch agent dimension"],
        hidden_state: Float[Array, "*batch agent memory"],
        is_first: Bool[Array, "time *batch"],
    ) -> tuple[Views, Float[Array, "time *batch agent memory"]]:
        """The agents' own views at consecutive steps, where `action` is done at each, and the
        memory after each."""
        done = encode(action, self.recalls)
        last = jnp.concatenate([hidden_state[None, ..., self.body.hidden_state :], done[:-1]])
        x = jnp.concatenate([obs, jnp.where(is_first[..., None, None], 0.0, last)], -1)
        context, hidden = self.body.context(
            x, hidden_state[..., : self.body.hidden_state], is_first
        )
        views = Views(self.body.finish(context), self.body.known(context, hidden))
        return views, jnp.concatenate([hidden, done], -1)

    def __call__(
        self,
        obs: Float[Array, "*batch agent feature"],
        hidden_state: Float[Array, "*batch agent memory"],
        is_first: Bool[Array, "*batch"],
    ) -> tuple[Views, Float[Array, "*batch agent memory"]]:
        """One step: the agents' own views now, and the memory before it is told what is done."""
        nothing = jnp.zeros((1, *obs.shape[:-1]), int)
        views, hidden_states = self.unroll(obs[None], nothing, hidden_state, is_first[None])
        return jax.tree.map(lambda x: x[0], views), hidden_states[0]

    def hear(self, views: Views, key: PRNGKeyArray | None = None) -> Views:
        """The views after the others' messages, noisy ones if there is a `key`."""
        if self.messages is None:
            return views
        said = self.messages(views.hidden, key)
        return views._replace(values=views.values + said.received, said=said)


class GreedyActor(eqx.Module):
    """What is best by the agents' utilities, but for a share ε of random actions."""

    utilities: Utilities
    epsilon: Float[Array, ""]

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent memory"]:
        """The memory before an episode's first step."""
        return self.utilities.initial_state(batch)

    def update_state(
        self, hidden_state: Float[Array, "*batch agent memory"], action: Actions
    ) -> Float[Array, "*batch agent memory"]:
        """The memory after `action`."""
        return self.utilities.update_state(hidden_state, action)

    def __call__(
        self,
        observation: Observation,
        hidden_state: Float[Array, "*batch agent memory"],
        is_first: Bool[Array, "*batch"],
        key: PRNGKeyArray | None = None,
    ) -> tuple[EpsilonGreedy | Perturbed, Float[Array, "*batch agent memory"]]:
        """One step: the policies now and the memory after."""
        views, hidden_state = self.utilities(observation.obs, hidden_state, is_first)

        def policy(key: PRNGKeyArray | None) -> EpsilonGreedy:
            heard = self.utilities.hear(views, key)
            avail = choosable(observation.avail, observation.alive)
            return EpsilonGreedy(possible(heard.values, avail), self.epsilon)

        if key is None or self.utilities.messages is None:
            return policy(None), hidden_state
        return Perturbed(policy(key), policy(None)), hidden_state


class DeterministicActor(eqx.Module):
    """π(·|τᵢ) of every agent whose actor climbs a critic: the softmax of its logits, or, of
    continuous actions, a = tanh(·) and noise about it."""

    logits: Utilities
    """What is put through a softmax, or through tanh."""
    noise: float | None = eqx.field(static=True, default=None)
    """Deviation of continuous actions from what is best; none: the actions are discrete."""

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent memory"]:
        """The memory before an episode's first step."""
        return self.logits.initial_state(batch)

    def update_state(
        self, hidden_state: Float[Array, "*batch agent memory"], action: Actions
    ) -> Float[Array, "*batch agent memory"]:
        """The memory after `action`."""
        return self.logits.update_state(hidden_state, action)

    def policy(
        self, logits: Float[Array, "*batch agent out"], observation: Observation
    ) -> Categorical | Gaussian:
        """The policies of these logits."""
        if self.noise is None:
            return Categorical.masked(logits, observation.avail, observation.alive)
        mean = jnp.tanh(logits)
        noise = jnp.full_like(mean, self.noise)
        return Gaussian.masked(mean, noise, observation.avail, observation.alive)

    def __call__(
        self,
        observation: Observation,
        hidden_state: Float[Array, "*batch agent memory"],
        is_first: Bool[Array, "*batch"],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Categorical | Gaussian, Float[Array, "*batch agent memory"]]:
        """One step: the policies now, and the memory after."""
        views, hidden_state = self.logits(observation.obs, hidden_state, is_first)
        return self.policy(views.values, observation), hidden_state


AnyActor = Actor | GreedyActor | DeterministicActor


def possible(
    values: Float[Array, "*batch action"], avail: Bool[Array, "*batch action"]
) -> Float[Array, "*batch action"]:
    """`values` of the actions that may be chosen, far less than any value for the others."""
    return jnp.where(avail, values, IMPOSSIBLE)
