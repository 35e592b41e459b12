"""The definition of every method: a learner, and the settings in which it differs from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perla.config import Config, tag
from perla.errors import UserError, nearest
from perla.methods.maddpg import DDPG, GumbelSoftmax
from perla.methods.method import Method
from perla.methods.peers import translate
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
from perla.plugins import Registry, load


class Recipe:
    """A method: its learner, the settings that define it, and one line about it.

    The learner may be named as `module:class`, which is imported on first use.
    """

    def __init__(self, learner: type[Method] | str, *, about: str, **settings: Any) -> None:
        self._learner = learner
        self.about = about
        """One line about the method, for lists and help."""
        self.settings: Mapping[str, Any] = settings
        """The settings that define the method."""

    @property
    def learner(self) -> type[Method]:
        """The type of the learner's settings."""
        return load(self._learner) if isinstance(self._learner, str) else self._learner


# fmt: off
LOCAL      = Embedded(critic_input="local")   # V(τᵢ, a₋ᵢ), averaged over a₋ᵢ ~ π₋ᵢ
GLOBAL     = Embedded(critic_input="global")  # V(s, a₋ᵢ),  averaged over a₋ᵢ ~ π₋ᵢ
A2C        = {"clip_eps": None, "update_epochs": 1, "num_minibatches": 1}
SEQUENTIAL = {"order": "sequential", "parameter_sharing": "critic"}

_OWN = {
    # Policy gradients: they differ in the critic.
    "ippo": Recipe(PPO, value=Independent(),                                  # V(τᵢ)
        about="PPO whose critics see each agent's own observation"),
    "mappo": Recipe(PPO, value=Centralised(),                                 # V(s)
        about="PPO whose critics see the global state"),
    "perla-ippo": Recipe(PPO, value=LOCAL,                                    # E V(τᵢ, a₋ᵢ)
        about="IPPO with policy-embedded critics: averaged over the others' policies"),
    "perla-mappo": Recipe(PPO, value=GLOBAL,                                  # E V(s, a₋ᵢ)
        about="MAPPO with policy-embedded critics: averaged over the others' policies"),
    "ia2c": Recipe(PPO, value=Independent(), **A2C,                           # ∇ log πᵢ(aᵢ) Aᵢ
        about="IPPO with one unclipped policy-gradient step per update"),
    "maa2c": Recipe(PPO, value=Centralised(), **A2C,
        about="MAPPO with one unclipped policy-gradient step per update"),
    "perla-ia2c": Recipe(PPO, value=LOCAL, **A2C,
        about="PERLA-IPPO with one unclipped policy-gradient step per update"),
    "perla-maa2c": Recipe(PPO, value=GLOBAL, **A2C,
        about="PERLA-MAPPO with one unclipped policy-gradient step per update"),
    "coma": Recipe(PPO, value=Counterfactual(), **A2C,                        # Q(s, aᵢ, a₋ᵢ)
        about="policy gradients with a counterfactual baseline"),
    "happo": Recipe(PPO, value=Centralised(), **SEQUENTIAL,                   # Πⱼ (πⱼ'/πⱼ) A
        about="MAPPO with separate actors, updated one after another"),
    "perla-happo": Recipe(PPO, value=GLOBAL, **SEQUENTIAL,
        about="HAPPO with policy-embedded critics: averaged over the others' policies"),

    # Value decomposition: they differ in the mixer and in the weights of its errors.
    "iql": Recipe(TD, mixer=IQLMixer(),                                       # Qᵢ(τᵢ, aᵢ)
        about="independent Q-learning"),
    "vdn": Recipe(TD, mixer=VDNMixer(),                                       # Q = Σᵢ Qᵢ
        about="Q-learning of a joint value that is the sum of the agents' utilities"),
    "qmix": Recipe(TD, mixer=QMIXMixer(),                                     # ∂Q/∂Qᵢ ≥ 0
        about="Q-learning of a joint value that is monotonic in the agents' utilities"),
    "ow-qmix": Recipe(TD, mixer=QMIXMixer(), weighting=Weighted(full="optimistic"),
        about="QMIX that gives full weight only to underestimated joint actions"),
    "cw-qmix": Recipe(TD, mixer=QMIXMixer(), weighting=Weighted(full="central"),
        about="QMIX that gives full weight only to joint actions that may be optimal"),
    "qplex": Recipe(TD, mixer=QPLEXMixer(),                                   # Σᵢ Vᵢ + Σᵢ λᵢ Aᵢ
        about="Q-learning of any joint value that is maximal where the agents' utilities are"),
    "qtran-base": Recipe(TD, mixer=QTRANMixer(condition="base"),              # Σᵢ Qᵢ + V ≥ Q
        about="Q-learning of any joint value, and of utilities whose sum bounds it from above"),
    "qtran-alt": Recipe(TD, mixer=QTRANMixer(condition="alt"),                # minᵢ (Σ + V − Q) = 0
        about="QTRAN-base with a tighter bound"),
    "maic": Recipe(TD, mixer=QMIXMixer(), communication=MAICMessages(),       # Qⱼ + Σᵢ αᵢⱼ mᵢⱼ
        about="QMIX whose agents send each other messages before they act"),
    "maic-qplex": Recipe(TD, mixer=QPLEXMixer(), communication=MAICMessages(),
        about="QPLEX whose agents send each other messages before they act"),

    # Q-learning without replay.
    "pqn-iql": Recipe("perla.algos.pqn:PQN", mixer=IQLMixer(),                # Qᵢ(τᵢ, aᵢ)
        about="independent Q-learning from parallel environments, without replay"),
    "pqn-vdn": Recipe("perla.algos.pqn:PQN", mixer=VDNMixer(),                # Q = Σᵢ Qᵢ
        about="VDN from parallel environments, without replay"),

    # Sequences of agents.
    "mat": Recipe("perla.algos.mat:MAT",                                      # Πᵢ π(aᵢ|o, a₁…aᵢ₋₁)
        about="PPO of a transformer whose agents act one after another"),

    # Deterministic policy gradients.
    "maddpg": Recipe(DDPG, relaxation=GumbelSoftmax(),                        # ∇Qᵢ(s, a₁, …, a_N)
        about="deterministic policy gradients with a centralised critic per agent"),
}
# fmt: on


