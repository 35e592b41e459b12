"""Every method is its recipe."""

from __future__ import annotations

from typing import Any

from perla.errors import nearest
from perla.methods.ppo import PPO
from perla.methods.presets import PRESETS, Settings
from perla.methods.values import Centralised, Embedded, Independent

# fmt: off
IPPO        = {"value": Independent()}                   # V(τᵢ)
MAPPO       = {"value": Centralised()}                   # V(s)
PERLA_IPPO  = {"value": Embedded(base="local")}          # V(τᵢ, a₋ᵢ) over a₋ᵢ ~ π₋ᵢ
PERLA_MAPPO = {"value": Embedded(base="global")}         # V(s, a₋ᵢ)  over a₋ᵢ ~ π₋ᵢ

A2C = {"clip": None, "epochs": 1, "minibatches": 1}      # one plain policy-gradient step
# fmt: on

RECIPES: dict[str, Settings] = {
    "ippo": IPPO,
    "mappo": MAPPO,
    "perla-ippo": PERLA_IPPO,
    "perla-mappo": PERLA_MAPPO,
    "ia2c": IPPO | A2C,
    "maa2c": MAPPO | A2C,
    "perla-ia2c": PERLA_IPPO | A2C,
    "perla-maa2c": PERLA_MAPPO | A2C,
}
"""What a method's name stands for."""


def make(algo: str, preset: str = "default", **overrides: Any) -> PPO:
    """The learner called `algo` with the settings of `preset`, save for `overrides`.

    Raises `UserError` for an unknown name and for a setting out of range.
    """
    if algo not in RECIPES:
        raise nearest(algo, RECIPES, what="algorithm")
    if preset not in PRESETS:
        raise nearest(preset, PRESETS, what="preset")
    chosen = PRESETS[preset]
    settings = chosen.settings | RECIPES[algo]
    value = settings["value"]
    if isinstance(value, Embedded):
        settings["value"] = value.replace(**chosen.embedded)
    if isinstance(value, Independent) or (isinstance(value, Embedded) and value.base == "local"):
        settings = settings | chosen.local_critic
    return PPO(**settings).replace(**overrides)
