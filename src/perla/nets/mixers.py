"""Mixers: from the agents' utilities Qᵢ(τᵢ, aᵢ) to the value of a joint action.

A mixer is told, at every moment, the utilities of the actions asked about (`chosen`), those of each
agent's best actions (`best`), the actions, the state, and what utilities are read off (`hidden`).
What it returns has an axis of values: one, Q_tot; or, where nothing is mixed, each agent's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.nets.layers import MLP, SMALL, Init, Linear, expand_dims_like, product
from perla.types import Array, Float, Int, PRNGKeyArray


class IQLMixer(eqx.Module):
    """Qᵢ: every agent for itself (IQL)."""

    def __call__(
        self,
        chosen: Float[Array, "*batch agent"],
        best: Float[Array, "*batch agent"],
        action: Int[Array, "*batch agent"],
        state: Float[Array, "*batch feature"],
        hidden: Float[Array, "*batch agent known"],
    ) -> Float[Array, "*batch agent"]:
        """The agents' own values."""
        return chosen


class VDNMixer(eqx.Module):
    """Q_tot = Σᵢ Qᵢ (Sunehag et al., 2018)."""

    def __call__(
        self,
        chosen: Float[Array, "*batch agent"],
        best: Float[Array, "*batch agent"],
        action: Int[Array, "*batch agent"],
        state: Float[Array, "*batch feature"],
        hidden: Float[Array, "*batch agent known"],
    ) -> Float[Array, "*batch 1"]:
        """The joint action's value."""
        return chosen.sum(-1, keepdims=True)


class QMIXMixer(eqx.Module):
    """Q_tot = |w₂(s)|·ELU(|W₁(s)|ᵀ q + b₁(s)) + V(s) (Rashid et al., 2018)."""

    W1: MLP
    b1: MLP
    w2: MLP
    V: MLP

    @classmethod
    def create(
        cls, key: PRNGKeyArray, *, agents: int, state: int, embed: int, hypernet: int, init: Init
    ) -> QMIXMixer:
        """`embed`: the mixer's width; `hypernet`: that of the networks that make its weights."""
        keys = jax.random.split(key, 4)
        return cls(
            # However wide it is, it is at first as steep.
            W1=dense(keys[0], state, (hypernet,), agents * embed, init, gain=embed**-0.5),
            b1=dense(keys[1], state, (), embed, init, gain=SMALL),
            w2=dense(keys[2], state, (hypernet,), embed, init, gain=embed**-0.5),
            V=dense(keys[3], state, (embed,), 1, init, gain=SMALL),
        )

    def __call__(
        self,
        chosen: Float[Array, "*batch agent"],
        best: Float[Array, "*batch agent"],
        action: Int[Array, "*batch agent"],
        state: Float[Array, "*batch feature"],
        hidden: Float[Array, "*batch agent known"],
    ) -> Float[Array, "*batch 1"]:
        """The joint action's value, which never falls where one of `chosen` rises."""
        W1 = jnp.abs(self.W1(state)).reshape(*chosen.shape, -1)
        # h = ELU(|W₁(s)|ᵀ q + b₁(s))
        h = jax.nn.elu((chosen[..., None] * W1).sum(-2) + self.b1(state))
        # Q_tot = |w₂(s)|·h + V(s)
        return (jnp.abs(self.w2(state)) * h).sum(-1, keepdims=True) + self.V(state)


