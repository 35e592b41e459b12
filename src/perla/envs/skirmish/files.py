"""TOML files of skirmish: those that come with the package, and users' own."""

from __future__ import annotations

import functools
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from perla.errors import UserError
from perla.files import explained, read_regular

DATA = resources.files("perla.envs.skirmish") / "data"


def read_data(name: str) -> dict[str, Any]:
    """The content of a file that comes with the package."""
    return tomllib.loads((DATA / name).read_text(encoding="utf-8"))


@functools.cache
def names() -> tuple[str, ...]:
    """The maps that come with the package."""
    files = (DATA / "maps").iterdir()
    return tuple(sorted(each.name.removesuffix(".toml") for each in files))


def read_file(path: str) -> dict[str, Any]:
    """The content of a user's file. Raises `UserError` if it cannot be read or is no TOML."""
    with explained(Path(path)):
        content = read_regular(Path(path))
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
