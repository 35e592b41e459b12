"""Actors: from each agent's observations to its policy.

The caller holds an actor's hidden state: it starts with `initial_state`, passes the hidden state in
at every step and updates it with the action by `update_state`. An actor with noise in its policy
(MAIC's latents) samples it from the `key` of a step; without a key there is no noise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.distributions import (
    MASKED_LOGIT,
    Categorical,
    EpsilonGreedy,
    Gaussian,
    JointPolicy,
    Perturbed,
    Policy,
    Squashed,
    action_mask,
    encode,
)
from perla.envs.protocol import Observation
from perla.nets.body import Body
from perla.nets.layers import expand_dims_like
from perla.nets.messages import Messages, SentMessages
from perla.nets.terms import LossTerm
from perla.types import Actions, Array, Bool, Float, Int, PRNGKeyArray


class Actor(eqx.Module):
    """π(·|τᵢ) of every agent, from its own observations only (decentralised execution).

    The body's outputs are the logits of discrete actions, or the means of continuous ones.
    """

    body: Body
    """The network of all agents."""
    log_std: Float[Array, "*net dimension"] | None = None
    """log σ of continuous actions, independent of the state, one row for each parameter set; none:
    the actions are discrete."""
    tanh_squash: bool = eqx.field(static=True, default=False)
    """Squash continuous actions by tanh."""

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent hidden"]:
        """The hidden state before an episode's first step."""
        return self.body.initial_state(batch)

    def unstack(self) -> Actor:
        """Single-agent actors, stacked on a leading axis of all parameters, for `jax.vmap`."""
        log_std = jax.tree.map(lambda x: x[:, None], self.log_std)
        return replace(self, body=self.body.unstack(), log_std=log_std)

    def stack(self, actors: Actor) -> Actor:
        """This actor with the parameters of `actors`: the inverse of `unstack`."""
        body = replace(self.body, net=actors.body.net)
        log_std = jax.tree.map(lambda x: x[:, 0], actors.log_std)
        return replace(self, body=body, log_std=log_std)

    def update_state(
        self, hidden_state: Float[Array, "*batch agent hidden"], action: Actions
    ) -> Float[Array, "*batch agent hidden"]:
        """The hidden state after `action`: unchanged, as actions are not inputs of the policies."""
        return hidden_state

    def unroll(
        self,
        observation: Observation,
        hidden_state: Float[Array, "*batch agent hidden"],
        is_first: Bool[Array, "time *batch"],
    ) -> tuple[Policy, Float[Array, "time *batch agent hidden"]]:
        """The policies at consecutive steps and the hidden state after each; `observation` leads
        with the time axis."""
        context, hidden_states = self.body.context(observation.obs, hidden_state, is_first)
        return self.policy(self.body.finish(context), observation), hidden_states

    def policy(self, outputs: Float[Array, "*batch agent out"], observation: Observation) -> Policy:
        """The policies with the body's outputs as parameters."""
        if self.log_std is None:
            return Categorical.masked(outputs, observation.avail, observation.alive)
        std = expand_dims_like(jnp.exp(self.body.gather(self.log_std)), outputs)
        std = jnp.broadcast_to(std, outputs.shape)
        gaussian = Gaussian.masked(outputs, std, observation.avail, observation.alive)
        return Squashed(gaussian) if self.tanh_squash else gaussian

    def __call__(
        self,
        observation: Observation,
        hidden_state: Float[Array, "*batch agent hidden"],
        is_first: Bool[Array, "*batch"],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Policy, Float[Array, "*batch agent hidden"]]:
        """One step: the policies, which have no noise, and the hidden state after it."""
        one = jax.tree.map(lambda x: x[None], observation)
        policy, hidden_states = self.unroll(one, hidden_state, is_first[None])
        return jax.tree.map(lambda x: x[0], policy), hidden_states[0]


