"""QPLEX: duplex duelling."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from perla.nets.layers import MLP, SMALL, Init
from perla.nets.mixers.base import POSITIVE, Mixer, MixerInput, dense, dense_stack
from perla.types import Array, Float, Int, PRNGKeyArray


class QPLEXMixer(Mixer):
    """Q_tot = Σᵢ Q′ᵢ + Σᵢ (λᵢ(s, a) − 1) (Q′ᵢ − V′ᵢ), λ > 0 (Wang et al., 2021).

    Q′ᵢ = wᵢ(s) Qᵢ + bᵢ(s) with w > 0, and V′ᵢ is that of the agent's best action: the agents' best
    actions are the best joint action, whose value is Σᵢ V′ᵢ.
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
        hidden_size: int,
        init: Init,
    ) -> QPLEXMixer:
        """`kernels` terms in λ, each from networks of `layers` layers with hidden layers of width
        `hidden_size`."""
        keys = jax.random.split(key, 5)
        inner = (hidden_size,) * (layers - 1)
        return cls(
            # All weights start at about 1, so that Q_tot starts at about the sum.
            w=dense(keys[0], state, (hidden_size,), agents, init, gain=SMALL, offset=1.0),
            b=dense(keys[1], state, (hidden_size,), agents, init, gain=SMALL),
            key=dense_stack(
                keys[2], kernels, state, inner, 1, init, gain=SMALL, offset=4 / kernels
            ),
            agent=dense_stack(keys[3], kernels, state, inner, agents, init, gain=SMALL),
            action=dense_stack(
                keys[4], kernels, state + agents * actions, inner, agents, init, gain=SMALL
            ),
            actions=actions,
        )

    def __call__(self, inputs: MixerInput) -> Float[Array, "*batch 1"]:
        """The joint action's value. Its gradient reaches the utilities through Σᵢ Q′ᵢ alone."""
        chosen, best, action, state, _ = inputs
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
