"""Mixers without parameters: independent Q-learning and value-decomposition networks."""

from __future__ import annotations

from perla.nets.mixers.base import Mixer, MixerInput
from perla.types import Array, Float


class IQLMixer(Mixer):
    """Qᵢ: independent Q-learning."""

    def __call__(self, inputs: MixerInput) -> Float[Array, "*batch agent"]:
        """The agents' own values."""
        return inputs.chosen


class VDNMixer(Mixer):
    """Q_tot = Σᵢ Qᵢ (Sunehag et al., 2018)."""

    def __call__(self, inputs: MixerInput) -> Float[Array, "*batch 1"]:
        """The joint action's value."""
        return inputs.chosen.sum(-1, keepdims=True)