def _check(name: str, recipe: Any) -> None:
    """Raise `UserError` unless `recipe` defines a method."""
    if not isinstance(recipe, Recipe):
        raise UserError(f"{name}: {recipe!r} is no Recipe")
    learner = recipe.learner
    if not (isinstance(learner, type) and issubclass(learner, Method)):
        raise UserError(f"{name}: its learner {learner!r} is no subclass of Method")
    learner(**recipe.settings)


RECIPES: Registry[Recipe] = Registry("algorithm", "perla.algorithms", _OWN, check=_check)
"""The methods by name."""


def learners() -> dict[str, type[Method]]:
    """The settings of all learners, by tag."""
    known: dict[str, type[Method]] = {}
    for name, recipe in RECIPES.items():
        if known.setdefault(tag(recipe.learner), recipe.learner) is not recipe.learner:
            raise UserError(f"algorithm {name}: the tag of its learner is that of another")
    return known


def make(algo: str, preset: str = "default", **overrides: Any) -> Method:
    """The settings of the method `algo` under `preset`, with `overrides` on top.

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
    for name in overrides:
        _check_name(name, recipe.learner)
    return recipe.learner(**settings).replace(**overrides)


def _check_name(name: str, learner: type[Method]) -> None:
    """Raise `UserError` if another library gives `name` to a setting of `learner`."""
    ours, _ = translate(name) or ("", "")
    if name not in learner.__struct_fields__ and ours in learner.__struct_fields__:
        raise UserError(f"unknown setting {name!r}; here it is {ours}")


def merge_preset(recipe: Recipe, preset: Preset) -> Settings | None:
    """The settings of a recipe and, beside them, those of a preset; none where the preset is for
    other learners."""
    settings = preset.settings.get(recipe.learner, {} if preset is PRESETS["default"] else None)
    if settings is None:
        return None
    settings = settings | dict(recipe.settings)
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


def deciding(field: str, variant: str | None = None) -> list[str]:
    """The methods that decide `field`, or that set it to the variant with this tag."""
    chosen = {
        name: recipe.settings.get(field)
        for name, recipe in RECIPES.items()
        if field in recipe.learner.decided
    }
    return [
        name
        for name, value in chosen.items()
        if isinstance(value, Config) and variant in (None, tag(value))
    ]
