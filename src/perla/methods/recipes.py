"""Every method is its recipe."""

from __future__ import annotations

from typing import Any

from perla.errors import UserError, nearest
from perla.methods.ppo import PPO
from perla.methods.presets import PRESETS, Preset, Settings
from perla.methods.td import TD, Alone, Duplex, Monotonic, Sum, Weighted
from perla.methods.values import Centralised, Embedded, Independent

Method = PPO | TD
"""The settings of a learner: which one it is, they say themselves."""

# fmt: off
IPPO        = {"value": Independent()}                   # V(τᵢ)
MAPPO       = {"value": Centralised()}                   # V(s)
PERLA_IPPO  = {"value": Embedded(base="local")}          # V(τᵢ, a₋ᵢ) over a₋ᵢ ~ π₋ᵢ
PERLA_MAPPO = {"value": Embedded(base="global")}         # V(s, a₋ᵢ)  over a₋ᵢ ~ π₋ᵢ

A2C = {"clip": None, "epochs": 1, "minibatches": 1}      # one plain policy-gradient step

IQL         = {"mixer": Alone()}                         # Qᵢ(τᵢ, aᵢ)
VDN         = {"mixer": Sum()}                           # Q_tot = Σᵢ Qᵢ
QMIX        = {"mixer": Monotonic()}                     # Q_tot = f(s, Q₁, …), rising in each
QPLEX       = {"mixer": Duplex()}                        # Q_tot = Σᵢ Vᵢ + Σᵢ λᵢ(s, a) Aᵢ
OW_QMIX     = QMIX | {"weighting": Weighted(full="optimistic")}  # errors below count
CW_QMIX     = QMIX | {"weighting": Weighted(full="central")}     # errors at the best action count
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
    "iql": IQL,
    "vdn": VDN,
    "qmix": QMIX,
    "ow-qmix": OW_QMIX,
    "cw-qmix": CW_QMIX,
    "qplex": QPLEX,
}
"""What a method's name stands for."""


def make(algo: str, preset: str = "default", **overrides: Any) -> Method:
    """The learner called `algo` with the settings of `preset`, save for `overrides`.

    Raises `UserError` for an unknown name, a preset of other methods and a setting out of range.
    """
    if algo not in RECIPES:
        raise nearest(algo, RECIPES, what="algorithm")
    if preset not in PRESETS:
        raise nearest(preset, PRESETS, what="preset")
    recipe = RECIPES[algo]
    settings = dressed(recipe, PRESETS[preset])
    if settings is None:
        fitting = [name for name in PRESETS if dressed(recipe, PRESETS[name]) is not None]
        raise UserError(f"preset {preset!r} is not for {algo}; known: {', '.join(fitting)}")
    learner: type[Method] = TD if "mixer" in recipe else PPO
    return learner(**settings).replace(**overrides)


def dressed(recipe: Settings, preset: Preset) -> Settings | None:
    """A recipe with all other settings of a preset; none where the preset is for other methods."""
    if "mixer" in recipe:
        return None if preset.decomposition is None else preset.decomposition | recipe
    if preset.settings is None:
        return None
    settings = preset.settings | recipe
    value = settings["value"]
    if isinstance(value, Embedded):
        settings["value"] = value.replace(**preset.embedded)
    if isinstance(value, Independent) or (isinstance(value, Embedded) and value.base == "local"):
        settings = settings | preset.local_critic
    return settings
