"""Names of foraging environments, such as `Foraging-8x8-2p-2f-coop-v2`."""

from __future__ import annotations

import difflib
import re
from typing import Any

from perla.errors import UserError

PAPER_MAPS = (
    "Foraging-5x5-2p-1f-v2",
    "Foraging-5x5-2p-1f-coop-v2",
    "Foraging-5x5-2p-2f-v2",
    "Foraging-8x8-2p-2f-coop-v2",
    "Foraging-8x8-3p-3f-v2",
    "Foraging-10x10-5p-1f-coop-v2",
    "Foraging-10x10-3p-5f-v2",
    "Foraging-10x10-5p-3f-v2",
    "Foraging-10x10-8p-1f-coop-v2",
    "Foraging-15x15-8p-1f-coop-v2",
    "Foraging-20x20-10p-3f-v2",
)
"""The ten maps of the paper's benchmark, and the large map of its study of scale."""
EXAMPLES = dict.fromkeys(PAPER_MAPS, "Level-Based Foraging")
"""Names of maps, with a description."""
PATTERNS = {
    "Foraging[-grid][-Ks]-SxS-Pp-Ff[-coop]-v2|v3": (
        "any other map: grid observations, sight K, size S, P players, F foods"
    )
}
"""All names, with placeholders."""

_PARTS = (
    ("Foraging", r"Foraging", True),
    ("-grid", r"grid", False),
    ("a sight such as '2s'", r"(?P<sight>\d+)s", False),
    ("a size such as '8x8'", r"(?P<rows>\d+)x(?P<cols>\d+)", True),
    ("the number of players, such as '2p'", r"(?P<players>\d+)p", True),
    ("the number of foods, such as '2f'", r"(?P<foods>\d+)f", True),
    ("-coop", r"coop", False),
    ("the version, 'v2' or 'v3'", r"v(?P<version>\d+)", True),
)
"""The grammar of names: the description of a part, its pattern, and whether it is required."""


def parse_name(name: str) -> dict[str, Any]:
    """The arguments of `perla.envs.foraging.Foraging` that `name` stands for.

    The grammar is `Foraging[-grid][-{k}s]-{s}x{s}-{p}p-{f}f[-coop]-v2|-v3`, for any size s,
    players p, foods f and sight k. Raises `UserError` for any other name.
    """
    words = name.split("-")
    values: dict[str, str] = {}
    for description, pattern, required in _PARTS:
        match = re.fullmatch(pattern, words[0]) if words else None
        if match:
            values |= match.groupdict() | {words.pop(0): ""}
        elif required:
            where = f"{words[0]!r} stands" if words else "it ends"
            raise _malformed(name, f"{description} is missing where {where}")
    if words:
        raise _malformed(name, f"nothing may follow the version, yet {'-'.join(words)!r} does")
    if values["rows"] != values["cols"]:
        raise _malformed(name, f"grids are square, and {values['rows']}x{values['cols']} is not")
    if values["version"] not in ("2", "3"):
        raise _malformed(name, f"there is no version v{values['version']}, only v2 and v3")
    return {
        "size": int(values["rows"]),
        "players": int(values["players"]),
        "foods": int(values["foods"]),
        "sight": int(values["sight"]) if "sight" in values else None,
        "coop": "coop" in values,
        "version": int(values["version"]),
        "grid": "grid" in values,
    }


def _malformed(name: str, cause: str) -> UserError:
    close = difflib.get_close_matches(name, PAPER_MAPS, n=1, cutoff=0.0)
    return UserError(f"foraging id {name!r}: {cause}; for example {close[0]!r}")
