"""Mixers: from the agents' utilities Qᵢ(τᵢ, aᵢ) to the value of a joint action.

A new mixer is a file here with a subclass of `Mixer`, its settings in `perla.methods.td`, and a
line in `perla.algos.td.create_mixer`, which creates the mixer from its settings.
"""

from perla.nets.mixers.additive import IQLMixer, VDNMixer
from perla.nets.mixers.base import Mixer, MixerInput, MixerStep
from perla.nets.mixers.qmix import QMIXMixer
from perla.nets.mixers.qplex import QPLEXMixer
from perla.nets.mixers.qtran import QTRANMixer
from perla.nets.mixers.wqmix import CentralMixer

__all__ = [
    "CentralMixer",
    "IQLMixer",
    "Mixer",
    "MixerInput",
    "MixerStep",
    "QMIXMixer",
    "QPLEXMixer",
    "QTRANMixer",
    "VDNMixer",
]
