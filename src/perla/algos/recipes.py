"""Every method is its recipe, every preset the published settings of somebody's code.

    make("perla-ippo", "epymarl") = PPO(**PRESETS["epymarl"], **RECIPES["perla-ippo"])
"""

from __future__ import annotations

from typing import Any

from perla.algos.ppo import GAE, PPO, Adam, Hard, Huber, NStep, Soft
from perla.algos.values import Centralised, Embedded, Independent
from perla.errors import nearest

# fmt: off
IPPO        = {"value": Independent()}                    # V(τᵢ)
MAPPO       = {"value": Centralised()}                    # V(s)
PERLA_IPPO  = {"value": Embedded(base="local")}           # V(τᵢ, a₋ᵢ) over a₋ᵢ ~ π₋ᵢ
PERLA_MAPPO = {"value": Embedded(base="global")}          # V(s, a₋ᵢ)  over a₋ᵢ ~ π₋ᵢ

A2C = {"clip": None, "epochs": 1, "minibatches": 1}       # one plain policy-gradient step
# fmt: on

RECIPES: dict[str, dict[str, Any]] = {
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

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
}
"""What a preset's name stands for."""


def make(algo: str, preset: str = "default", **overrides: Any) -> PPO:
    """The learner called `algo` with the settings of `preset`, save for `overrides`.

    Raises `UserError` for an unknown name and for a setting out of range.
    """
    if algo not in RECIPES:
        raise nearest(algo, RECIPES, what="algorithm")
    if preset not in PRESETS:
        raise nearest(preset, PRESETS, what="preset")
    return PPO(**PRESETS[preset] | RECIPES[algo]).replace(**overrides)