class AgentOutputs(NamedTuple):
    """The outputs of the agents' networks."""

    values: Float[Array, "*batch agent action"]
    """Qᵢ(τᵢ, ·)."""
    hidden: Float[Array, "*batch agent hidden"]
    """hᵢ(τᵢ), the last hidden layer, in which the values are linear."""
    messages: SentMessages | None = None
    """The agents' messages, if they communicate; the values then include them."""


class Utilities(eqx.Module):
    """Qᵢ(τᵢ, ·): one number for each action of every agent, its utility or logit (or for each
    dimension of a continuous action), from the agent's own observations and, optionally, its last
    action and the other agents' messages.

    The hidden state is that of the body, followed by the encoded last action.
    """

    body: Body
    messages: Messages | None
    last_action_size: int = eqx.field(static=True)
    """Width of the encoded last action, which is an input; 0 if it is none."""

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent memory"]:
        """The hidden state before an episode's first step."""
        return jnp.zeros((*batch, self.body.agents, self.hidden_state_size))

    @property
    def hidden_state_size(self) -> int:
        """Features of the hidden state."""
        return self.body.hidden_state_size + self.last_action_size

    def reset_recurrent(
        self, hidden_state: Float[Array, "*batch agent memory"]
    ) -> Float[Array, "*batch agent memory"]:
        """`hidden_state` with zeros in place of the body's part; the last action stays."""
        return hidden_state.at[..., : self.body.hidden_state_size].set(0.0)

    def update_state(
        self, hidden_state: Float[Array, "*batch agent memory"], action: Actions
    ) -> Float[Array, "*batch agent memory"]:
        """The hidden state after `action`."""
        recurrent = hidden_state[..., : self.body.hidden_state_size]
        return jnp.concatenate([recurrent, encode(action, self.last_action_size)], -1)

    def unroll(
        self,
        obs: Float[Array, "time *batch agent feature"],
        action: Int[Array, "time *batch agent"] | Float[Array, "time *batch agent dimension"],
        hidden_state: Float[Array, "*batch agent memory"],
        is_first: Bool[Array, "time *batch"],
    ) -> tuple[AgentOutputs, Float[Array, "time *batch agent memory"]]:
        """The agents' outputs before communication at consecutive steps, with `action` taken at
        each, and the hidden state after each."""
        size = self.body.hidden_state_size
        encoded = encode(action, self.last_action_size)
        last = jnp.concatenate([hidden_state[None, ..., size:], encoded[:-1]])
        x = jnp.concatenate([obs, jnp.where(is_first[..., None, None], 0.0, last)], -1)
        context, recurrent = self.body.context(x, hidden_state[..., :size], is_first)
        outputs = AgentOutputs(self.body.finish(context), self.body.last_hidden(context, recurrent))
        return outputs, jnp.concatenate([recurrent, encoded], -1)

    def __call__(
        self,
        obs: Float[Array, "*batch agent feature"],
        hidden_state: Float[Array, "*batch agent memory"],
        is_first: Bool[Array, "*batch"],
    ) -> tuple[AgentOutputs, Float[Array, "*batch agent memory"]]:
        """One step: the agents' outputs before communication, and the hidden state, still without
        the action of this step (see `update_state`)."""
        no_action = jnp.zeros((1, *obs.shape[:-1]), int)
        outputs, hidden_states = self.unroll(obs[None], no_action, hidden_state, is_first[None])
        return jax.tree.map(lambda x: x[0], outputs), hidden_states[0]

    def communicate(self, outputs: AgentOutputs, key: PRNGKeyArray | None = None) -> AgentOutputs:
        """The outputs after communication; the messages are noisy if there is a `key`."""
        if self.messages is None:
            return outputs
        messages = self.messages(outputs.hidden, key)
        return outputs._replace(values=outputs.values + messages.received, messages=messages)

    def losses(
        self, outputs: AgentOutputs, greedy: Int[Array, "*batch agent"]
    ) -> dict[str, LossTerm]:
        """The loss terms of the messages in `outputs`, given the agents' `greedy` actions."""
        if self.messages is None or outputs.messages is None:
            return {}
        return self.messages.losses(outputs.hidden, outputs.messages, greedy)


