"""A mixer, and a method that uses it: a weighted sum of utilities."""

import jax
import jax.numpy as jnp

from perla.config import Count
from perla.methods.recipes import Recipe
from perla.methods.td import TD, Mixer
from perla.nets import mixers
from perla.nets.layers import MLP
from perla.nets.mixers.base import MixerInput, dense


class Linear(Mixer, tag="linear", frozen=True):
    """Q_tot = Σᵢ |wᵢ(s)| Qᵢ + b(s): linear, and monotonic, in the utilities."""

    linear_hidden: Count = 64
    """Width of the hidden layer of the network that computes w and b."""

    def create(self, config, spec, key) -> "LinearMixer":
        """A newly initialised mixer."""
        width = (self.linear_hidden,)
        return LinearMixer(dense(key, spec.state, width, spec.agents + 1, config.init, offset=1.0))


class LinearMixer(mixers.Mixer):
    """Q_tot = Σᵢ |wᵢ(s)| Qᵢ + b(s)."""

    weights: MLP

    def __call__(self, inputs: MixerInput) -> jax.Array:
        """The value of the joint action, `[*batch, 1]`."""
        w, b = jnp.split(self.weights(inputs.state), [inputs.chosen.shape[-1]], axis=-1)
        return (jnp.abs(w) * inputs.chosen).sum(-1, keepdims=True) + b


RECIPE = Recipe(TD, mixer=Linear(), about="Q-learning of a weighted sum of the agents' utilities")
