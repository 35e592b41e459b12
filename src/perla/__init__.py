"""Cooperative multi-agent reinforcement learning with policy-embedded training.

result = perla.train("lbf:Foraging-8x8-2p-2f-coop-v2", "perla-ippo", steps=500_000, seeds=5)
result.summary["iqm"]["absolute"]
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from perla.errors import UserError

if TYPE_CHECKING:
    from perla.envs.protocol import Env, HostEnv
    from perla.marginal.plug_in import marginalise
    from perla.methods.estimators import Estimator
    from perla.methods.recipes import Recipe
    from perla.methods.td import Mixer
    from perla.runs.execute import Result

__version__ = "0.1.0"
__all__ = [
    "UserError",
    "__version__",
    "make",
    "marginalise",
    "register_algorithm",
    "register_environment",
    "register_estimator",
    "register_mixer",
    "train",
]


def make(env: str, **options: Any) -> Env | HostEnv:
    """The environment `env`, such as `lbf:Foraging-8x8-2p-2f-coop-v2`, with its `options`.

    Raises `UserError` for an unknown name or option.
    """
    from perla.envs.registry import make_env

    return make_env(env, **plain(options))


def train(
    env: str,
    algo: str = "perla-ippo",
    *,
    steps: SupportsIndex,
    seeds: SupportsIndex | Iterable[SupportsIndex] = 1,
    preset: str = "default",
    out: str | PathLike[str] | None = None,
    env_options: Mapping[str, Any] | None = None,
    num_evaluations: SupportsIndex | None = None,
    eval_episodes: SupportsIndex | None = None,
    absolute_episodes: SupportsIndex | None = None,
    on_nonfinite: Literal["stop", "drop-seed"] = "stop",
    **settings: Any,
) -> Result:
    """Train `algo` on `env` for `steps` environment steps per seed, and return the result.

    `seeds` is a number of seeds (0, 1, …) or a list of them. `settings` override the learner's
    settings in `preset`: `lr=1e-3`, `returns=NStep(n_step=10)`. Scalars and arrays of NumPy are
    numbers and lists of numbers everywhere. With `out` the run is saved in that folder, as by
    `perla train`, and can be resumed; without it nothing is written.

    The policies are evaluated `num_evaluations` times on `eval_episodes` greedy and as many sampled
    episodes, and the best on `absolute_episodes` at the end. Numbers left open are at most 50, 32
    and 320, and fewer in a short run: evaluations take at most a fifth of its steps.

    If a seed has NaN or infinite values, the run stops, or continues without that seed if
    `on_nonfinite` is "drop-seed".

    The result has `.records` (all evaluations), `.summary`, `.dropped` and `.actor(seed)`. Raises
    `UserError` for an unknown name, a value out of range, or a folder that is in use.
    """
    from perla.config import convert
    from perla.methods import recipes
    from perla.runs import execute
    from perla.runs.spec import OnNonFinite, Run

    chosen: Any = plain(seeds)
    run = Run(
        env=env,
        env_options=plain(dict(env_options or {})),
        algo=algo,
        preset=preset,
        config=recipes.make(algo, preset, **plain(settings)),
        steps=plain(steps),
        seeds=tuple(range(chosen)) if isinstance(chosen, int) else tuple(chosen),
        num_evaluations=plain(num_evaluations),
        eval_episodes=plain(eval_episodes),
        absolute_episodes=plain(absolute_episodes),
    )
    folder = None if out is None else Path(out)
    answer = convert(on_nonfinite, OnNonFinite, name="on_nonfinite")
    return execute.train(run, folder, on_nonfinite=answer)


def plain(value: Any) -> Any:
    """`value`, with Python's numbers for scalars of NumPy and JAX, and tuples of numbers for
    arrays, also within dictionaries, lists and tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    return value


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
    """Import `marginalise` on first use: importing perla alone does not import JAX."""
    if name == "marginalise":
        from perla.marginal.plug_in import marginalise

        return marginalise
    raise AttributeError(f"module 'perla' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps `perla.train` the function when the package of that name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "train" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
