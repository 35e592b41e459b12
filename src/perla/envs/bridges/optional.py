"""Optional packages, imported only for an environment that needs them.

Worker processes import this module, so it does not import JAX.
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
from perla.plugins import install_command


def import_optional(package: str, *, extra: str | None = None) -> ModuleType:
    """Import an optional `package`. Raises `UserError` with the pip command if it is missing.
    `extra` is the name of perla's extra that installs it (default: the package's)."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Some print a greeting when imported.
            return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        command = install_command(extra or package)
        raise UserError(f"{package} is not installed: {command}") from None


def version(package: str) -> str:
    """The installed version of `package`."""
    return importlib.metadata.version(package)


def versions(*packages: str) -> dict[str, str]:
    """The versions of those `packages` that are installed."""
    installed = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = version(package)
    return installed


def import_module(name: str, *, id: str) -> ModuleType:
    """Import the module of the environment `id`. Raises `UserError` if it does not exist, needs a
    missing package, or belongs to Python's standard library."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{id}: {name!r} is no module; expected a name such as package.module")
    makers.check_module(id, name)
    try:
        with (
            makers.current_directory(),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
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
    raise UserError(f"{id}: there is no module {missing!r}; install it, or correct its name")


def construction_error(id: str, options: Mapping[str, Any], error: Exception) -> UserError:
    """The error for an environment that cannot be made with these `options`."""
    text = " ".join(str(error).split()) or type(error).__name__
    # Gymnasium appends a list of all arguments.
    text = text.partition(" was raised from the environment creator")[0]
    arguments = ", ".join(f"{name}={value}" for name, value in options.items())
    return UserError(f"{id} cannot be made{f' with {arguments}' if arguments else ''}: {text}")
