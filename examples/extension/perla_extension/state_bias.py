"""A mixer, and the method VDN-S that uses it: the sum of utilities and a value of the state."""

import jax

from perla.config import Count
from perla.methods.recipes import Recipe
from perla.methods.td import TD, Mixer
from perla.nets import mixers
from perla.nets.layers import MLP
from perla.nets.mixers.base import MixerInput, dense


class StateBias(Mixer, tag="state-bias", frozen=True):
    """Q_tot = Σᵢ Qᵢ + b(s): VDN-S, an ablation of QMIX (Rashid et al., 2018)."""

    bias_hidden: Count = 64
    """Width of the hidden layer of the network that computes b."""

    def create(self, config, spec, key) -> "StateBiasMixer":
        """A newly initialised mixer."""
        return StateBiasMixer(dense(key, spec.state, (self.bias_hidden,), 1, config.init))


class StateBiasMixer(mixers.Mixer):
    """Q_tot = Σᵢ Qᵢ + b(s)."""

    bias: MLP

    def __call__(self, inputs: MixerInput) -> jax.Array:
        """The value of the joint action, `[*batch, 1]`."""
        return inputs.chosen.sum(-1, keepdims=True) + self.bias(inputs.state)


RECIPE = Recipe(TD, mixer=StateBias(), about="VDN with a value of the state added")
