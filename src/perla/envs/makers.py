"""Checks of the functions that make environments, before they are imported and called.

An id may come from a file or be mistyped, and must not end a process or delete a folder: a function
that cannot make an environment is refused before it runs. Worker processes import this module, so
it does not import JAX.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import os
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin

from perla.errors import UserError

MEMBERS = ("reset", "step")
"""Members that every kind of environment has."""
LOADERS = ("perla", "gymnasium")
"""Packages whose functions may import and call any code that their arguments name."""


def check_module(id: str, module: str) -> None:
    """Raise `UserError` if `module`, not yet imported, is in Python's standard library."""
    if standard(module):
        raise UserError(
            f"{id}: {module} is a module of Python's standard library, which makes no environments"
        )


def check_maker(id: str, maker: Any) -> None:
    """Raise `UserError` unless `maker` may be called for the environment `id`.

    It may be a class with `reset` and `step`, or a Python function whose return annotation, if any,
    admits an environment. It must not come from the standard library.
    """
    target = unwrap(maker)
    home, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "it")
    whole = f"{home}.{name}" if home else name
    if isinstance(home, str) and standard(home):
        raise _no_maker(id, f"{whole} is of Python's standard library")
    if inspect.isclass(target):
        if not may_be_environment(target):
            raise _no_maker(id, f"the class {whole} lacks {' or '.join(MEMBERS)}")
        return
    if not inspect.isfunction(target):
        raise _no_maker(id, f"{whole} is not written in Python")
    if whole.partition(".")[0] in LOADERS:
        raise _no_maker(id, f"{whole} makes what its arguments name; give that one's own id")
    returned = _return_type(target)
    if not may_be_environment(returned):
        name = getattr(returned, "__name__", returned)
        raise _no_maker(id, f"{whole} returns {'None' if returned is types.NoneType else name}")


def standard(module: str) -> bool:
    """True if `module` would be imported from Python's standard library, not from a file of that
    name in the current directory."""
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


def unwrap(maker: Any) -> Any:
    """The class or function that calling `maker` runs, inside partials, methods, callable objects
    and decorators that are not written in Python."""
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
    """False only if a value of the type `kind` cannot be an environment."""
    origin = get_origin(kind)
    if origin is Annotated:
        return may_be_environment(kind.__origin__)
    if origin in (Union, types.UnionType):
        return any(map(may_be_environment, get_args(kind)))
    if kind in (NoReturn, typing.Never):
        return False
    cls = origin or kind
    if cls in (Any, object) or not inspect.isclass(cls) or hasattr(cls, "__getattr__"):
        return True
    fields = {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}
    return all(hasattr(cls, name) or name in fields for name in MEMBERS)


def _return_type(function: Any) -> Any:
    """The return annotation of `function`; `Any` if there is none or it cannot be resolved."""
    try:
        return typing.get_type_hints(function).get("return", Any)
    except Exception:  # Annotations may name imports that exist for type checkers only.
        return Any


def _no_maker(id: str, why: str) -> UserError:
    return UserError(f"{id} makes no environment: {why}")


@contextlib.contextmanager
def current_directory() -> Iterator[None]:
    """Make the modules of the current directory importable, as `python -m` does."""
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)
