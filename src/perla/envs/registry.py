"""From the names that users know to worlds: `make("lbf:Foraging-8x8-2p-2f-coop-v2")`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from perla.envs import foraging, matrix
from perla.envs.protocol import Env
from perla.errors import UserError, nearest

FAMILIES: dict[str, Callable[..., Env]] = {"lbf": foraging.make, "matrix": matrix.make}
"""Every family: its prefix, and what makes a world from the rest of the id and its options."""

EXAMPLES: dict[str, Iterable[str]] = {"lbf": foraging.PAPER_MAPS, "matrix": matrix.EXAMPLES}
"""Names that each family knows."""


def make(id: str, **options: Any) -> Env:
    """The world called `id`, a family's prefix and a name: `lbf:Foraging-8x8-2p-2f-coop-v2`.

    `options` are the family's own (for foraging: `reward`, `penalty`). Raises `UserError` for an
    unknown family, name or option.
    """
    family, colon, name = id.partition(":")
    if not colon:
        known = {name: family for family, names in EXAMPLES.items() for name in names}
        (close,) = difflib.get_close_matches(id, known, n=1, cutoff=0.0)
        raise UserError(f"environment {id!r} lacks its family; did you mean '{known[close]}:{id}'?")
    if family not in FAMILIES:
        raise nearest(family, FAMILIES, what="environment family")
    return FAMILIES[family](name, **options)
