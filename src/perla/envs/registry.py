"""From the names that users know to worlds: `make("lbf:Foraging-8x8-2p-2f-coop-v2")`."""

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
"""Every family: its prefix, and the module that makes its worlds, imported where it is asked for.

Such a module has `make(name, **options)`, for the rest of the id and the family's own options,
and `EXAMPLES`, names that it knows."""

LOADING = ("pettingzoo", "gym")
"""Families that import what an id, or an option of one of their environments, names. All others
know all of their environments themselves, and their options are plain values."""

Trust: TypeAlias = bool | Collection[str]
"""What the user vouches for of the code that a file names: all of it, none, or the environments of
these ids, each with the options that the file gives it."""


def names_code(id: str) -> bool:
    """Whether making the environment `id` imports and calls what the id names."""
    family, colon, _ = id.partition(":")
    return bool(colon) and (family in LOADING or family not in FAMILIES)


def check_trust(ids: Collection[str], trust: Trust, *, source: Path) -> None:
    """Raise `UserError` unless nothing but what the user trusts runs where the environments `ids`,
    which the file `source` names, are made; or where `trust` names one that the file does not."""
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
    """The world called `id`, a family's prefix and a name: `lbf:Foraging-8x8-2p-2f-coop-v2`.

    What is before the colon may also be a module of the user's own, and what follows the function
    in it that makes the world: `my_package.my_world:make`. `options` are the family's (for
    foraging: `reward`, `penalty`) or the function's own. Raises `UserError` for an unknown family,
    name or option.
    """
    return env_factory(id, **options)()


def env_factory(id: str, /, **options: Any) -> Callable[[], Any]:
    """What makes the world called `id`, again and again: a function that processes can be sent."""
    family, colon, name = id.partition(":")
    if not colon:
        known = {name: family for family in FAMILIES for name in _module(family).EXAMPLES}
        (close,) = difflib.get_close_matches(id, known, n=1, cutoff=0.0)
        raise UserError(f"environment {id!r} lacks its family; did you mean '{known[close]}:{id}'?")
    if family in FAMILIES:
        return partial(_module(family).make_env, name, **options)
    from perla.envs import custom

    return partial(custom.make_env, id, tuple(FAMILIES), **options)


def _module(family: str) -> Any:
    return importlib.import_module(FAMILIES[family])