class QPLEXMixer(eqx.Module):
    """Q_tot = Σᵢ Q′ᵢ + Σᵢ (λᵢ(s, a) − 1) (Q′ᵢ − V′ᵢ), λ > 0 (Wang et al., 2021).

    Q′ᵢ = wᵢ(s) Qᵢ + bᵢ(s) with w > 0, and V′ᵢ is that of the agent's best action: no joint action
    is worth more than the agents' best ones, which are worth Σᵢ V′ᵢ.
    """

    w: MLP
    b: MLP
    key: MLP
    agent: MLP
    action: MLP
    actions: int = eqx.field(static=True)

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        *,
        agents: int,
        state: int,
        actions: int,
        kernels: int,
        layers: int,
        hidden: int,
        init: Init,
    ) -> QPLEXMixer:
        """`kernels` terms in λ, each of networks of `layers` layers whose inner ones have width
        `hidden`."""
        keys = jax.random.split(key, 5)
        inner = (hidden,) * (layers - 1)
        return cls(
            # At first all weights are about 1, and the mixture about the sum.
            w=dense(keys[0], state, (hidden,), agents, init, gain=SMALL, about=1.0),
            b=dense(keys[1], state, (hidden,), agents, init, gain=SMALL),
            key=dense_each(keys[2], kernels, state, inner, 1, init, gain=SMALL, about=4 / kernels),
            agent=dense_each(keys[3], kernels, state, inner, agents, init, gain=SMALL),
            action=dense_each(
                keys[4], kernels, state + agents * actions, inner, agents, init, gain=SMALL
            ),
            actions=actions,
        )

    def __call__(
        self,
        chosen: Float[Array, "*batch agent"],
        best: Float[Array, "*batch agent"],
        action: Int[Array, "*batch agent"],
        state: Float[Array, "*batch feature"],
        hidden: Float[Array, "*batch agent known"],
    ) -> Float[Array, "*batch 1"]:
        """The joint action's value. Its gradient reaches the utilities through Σᵢ Q′ᵢ alone."""
        # Q′ᵢ = wᵢ(s) Qᵢ + bᵢ(s),   A′ᵢ = Q′ᵢ − V′ᵢ = wᵢ(s) (Qᵢ − max Qᵢ)
        w = jnp.abs(self.w(state)) + POSITIVE
        advantage = jax.lax.stop_gradient(w * (chosen - best))
        # Q_tot = Σᵢ Q′ᵢ + Σᵢ (λᵢ − 1) A′ᵢ
        total = w * chosen + self.b(state) + (self.weights(action, state) - 1) * advantage
        return total.sum(-1, keepdims=True)

    def weights(
        self, action: Int[Array, "*batch agent"], state: Float[Array, "*batch feature"]
    ) -> Float[Array, "*batch agent"]:
        """λᵢ(s, a) = Σₖ |keyₖ(s)| σ(agentₖ(s))ᵢ σ(actionₖ(s, a))ᵢ."""
        one_hot = jax.nn.one_hot(action, self.actions)
        joint = jnp.concatenate([state, one_hot.reshape(*state.shape[:-1], -1)], -1)

        def term(key: MLP, agent: MLP, act: MLP) -> Float[Array, "*batch agent"]:
            size = jnp.abs(key(state)) + POSITIVE
            return size * jax.nn.sigmoid(agent(state)) * jax.nn.sigmoid(act(joint))

        return jax.vmap(term)(self.key, self.agent, self.action).sum(0)


class Central(eqx.Module):
    """Q̂(s, Q₁, …, Q_N) = f(s, q) + V(s), bound to nothing (Rashid et al., 2020)."""

    f: MLP
    V: MLP

    @classmethod
    def create(
        cls, key: PRNGKeyArray, *, agents: int, state: int, hidden: int, init: Init
    ) -> Central:
        """Three hidden layers of width `hidden`, and one for V."""
        key_f, key_v = jax.random.split(key)
        return cls(
            f=dense(key_f, state + agents, (hidden,) * 3, 1, init, gain=SMALL),
            V=dense(key_v, state, (hidden,), 1, init, gain=SMALL),
        )

    def __call__(
        self,
        chosen: Float[Array, "*batch agent"],
        best: Float[Array, "*batch agent"],
        action: Int[Array, "*batch agent"],
        state: Float[Array, "*batch feature"],
        hidden: Float[Array, "*batch agent known"],
    ) -> Float[Array, "*batch 1"]:
        """The joint action's value."""
        return self.f(jnp.concatenate([state, chosen], -1)) + self.V(state)


