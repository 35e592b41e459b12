"""Packages that perla does without until somebody asks for their worlds.

Worker processes import this: no JAX.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import pkgutil
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from perla.envs import makers
from perla.errors import UserError, nearest


def import_optional(package: str, *, extra: str | None = None) -> ModuleType:
    """An optional package, imported; `UserError` that says how to get it where it is missing.
    `extra` is perla's name for it, where that is another."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Some greet whoever imports them.
            return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(
            f"{package} is not installed: pip install 'perla[{extra or package}]'"
        ) from None


def version(package: str) -> str:
    """The installed version of `package`."""
    return importlib.metadata.version(package)


def versions(*packages: str) -> dict[str, str]:
    """Those of `packages` that are installed under the name of their module, and their versions."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = version(package)
    return found


def import_module(name: str, *, id: str) -> ModuleType:
    """The module that the world `id` is to be found in; `UserError` where there is none, where it
    needs another, and where it is one of Python's own."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{id}: {name!r} is no module; expected a name such as package.module")
    makers.check_module(id, name)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
    if not f"{name}.".startswith(f"{missing}."):
        raise UserError(f"{id}: {name} needs {missing}, which is not installed")
    package = missing.rpartition(".")[0]
    folder = getattr(importlib.import_module(package), "__path__", ()) if package else ()
    known = [f"{package}.{one.name}" for one in pkgutil.iter_modules(folder)]
    if known:
        raise nearest(missing, known, what="module")
    raise UserError(f"{id}: there is no module {missing!r} here; install it, or mend its name")


def construction_error(id: str, options: Mapping[str, Any], error: Exception) -> UserError:
    """The error for a world that cannot be made with these `options`, and why."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.partition(" was raised from the environment creator")[0]  # All that it was given.
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    return UserError(f"{id} cannot be made{f' with {given}' if given else ''}: {text}")
