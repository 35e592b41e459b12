"""QMIX: monotonic mixing by hypernetworks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from perla.nets.layers import MLP, SMALL, Init
from perla.nets.mixers.base import Mixer, MixerInput, dense
from perla.types import Array, Float, PRNGKeyArray


class QMIXMixer(Mixer):
    """Q_tot = |w₂(s)|·ELU(|W₁(s)|ᵀ q + b₁(s)) + V(s) (Rashid et al., 2018)."""

    W1: MLP
    b1: MLP
    w2: MLP
    V: MLP

    @classmethod
    def create(
        cls, key: PRNGKeyArray, *, agents: int, state: int, embed: int, hypernet: int, init: Init
    ) -> QMIXMixer:
        """`embed`: width of the mixer's hidden layer; `hypernet`: width of the hypernetworks'."""
        keys = jax.random.split(key, 4)
        return cls(
            # The gain makes the initial slope in the utilities independent of the width.
            W1=dense(keys[0], state, (hypernet,), agents * embed, init, gain=embed**-0.5),
            b1=dense(keys[1], state, (), embed, init, gain=SMALL),
            w2=dense(keys[2], state, (hypernet,), embed, init, gain=embed**-0.5),
            V=dense(keys[3], state, (embed,), 1, init, gain=SMALL),
        )

    def __call__(self, inputs: MixerInput) -> Float[Array, "*batch 1"]:
        """The joint action's value, monotonic in every chosen utility."""
        chosen, state = inputs.chosen, inputs.state
        W1 = jnp.abs(self.W1(state)).reshape(*chosen.shape, -1)
        # h = ELU(|W₁(s)|ᵀ q + b₁(s))
        h = jax.nn.elu((chosen[..., None] * W1).sum(-2) + self.b1(state))
        # Q_tot = |w₂(s)|·h + V(s)
        return (jnp.abs(self.w2(state)) * h).sum(-1, keepdims=True) + self.V(state)
