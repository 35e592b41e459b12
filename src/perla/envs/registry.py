"""From the names that users know to worlds: `make("lbf:Foraging-8x8-2p-2f-coop-v2")`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perla.envs import foraging
from perla.envs.protocol import Env
from perla.errors import UserError, nearest

FAMILIES: dict[str, Callable[..., Env]] = {"lbf": foraging.make}
"""Every family: its prefix, and what makes a world from the rest of the id and its options."""


def make(id: str, **options: Any) -> Env:
    """The world called `id`, a family's prefix and a name: `lbf:Foraging-8x8-2p-2f-coop-v2`.

    `options` are the family's own (for foraging: `reward`, `penalty`). Raises `UserError` for an
    unknown family, name or option.
    """
    family, colon, name = id.partition(":")
    if not colon:
        raise UserError(f"environment {id!r} lacks its family; did you mean 'lbf:{id}'?")
    if family not in FAMILIES:
        raise nearest(family, FAMILIES, what="environment family")
    return FAMILIES[family](name, **options)
