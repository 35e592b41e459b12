"""Critics: of one agent's view, of the state, of either and the others' joint action, of the state
and everybody's."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.distributions import features
from perla.envs.protocol import Observation
from perla.nets.body import Body
from perla.nets.layers import expand_dims_like
from perla.types import Array, Bool, Float, Int, PRNGKeyArray

JointAction = Int[Array, "*batch_or_none agent"] | Float[Array, "*batch_or_none agent dimension"]
"""What all agents do; without batch axes, the same in every state."""
MERGED = 16
"""Agents up to which their sum is computed anew for each of them, merged with what it is for: 1.3
to 1.9 times as fast as to write it down; with 20 agents it is as much slower, or more."""


class Critic(eqx.Module):
    """V(·) or V(·, a₋ᵢ) of every agent (or, with an output for every own action, Q).

    What does not depend on the others' actions is computed once a state, by `context`; `joint`
    adds the actions and computes the rest. Agent i never sees its own entry of a joint action.
    """

    body: Body
    sees: Literal["local", "global"] = eqx.field(static=True)
    actions: int = eqx.field(static=True)
    """Actions of each other agent that the critic is told of, or dimensions of a continuous one; 0
    for a critic of the state alone."""

    def context(
        self,
        observation: Observation,
        hidden_state: Float[Array, "*batch agent hidden"],
        is_first: Bool[Array, "time *batch"],
    ) -> tuple[Float[Array, "time *batch agent width"], Float[Array, "time *batch agent hidden"]]:
        """All that does not depend on the others' actions at consecutive steps, and the memory
        after each."""
        local = self.sees == "local"
        x = observation.obs if local else observation.state[..., None, :]
        return self.body.context(x, hidden_state, is_first)

    def alone(
        self, context: Float[Array, "*batch agent width"]
    ) -> Float[Array, "*batch agent out"]:
        """The outputs of a critic that sees no actions."""
        return self.body.finish(context)

    def joint(
        self,
        context: Float[Array, "*batch agent width"],
        actions: JointAction,
    ) -> Float[Array, "*batch agent out"]:
        """The outputs for a joint action."""
        return self.body.output(self.meet(context, actions))

    def meet(
        self,
        context: Float[Array, "*batch agent width"],
        actions: JointAction,
    ) -> Float[Array, "*batch agent width"]:
        """The last hidden layer's output for a joint action, in which the outputs are linear.

        A joint action without batch axes serves every state; its part is then computed once.
        """
        agents, rows = self.body.agents, self.body.rows
        if self.body.groups is not None:
            own = jnp.repeat(jnp.eye(agents, dtype=bool), self.actions, axis=-1)
            rows = jnp.where(own[..., None], 0.0, rows).swapaxes(0, 1)  # [row, agent, width]
            each = self.embed_actions(rows, actions)
            seen = reduce(jnp.add, (each[..., m, :, :] for m in range(agents)))
        else:
            each = self.embed_actions(rows, actions)
            seen = total(each) - each
        return self.body.hidden(context + expand_dims_like(seen, context))

    def dealt(self) -> Critic:
        """The same for all that comes after `context`, with parameters for each agent where agents
        share some."""
        return replace(self, body=self.body.dealt())

    def embed_actions(
        self, rows: Float[Array, "other ..."], actions: JointAction
    ) -> Float[Array, "..."]:
        """What each agent's action adds to the layer that it joins: its row of `rows`, looked up,
        or, of a continuous one, the product with its rows."""
        agents = self.body.agents
        if jnp.issubdtype(actions.dtype, jnp.integer):
            which = actions + expand_dims_like(self.actions * jnp.arange(agents), actions)
            return rows.at[which].get(mode="clip")
        own = rows.reshape(agents, self.actions, -1)
        product = jnp.einsum("...md,mdw->...mw", actions, own)
        return product.reshape(*product.shape[:-1], *rows.shape[1:])

    def read(self, met: Float[Array, "*batch agent width"]) -> Float[Array, "*batch agent out"]:
        """The outputs, linear in what `meet` returned."""
        return self.body.output(met)


class Multilinear(eqx.Module):
    """v₀(·) + Σᵣ wᵣ(·) (∏_{m≠i} (1 + ψₘᵣ(aₘ)) − 1) of every agent.

    Where the others choose independently, the average of the product is the product of averages:
    the average over joint actions is the value at the average of their features, which for
    discrete actions are the policies' probabilities.
    """

    inner: Critic
    """Its outputs are the v₀ and, for each of them, the terms' weights."""
    effects: Float[Array, "*net agent feature rank"]
    """ψ, linear in an action's features: its one-hot row, or of a continuous one its dimensions and
    their squares. Where there are several nets, one set for each."""

    @classmethod
    def create(cls, key: PRNGKeyArray, inner: Critic, inputs: int, rank: int) -> Multilinear:
        """A critic of `inputs` features of each action, whose products are at first 1 give or take
        ½ where the features are one-hot."""
        agents, groups = inner.body.agents, inner.body.groups
        nets = () if groups is None else (inner.body.nets,)
        deviation = 0.5 / max(agents - 1, 1) ** 0.5
        return cls(inner, deviation * jax.random.normal(key, (*nets, agents, inputs, rank)))

    def dealt(self) -> Multilinear:
        """As of a `Critic`: the same after `context`."""
        return replace(self, inner=self.inner.dealt(), effects=self.body.own(self.effects))

    @property
    def body(self) -> Body:
        """The network."""
        return self.inner.body

    def context(
        self,
        observation: Observation,
        hidden_state: Float[Array, "*batch agent hidden"],
        is_first: Bool[Array, "time *batch"],
    ) -> tuple[Float[Array, "time *batch agent width"], Float[Array, "time *batch agent hidden"]]:
        """As of a `Critic`: all that does not depend on the others' actions."""
        return self.inner.context(observation, hidden_state, is_first)

    def joint(
        self,
        context: Float[Array, "*batch agent width"],
        actions: JointAction,
    ) -> Float[Array, "*batch agent out"]:
        """The outputs for a joint action."""
        return self.expected(context, features(actions, self.effects.shape[-2]))

    meet = joint

    def read(self, met: Float[Array, "*batch agent out"]) -> Float[Array, "*batch agent out"]:
        """What `meet` returned: the outputs themselves."""
        return met

    def expected(
        self,
        context: Float[Array, "*batch agent width"],
        moments: Float[Array, "*batch_or_none agent feature"],
    ) -> Float[Array, "*batch agent out"]:
        """The outputs, averaged over policies of these moments."""
        rank = self.effects.shape[-1]
        v, w = self.weights(context, rank)
        products = self.products(moments)[..., None, :]
        # Over √R, so that the terms together are of the size of one.
        return v + (w * expand_dims_like(products - 1.0, w)).sum(-1) / rank**0.5

    def weights(
        self, context: Float[Array, "*batch agent width"], rank: int
    ) -> tuple[Float[Array, "*batch agent out"], Float[Array, "*batch agent out rank"]]:
        """v₀ and w."""
        y = self.inner.alone(context)
        out = y.shape[-1] // (1 + rank)
        return y[..., :out], y[..., out:].reshape(*y.shape[:-1], out, rank)

    def products(
        self, moments: Float[Array, "*batch_or_none agent feature"]
    ) -> Float[Array, "*batch_or_none agent rank"]:
        """∏_{m≠i} (1 + E ψₘᵣ(aₘ)) for every i."""
        if self.body.groups is not None:
            effects = self.body.own(self.effects)
            factors = 1.0 + jnp.einsum("...ma,imar->...imr", moments, effects)
            own = jnp.eye(self.body.agents, dtype=bool)[..., None]
            return jnp.where(expand_dims_like(own, factors), 1.0, factors).prod(-2)
        factors = 1.0 + jnp.einsum("...ma,mar->m...r", moments, self.effects)
        return jnp.moveaxis(leave_one_out(factors), 0, -2)


