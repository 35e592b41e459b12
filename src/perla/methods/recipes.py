"""Every method is its recipe."""

from __future__ import annotations

from typing import Any, get_args

from perla.errors import UserError, nearest
from perla.methods.maddpg import DDPG, GumbelSoftmax
from perla.methods.ppo import PPO
from perla.methods.presets import PRESETS, Preset, Settings
from perla.methods.td import (
    TD,
    IQLMixer,
    MAICMessages,
    QMIXMixer,
    QPLEXMixer,
    QTRANMixer,
    VDNMixer,
    Weighted,
)
from perla.methods.values import Centralised, Counterfactual, Embedded, Independent

Method = PPO | TD | DDPG
"""The settings of a learner: which one it is, they say themselves."""

# fmt: off
IPPO        = {"value": Independent()}                   # V(τᵢ)
MAPPO       = {"value": Centralised()}                   # V(s)
PERLA_IPPO  = {"value": Embedded(critic_input="local")}          # V(τᵢ, a₋ᵢ) over a₋ᵢ ~ π₋ᵢ
PERLA_MAPPO = {"value": Embedded(critic_input="global")}         # V(s, a₋ᵢ)  over a₋ᵢ ~ π₋ᵢ

A2C        = {"clip_eps": None, "update_epochs": 1, "num_minibatches": 1}        # one plain policy-gradient step
SEQUENTIAL = {"order": "sequential", "parameter_sharing": "critic"}        # one actor after another

COMA        = {"value": Counterfactual()} | A2C          # Q(s, aᵢ, a₋ᵢ) at the a₋ᵢ that were taken
HAPPO       = MAPPO | SEQUENTIAL

IQL         = {"mixer": IQLMixer()}                         # Qᵢ(τᵢ, aᵢ)
VDN         = {"mixer": VDNMixer()}                           # Q_tot = Σᵢ Qᵢ
QMIX        = {"mixer": QMIXMixer()}                     # Q_tot = f(s, Q₁, …), rising in each
QPLEX       = {"mixer": QPLEXMixer()}                        # Q_tot = Σᵢ Vᵢ + Σᵢ λᵢ(s, a) Aᵢ
OW_QMIX     = QMIX | {"weighting": Weighted(full="optimistic")}  # errors below count
CW_QMIX     = QMIX | {"weighting": Weighted(full="central")}     # errors at the best action count
QTRAN_BASE  = {"mixer": QTRANMixer(condition="base")}   # Σᵢ Qᵢ + V ≥ Q(s, a), = Q(s, ā)
QTRAN_ALT   = {"mixer": QTRANMixer(condition="alt")}    # … and = Q(s, a) for one of each aᵢ
MAIC        = QMIX | {"communication": MAICMessages()}     # Qⱼ(τⱼ, aⱼ) + Σᵢ αᵢⱼ mᵢⱼ(aⱼ)
MAIC_QPLEX  = QPLEX | {"communication": MAICMessages()}

MADDPG      = {"relaxation": GumbelSoftmax()}            # ∇ Qᵢ(s, a₁, …, a_N) through aᵢ ~ πᵢ
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
    "coma": COMA,
    "happo": HAPPO,
    "perla-happo": PERLA_MAPPO | SEQUENTIAL,
    "iql": IQL,
    "vdn": VDN,
    "qmix": QMIX,
    "ow-qmix": OW_QMIX,
    "cw-qmix": CW_QMIX,
    "qplex": QPLEX,
    "qtran-base": QTRAN_BASE,
    "qtran-alt": QTRAN_ALT,
    "maic": MAIC,
    "maic-qplex": MAIC_QPLEX,
    "maddpg": MADDPG,
}
"""What a method's name stands for."""

ABOUT: dict[str, str] = {
    "ippo": "PPO, and the critic of each agent sees what the agent sees",
    "mappo": "PPO, and the critics see the whole state",
    "perla-ippo": "IPPO, its critic averaged over what the other agents may do",
    "perla-mappo": "MAPPO, its critic averaged over what the other agents may do",
    "ia2c": "IPPO with one plain policy-gradient step at a time",
    "maa2c": "MAPPO with one plain policy-gradient step at a time",
    "perla-ia2c": "PERLA-IPPO with one plain policy-gradient step at a time",
    "perla-maa2c": "PERLA-MAPPO with one plain policy-gradient step at a time",
    "coma": "policy gradients, by a critic of what an agent does given what the others did",
    "happo": "MAPPO with an actor for each agent, which move one after another",
    "perla-happo": "HAPPO, its critic averaged over what the other agents may do",
    "iql": "Q-learning, every agent by itself",
    "vdn": "Q-learning of a joint value, the sum of the agents' own",
    "qmix": "Q-learning of a joint value that rises with each of the agents' own",
    "ow-qmix": "QMIX that counts in full only what it underrates",
    "cw-qmix": "QMIX that counts in full only joint actions that may be the best",
    "qplex": "Q-learning of any joint value that is highest where the agents' own are",
    "qtran-base": "Q-learning of any joint value, to which the sum of the agents' own is held",
    "qtran-alt": "QTRAN-base, its sum held to the joint value more tightly",
    "maic": "QMIX whose agents send each other messages before they act",
    "maic-qplex": "QPLEX whose agents send each other messages before they act",
    "maddpg": "actors that climb critics which see the state and what everybody does",
}
"""What a method is, in a line."""


def make(algo: str, preset: str = "default", **overrides: Any) -> Method:
    """The learner called `algo` with the settings of `preset`, save for `overrides`.

    Raises `UserError` for an unknown name, a preset of other methods and a setting out of range.
    """
    if algo not in RECIPES:
        raise nearest(algo, RECIPES, what="algorithm")
    if preset not in PRESETS:
        raise nearest(preset, PRESETS, what="preset")
    recipe = RECIPES[algo]
    settings = merge_preset(recipe, PRESETS[preset])
    if settings is None:
        fitting = [name for name in PRESETS if merge_preset(recipe, PRESETS[name]) is not None]
        raise UserError(f"preset {preset!r} is not for {algo}; known: {', '.join(fitting)}")
    return learner(recipe)(**settings).replace(**overrides)


def learner(recipe: Settings) -> type[Method]:
    """The settings' type that a recipe is of: the one that has all that it sets."""
    return next(cls for cls in get_args(Method) if set(recipe) <= set(cls.__struct_fields__))


def merge_preset(recipe: Settings, preset: Preset) -> Settings | None:
    """A recipe with all other settings of a preset; none where the preset is for other methods."""
    settings = preset.settings.get(learner(recipe))
    if settings is None:
        return None
    settings = settings | recipe
    value = settings.get("value")
    if isinstance(value, Embedded):
        settings["value"] = value.replace(**preset.embedded)
    if isinstance(value, Independent) or (
        isinstance(value, Embedded) and value.critic_input == "local"
    ):
        settings = settings | preset.local_critic
    if isinstance(value, Counterfactual):
        settings = settings | preset.counterfactual
    return settings