class QTRANMixer(eqx.Module):
    """Q(s, Σᵢ e(hᵢ, aᵢ)), bound to nothing, beside Σᵢ Qᵢ + V(s), which is held to it (QTRAN; Son et
    al., 2019)."""

    e: MLP
    Q: MLP
    V: MLP

    @classmethod
    def create(
        cls, key: PRNGKeyArray, *, known: int, actions: int, state: int, hidden: int, init: Init
    ) -> QTRANMixer:
        """`known`: features of h; `hidden`: width of all hidden layers and of the encodings e."""
        key_e, key_q, key_v = jax.random.split(key, 3)
        return cls(
            e=dense(key_e, known, (hidden,), hidden, init, others=actions),
            Q=dense(key_q, state, (hidden, hidden), 1, init, others=hidden, gain=SMALL),
            V=dense(key_v, state, (hidden, hidden), 1, init, gain=SMALL),
        )

    def __call__(
        self,
        chosen: Float[Array, "*batch agent"],
        best: Float[Array, "*batch agent"],
        action: Int[Array, "*batch agent"],
        state: Float[Array, "*batch feature"],
        hidden: Float[Array, "*batch agent known"],
    ) -> Float[Array, "*batch 1"]:
        """The joint action's value."""
        encoded = self.e.finish(self.e.begin(hidden) + self.e.rows[action])
        return self.Q.finish(self.Q.begin(state) + product(encoded.sum(-2), self.Q.rows))

    def gap(
        self,
        chosen: Float[Array, "*batch agent"],
        action: Int[Array, "*batch agent"],
        state: Float[Array, "*batch feature"],
        hidden: Float[Array, "*batch agent known"],
    ) -> Float[Array, "*batch 1"]:
        """D(s, a) = Σᵢ Qᵢ + V(s) − Q(s, a), Q being fixed."""
        Q = jax.lax.stop_gradient(self(chosen, chosen, action, state, hidden))
        return chosen.sum(-1, keepdims=True) + self.V(state) - Q

    def gaps(
        self,
        utilities: Float[Array, "*batch agent action"],
        chosen: Float[Array, "*batch agent"],
        action: Int[Array, "*batch agent"],
        state: Float[Array, "*batch feature"],
        hidden: Float[Array, "*batch agent known"],
    ) -> Float[Array, "*batch agent action"]:
        """D(s, a′ᵢ, a₋ᵢ) of everything that each agent might have done instead, Q being fixed."""
        begun = self.e.begin(hidden)[..., None, :]
        every = self.e.finish(begun + expand_dims_like(self.e.rows, begun))
        encoded = jnp.take_along_axis(every, action[..., None, None], -2)
        # Σⱼ e(hⱼ, aⱼ) − e(hᵢ, aᵢ) + e(hᵢ, a′ᵢ), and the same of the utilities
        joint = encoded.sum(-3, keepdims=True) - encoded + every
        total = chosen.sum(-1)[..., None, None] - chosen[..., None] + utilities
        begun = self.Q.begin(state)[..., None, None, :]
        Q = jax.lax.stop_gradient(self.Q.finish(begun + product(joint, self.Q.rows)))
        return total + self.V(state)[..., None] - Q[..., 0]


AnyMixer = IQLMixer | VDNMixer | QMIXMixer | QPLEXMixer | Central | QTRANMixer

POSITIVE = 1e-10
"""What is added to weights that must not be zero."""


def dense(
    key: PRNGKeyArray,
    features: int,
    hidden: tuple[int, ...],
    outputs: int,
    init: Init,
    *,
    others: int = 0,
    gain: float = 1.0,
    about: float = 0.0,
) -> MLP:
    """A network with hidden layers of these widths; `others`: further inputs, which join later.
    Its outputs are scaled by `gain` and at first lie `about` this, but with PyTorch's weights.

    States come as they are, of any size. Orthogonal layers would hand all of it on, and a mixer
    that learns so much faster than the utilities leaves them nothing: its hidden layers are drawn
    as PyTorch draws them.
    """
    key_inner, key_head = jax.random.split(key)
    net = MLP.create(
        key_inner, features, others, hidden, outputs, init="torch", gain=gain, norm=False
    )
    if init == "torch":
        return net
    *inner, last = net.layers
    rows, columns = last.weight.shape
    head = Linear.create(key_head, rows, columns, init, gain)
    return replace(net, layers=(*inner, replace(head, bias=head.bias + about)))


def dense_each(key: PRNGKeyArray, count: int, *args: Any, **kwargs: Any) -> MLP:
    """`count` networks, stacked."""
    return jax.vmap(lambda key: dense(key, *args, **kwargs))(jax.random.split(key, count))