class JointCritic(eqx.Module):
    """Qᵢ(s, a₁, …, a_N) of every agent, in which a gradient flows to the actions."""

    body: Body
    """Its other inputs are all agents' actions, side by side."""

    def __call__(
        self,
        state: Float[Array, "*batch feature"],
        actions: Float[Array, "*batch agent_or_1 other dimension"],
    ) -> Float[Array, "*batch agent"]:
        """The values of joint actions: one that all agents' critics are asked about, or one for
        each."""
        batch = state.shape[:-1]
        context, _ = self.body.context(
            state[None, ..., None, :], self.body.initial_state(batch), jnp.zeros((1, *batch), bool)
        )
        joint = actions.reshape(*batch, actions.shape[-3], -1)
        return self.body.finish(context[0] + self.body.join(joint))[..., 0]


AnyCritic = Critic | Multilinear


def total(each: Float[Array, "*batch agent width"]) -> Float[Array, "*batch 1 width"]:
    """The sum over agents."""
    agents = each.shape[-2]
    if agents > MERGED:
        return each.sum(-2, keepdims=True)
    # Agent by agent, which compilers merge with what follows; a sum would stand alone.
    return reduce(jnp.add, (each[..., m : m + 1, :] for m in range(agents)))


def leave_one_out(
    factors: Float[Array, "agent *batch_or_none rank"],
) -> Float[Array, "agent *batch_or_none rank"]:
    """The product of all factors but each agent's own, without dividing: a factor may be zero."""

    def multiply(product, factor):
        return product * factor, product

    one = jnp.ones_like(factors[0])
    _, before = jax.lax.scan(multiply, one, factors)
    _, after = jax.lax.scan(multiply, one, factors, reverse=True)
    return before * after
