"""WQMIX's central mixer, beside the monotonic one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from perla.nets.layers import MLP, SMALL, Init
from perla.nets.mixers.base import Mixer, MixerInput, dense
from perla.types import Array, Float, PRNGKeyArray


class CentralMixer(Mixer):
    """Q̂(s, Q₁, …, Q_N) = f(s, q) + V(s), unrestricted (Rashid et al., 2020)."""

    f: MLP
    V: MLP

    @classmethod
    def create(
        cls, key: PRNGKeyArray, *, agents: int, state: int, hidden_size: int, init: Init
    ) -> CentralMixer:
        """Three hidden layers of width `hidden_size` for f, and one for V."""
        key_f, key_v = jax.random.split(key)
        return cls(
            f=dense(key_f, state + agents, (hidden_size,) * 3, 1, init, gain=SMALL),
            V=dense(key_v, state, (hidden_size,), 1, init, gain=SMALL),
        )

    def __call__(self, inputs: MixerInput) -> Float[Array, "*batch 1"]:
        """The joint action's value."""
        f = self.f(jnp.concatenate([inputs.state, inputs.chosen], -1))
        return f + self.V(inputs.state)