class GreedyActor(eqx.Module):
    """The ε-greedy policies of the agents' utilities."""

    utilities: Utilities
    epsilon: Float[Array, ""]

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent memory"]:
        """The hidden state before an episode's first step."""
        return self.utilities.initial_state(batch)

    def update_state(
        self, hidden_state: Float[Array, "*batch agent memory"], action: Actions
    ) -> Float[Array, "*batch agent memory"]:
        """The hidden state after `action`."""
        return self.utilities.update_state(hidden_state, action)

    def __call__(
        self,
        observation: Observation,
        hidden_state: Float[Array, "*batch agent memory"],
        is_first: Bool[Array, "*batch"],
        key: PRNGKeyArray | None = None,
    ) -> tuple[EpsilonGreedy | Perturbed, Float[Array, "*batch agent memory"]]:
        """One step: the policies and the hidden state after it.

        With noisy messages, samples come from the noisy values and the mode from those without
        noise.
        """
        outputs, hidden_state = self.utilities(observation.obs, hidden_state, is_first)

        def policy(key: PRNGKeyArray | None) -> EpsilonGreedy:
            values = self.utilities.communicate(outputs, key).values
            mask = action_mask(observation.avail, observation.alive)
            return EpsilonGreedy(mask_values(values, mask), self.epsilon)

        if key is None or self.utilities.messages is None:
            return policy(None), hidden_state
        return Perturbed(policy(key), policy(None)), hidden_state


class DeterministicActor(eqx.Module):
    """π(·|τᵢ) of every agent, for deterministic policy gradients with a centralised critic per
    agent: the softmax of logits, or, for continuous actions, a = tanh(·) plus exploration noise."""

    logits: Utilities
    """The inputs of the softmax or of tanh."""
    noise: float | None = eqx.field(static=True, default=None)
    """Standard deviation of the exploration noise of continuous actions; none: the actions are
    discrete."""

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent memory"]:
        """The hidden state before an episode's first step."""
        return self.logits.initial_state(batch)

    def update_state(
        self, hidden_state: Float[Array, "*batch agent memory"], action: Actions
    ) -> Float[Array, "*batch agent memory"]:
        """The hidden state after `action`."""
        return self.logits.update_state(hidden_state, action)

    def policy(
        self, logits: Float[Array, "*batch agent out"], observation: Observation
    ) -> Categorical | Gaussian:
        """The policies with these logits."""
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
        """One step: the policies and the hidden state after it."""
        outputs, hidden_state = self.logits(observation.obs, hidden_state, is_first)
        return self.policy(outputs.values, observation), hidden_state


@runtime_checkable
class AnyActor(Protocol):
    """The policies of all agents, as rollouts and evaluations use them: a pytree of arrays."""

    def initial_state(self, batch: tuple[int, ...]) -> Float[Array, "*batch agent hidden"]:
        """The hidden state before an episode's first step."""
        ...

    def update_state(
        self, hidden_state: Float[Array, "*batch agent hidden"], action: Actions
    ) -> Float[Array, "*batch agent hidden"]:
        """The hidden state after `action`."""
        ...

    def __call__(
        self,
        observation: Observation,
        hidden_state: Float[Array, "*batch agent hidden"],
        is_first: Bool[Array, "*batch"],
        key: PRNGKeyArray | None = None,
    ) -> tuple[JointPolicy, Float[Array, "*batch agent hidden"]]:
        """One step: the policies and the hidden state after it."""
        ...


def mask_values(
    values: Float[Array, "*batch action"], mask: Bool[Array, "*batch action"]
) -> Float[Array, "*batch action"]:
    """`values` of the actions in the mask, and a number far below any value for all others."""
    return jnp.where(mask, values, MASKED_LOGIT)
