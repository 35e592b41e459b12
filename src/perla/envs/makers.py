"""Makers of environments: of all that an id could name, that which perla imports and calls.

An id is not always the user's own words, and a mistyped or careless one must not end a process or
delete a folder: what surely makes no environment is refused before it runs. Worker processes
import this: no JAX.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin

from perla.errors import UserError

MEMBERS = ("reset", "step")
"""What every kind of environment has."""
LOADERS = ("perla", "gymnasium")
"""Packages whose functions make whatever environment their arguments name."""


def check_module(id: str, module: str) -> None:
    """Raise `UserError`, before it is imported, for a `module` of Python's standard library."""
    if standard(module):
        raise UserError(
            f"{id}: {module} is a module of Python's standard library, which makes no environments"
        )


def check_maker(id: str, maker: Any) -> None:
    """Raise `UserError` unless `maker` may be called for the environment `id`.

    It is a class that has `reset` and `step`, or a function in Python whose return annotation, if
    there is one, does not rule an environment out; and neither comes from the standard library.
    """
    made_by = behind(maker)
    home, name = getattr(made_by, "__module__", None), getattr(made_by, "__qualname__", "it")
    whole = f"{home}.{name}" if home else name
    if isinstance(home, str) and standard(home):
        raise _no_maker(id, f"{whole} is of Python's standard library")
    if inspect.isclass(made_by):
        if not may_be_environment(made_by):
            raise _no_maker(id, f"the class {whole} lacks {' or '.join(MEMBERS)}")
        return
    if not inspect.isfunction(made_by):
        raise _no_maker(id, f"{whole} is not written in Python")
    if whole.partition(".")[0] in LOADERS:
        raise _no_maker(id, f"{whole} makes what its arguments name; give that one's own id")
    returned = _returned(made_by)
    if not may_be_environment(returned):
        name = getattr(returned, "__name__", returned)
        raise _no_maker(id, f"{whole} returns {'None' if returned is types.NoneType else name}")


def standard(module: str) -> bool:
    """Whether importing `module` would take it from Python's standard library, and not from a file
    of that name on the current directory."""
    top = module.partition(".")[0]
    if top not in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return True
    if spec is None or not spec.has_location or spec.origin is None:
        return True
    here = Path.cwd().resolve()
    return Path(spec.origin).resolve().parent not in (here, here / top)


def behind(maker: Any) -> Any:
    """The class or function that a call of `maker` runs: behind partials, methods, objects that can
    be called, and whatever a decorator that is not written in Python has made of it."""
    while not (inspect.isclass(maker) or inspect.isfunction(maker)):
        if isinstance(maker, functools.partial):
            maker = maker.func
        elif inspect.ismethod(maker):
            maker = maker.__func__
        elif hasattr(maker, "__wrapped__"):
            maker = maker.__wrapped__
        else:
            call = inspect.getattr_static(type(maker), "__call__", None)
            return call if inspect.isfunction(call) else maker
    return maker


def may_be_environment(kind: Any) -> bool:
    """Whether a value of the type `kind` may be an environment, as far as that can be seen."""
    origin = get_origin(kind)
    if origin is Annotated:
        return may_be_environment(kind.__origin__)
    if origin in (Union, types.UnionType):
        return any(map(may_be_environment, get_args(kind)))
    if kind in (NoReturn, typing.Never):
        return False
    found = origin or kind
    if found in (Any, object) or not inspect.isclass(found) or hasattr(found, "__getattr__"):
        return True
    fields = {name for base in found.__mro__ for name in vars(base).get("__annotations__", {})}
    return all(hasattr(found, name) or name in fields for name in MEMBERS)


def _returned(function: Any) -> Any:
    """What the annotation of `function` says that it returns; `Any` where it cannot be told."""
    try:
        return typing.get_type_hints(function).get("return", Any)
    except Exception:  # Annotations may name what is imported for type checkers alone.
        return Any


def _no_maker(id: str, why: str) -> UserError:
    return UserError(f"{id} makes no environment: {why}")
