"""Cooperative multi-agent reinforcement learning with policy-embedded training.

run = perla.train("lbf:Foraging-8x8-2p-2f-coop-v2", "perla-ippo", steps=500_000, seeds=5)
run.summary["iqm"]["absolute"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from perla.errors import UserError

if TYPE_CHECKING:
    from perla.api.compare import Comparison, compare, reproduce, suite
    from perla.api.diagnose import Diagnosis, diagnose
    from perla.api.run import Run
    from perla.api.train import load, train
    from perla.api.tune import Tuning, tune
    from perla.envs.protocol import Env, HostEnv
    from perla.marginal.plug_in import marginalise
    from perla.methods.estimators import Estimator
    from perla.methods.recipes import Recipe
    from perla.methods.td import Mixer
    from perla.policies.policy import Policy
    from perla.runs.callbacks import Callback, Progress

__version__ = "0.1.0"
"""The version of perla."""
__all__ = [
    "Callback",
    "Comparison",
    "Diagnosis",
    "Policy",
    "Progress",
    "Run",
    "Tuning",
    "UserError",
    "__version__",
    "compare",
    "diagnose",
    "load",
    "make",
    "marginalise",
    "register_algorithm",
    "register_environment",
    "register_estimator",
    "register_mixer",
    "reproduce",
    "suite",
    "train",
    "tune",
]

_HOMES = {
    "Callback": "perla.runs.callbacks",
    "Comparison": "perla.api.compare",
    "Diagnosis": "perla.api.diagnose",
    "Policy": "perla.policies.policy",
    "Progress": "perla.runs.callbacks",
    "Run": "perla.api.run",
    "Tuning": "perla.api.tune",
    "compare": "perla.api.compare",
    "diagnose": "perla.api.diagnose",
    "load": "perla.api.train",
    "marginalise": "perla.marginal.plug_in",
    "reproduce": "perla.api.compare",
    "suite": "perla.api.compare",
    "train": "perla.api.train",
    "tune": "perla.api.tune",
}
"""Names that are imported on first use: importing perla alone does not import JAX."""


def make(env: str, **options: Any) -> Env | HostEnv:
    """The environment `env`, such as `lbf:Foraging-8x8-2p-2f-coop-v2`, with its `options`.

    Raises `UserError` for an unknown name or option.
    """
    from perla.config import to_plain
    from perla.envs.registry import make_env

    return make_env(env, **to_plain(options))


def register_algorithm(name: str, recipe: Recipe) -> None:
    """Add a method: its learner's settings, of a subclass of `perla.methods.method.Method`, and the
    settings that define it.

    As with the other registrations the name is known in this process. In an installed package an
    entry point of the group `perla.algorithms` makes it known in all, also in the worker processes
    of suites. Raises `UserError` if the name is taken.
    """
    from perla.methods.recipes import RECIPES

    RECIPES.register(name, recipe)


def register_environment(prefix: str, family: Any) -> None:
    """Add a family of environments, for ids `prefix:name`. `family` is a module or an object with
    `make_env(name, **options)` and `EXAMPLES`, names → one line about each. Group of entry points:
    `perla.environments`. Raises `UserError` if the prefix is taken."""
    from perla.envs.registry import FAMILIES

    FAMILIES.register(prefix, family)


def register_estimator(settings: type[Estimator]) -> None:
    """Add an estimator of the average over the others' policies, by its settings, whose tag is its
    name. Group of entry points: `perla.estimators`. Raises `UserError` if the name is taken."""
    from perla.config import tag
    from perla.methods.estimators import ESTIMATORS

    ESTIMATORS.register(tag(settings), settings)


def register_mixer(settings: type[Mixer]) -> None:
    """Add a mixer of the agents' utilities, by its settings, whose tag is its name. Group of entry
    points: `perla.mixers`. Raises `UserError` if the name is taken."""
    from perla.config import tag
    from perla.methods.td import MIXERS

    MIXERS.register(tag(settings), settings)


def __getattr__(name: str) -> Any:
    """A public name, imported on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'perla' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
