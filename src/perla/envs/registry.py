"""Environments by name: `make_env("lbf:Foraging-8x8-2p-2f-coop-v2")`."""

from __future__ import annotations

import difflib
import importlib
import shlex
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from perla.envs.protocol import Env, HostEnv
from perla.errors import UserError, nearest

FAMILIES: dict[str, str] = {
    "lbf": "perla.envs.foraging",
    "matrix": "perla.envs.matrix",
    "mamujoco": "perla.envs.bridges.mujoco",
    "smac": "perla.envs.bridges.smac",
    "jaxmarl": "perla.envs.bridges.jaxmarl",
    "jumanji": "perla.envs.bridges.jumanji",
    "pettingzoo": "perla.envs.bridges.pettingzoo",
    "gym": "perla.envs.bridges.gym",
}
"""Families of environments: prefix → module, which is imported on demand.

Such a module has `make_env(name, **options)`, where `name` is the id without its prefix and the
options are the family's, and `EXAMPLES`, names that it knows."""

LOADING = ("pettingzoo", "gym")
"""Families whose ids or options may name code, which is imported. The other families have a fixed
list of environments, and options that are plain values."""

Trust: TypeAlias = bool | Collection[str]
"""Code named in a file that the user trusts: all (True), none (False), or the environments with
these ids, each with the options in the file."""


def names_code(id: str) -> bool:
    """True if making the environment `id` imports and calls code that the id names."""
    family, colon, _ = id.partition(":")
    return bool(colon) and (family in LOADING or family not in FAMILIES)


def check_trust(ids: Collection[str], trust: Trust, *, source: Path) -> None:
    """Raise `UserError` if one of the environments `ids`, named by the file `source`, is code that
    the user does not trust, or if `trust` names an environment that the file does not."""
    if trust is True:
        return
    trusted = () if trust is False else (trust,) if isinstance(trust, str) else trust
    for id in trusted:
        if id not in ids:
            raise nearest(id, ids, what=f"environment of {source}")
    for id in ids:
        if names_code(id) and id not in trusted:
            raise UserError(
                f"{source}: its environment {id} is code; if you trust it, allow it by "
                f"--env {shlex.quote(id)}, or by --trust"
            )


def make_env(id: str, /, **options: Any) -> Env | HostEnv:
    """The environment `id`, a family's prefix and a name: `lbf:Foraging-8x8-2p-2f-coop-v2`.

    An id may also name a function in a module of the user's that makes an environment:
    `my_package.my_env:make`. `options` are the options of the family (for foraging `reward`,
    `penalty` and `mask`) or the arguments of the function. Raises `UserError` for an unknown
    family, name or option.
    """
    return env_factory(id, **options)()


def env_factory(id: str, /, **options: Any) -> Callable[[], Any]:
    """A picklable function that makes the environment `id`, for worker processes."""
    family, colon, name = id.partition(":")
    if not colon:
        known = {name: family for family in FAMILIES for name in _module(family).EXAMPLES}
        (close,) = difflib.get_close_matches(id, known, n=1, cutoff=0.0)
        raise UserError(f"environment {id!r} has no family; did you mean '{known[close]}:{id}'?")
    if family in FAMILIES:
        return partial(_module(family).make_env, name, **options)
    from perla.envs import custom

    return partial(custom.make_env, id, tuple(FAMILIES), **options)


def _module(family: str) -> Any:
    return importlib.import_module(FAMILIES[family])
