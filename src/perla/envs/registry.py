"""Environments by name: `make_env("lbf:Foraging-8x8-2p-2f-coop-v2")`."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from perla.envs.options import fit
from perla.envs.protocol import Env, HostEnv
from perla.errors import UserError, nearest
from perla.plugins import Registry

OWN = {
    "lbf": "perla.envs.foraging",
    "matrix": "perla.envs.matrix",
    "congestion": "perla.envs.congestion",
    "mamujoco": "perla.envs.bridges.mujoco",
    "jaxmarl": "perla.envs.bridges.jaxmarl",
    "jumanji": "perla.envs.bridges.jumanji",
    "pettingzoo": "perla.envs.bridges.pettingzoo",
    "gym": "perla.envs.bridges.gym",
    "smac": "perla.envs.bridges.smac",
    "skirmish": "perla.envs.skirmish.env",
}
"""perla's families: prefix → module, which is imported on demand."""


def _check(prefix: str, family: Any) -> None:
    """Raise `UserError` unless `family` is a family of environments."""
    if not callable(getattr(family, "make_env", None)):
        raise UserError(f"{prefix}: {family!r} has no function `make_env`")
    if not isinstance(getattr(family, "EXAMPLES", None), Mapping):
        raise UserError(f"{prefix}: {family!r} has no mapping `EXAMPLES`")


FAMILIES: Registry[Any] = Registry("environment family", "perla.environments", OWN, check=_check)
"""Families of environments by prefix. A family is a module, or another object, with

    make_env(name, **options)  an environment: `name` is the id without its prefix
    EXAMPLES                   names that it knows → one line about each
    PATTERNS                   (optional) further names, with placeholders → one line about each
    REQUIRES                   (optional) what must be installed, in words
"""

LOADING = ("pettingzoo", "gym")
"""Families whose ids or options may name code, which is imported. The other families have a fixed
list of environments, and options that are plain values."""

OBJECT = "object"
"""Prefix of the ids of environments that Python code handed over (`perla.envs.objects`)."""

Trust: TypeAlias = bool | Collection[str]
"""Code named in a file that the user trusts: all (True), none (False), or the environments with
these ids, each with the options in the file."""


def names_code(id: str) -> bool:
    """True if making the environment `id` imports and calls code that the id names."""
    family, colon, _ = id.partition(":")
    return bool(colon) and (family in LOADING or family not in FAMILIES)


def is_object(id: str) -> bool:
    """True if `id` names an object that a Python program had, which no file holds."""
    return id.startswith(f"{OBJECT}:")


def check_trust(ids: Collection[str], trust: Trust, *, source: Path) -> None:
    """Raise `UserError` if one of the environments `ids`, named by the file `source`, is code that
    the user does not trust, or an object, or if `trust` names an environment that the file does
    not."""
    for id in filter(is_object, ids):
        raise _is_gone(id, source)
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
                f"--env {shlex.quote(id)}, or by --trust (in Python, by env={id!r} or trust=True)"
            )


def _is_gone(id: str, source: object) -> UserError:
    return UserError(
        f"{source}: its environment {id} is an object of a Python program, which no file holds; "
        "hand it over again in Python: perla.load(DIR, env=…)"
    )


def make_env(id: str, /, **options: Any) -> Env | HostEnv:
    """The environment `id`, a family's prefix and a name: `lbf:Foraging-8x8-2p-2f-coop-v2`.

    An id may also name a function in a module of the user's that makes an environment:
    `my_package.my_env:make`. `options` are the options of the family (for foraging `reward`,
    `penalty`, `mask` and `limit`) or the arguments of the function. Raises `UserError` for an
    unknown family, name or option.
    """
    return env_factory(id, **options)()


def env_factory(id: str, /, **options: Any) -> Callable[[], Any]:
    """A picklable function that makes the environment `id`, for worker processes."""
    family, colon, name = id.partition(":")
    if not colon:
        names = {name for family in FAMILIES.values() for name in family.EXAMPLES}
        (close,) = difflib.get_close_matches(id, sorted(names), n=1, cutoff=0.0)
        known = [prefix for prefix, family in FAMILIES.items() if close in family.EXAMPLES]
        guesses = " or ".join(f"'{prefix}:{id}'" for prefix in known)
        raise UserError(f"environment {id!r} has no family; did you mean {guesses}?")
    if is_object(id):
        raise _is_gone(id, "the run")
    if family in FAMILIES:
        make = FAMILIES[family].make_env
        return partial(make, name, **fit(id, make, options))
    from perla.envs import custom

    return partial(custom.make_env, id, tuple(FAMILIES), **options)
