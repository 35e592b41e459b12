"""Action masks of other libraries' environments, which are recognised by their names.

No standard fixes where an environment keeps its mask: `action_mask`, `avail_actions`,
`available_actions` and `legal_moves` are in use, in observations and in infos. A mask that is not
recognised would become a feature, and its agent would choose actions that it does not have.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from perla.envs.values import Fault, to_flags

_ALLOWED = "(avail|available|legal|valid|allowed|possible|feasible|permitted|admissible)"
_DENIED = (
    "(unavailable|illegal|invalid|disallowed|impossible|infeasible|forbidden|blocked|inadmissible)"
)
_ACTIONS = "(action|act|move|choice)s?"
_MASK = re.compile(
    rf"^(masks?|avail)$|(^|_)({_ALLOWED}_{_ACTIONS}|{_ACTIONS}_{_ALLOWED}|{_ACTIONS}_masks?"
    rf"|{_ALLOWED}_masks?|masks?_({_ALLOWED}_)?{_ACTIONS}|{_ALLOWED}_{_ACTIONS}_masks?)$"
)
_INVERSE = re.compile(rf"(^|_){_DENIED}_({_ACTIONS}|masks?)(_masks?)?$")
_COUNT = re.compile(r"^(n|num|number|count)_")


@functools.lru_cache(maxsize=4096)
def is_mask(key: Any) -> bool:
    """True if an entry called `key` is an action mask: `action_mask`, `legalMoves`, `mask`, …

    Raises `Fault` for a mask of the actions that are not available, such as `invalid_actions`.
    """
    if not isinstance(key, str):
        return False
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z]+", "_", key).strip("_").lower()
    if _COUNT.search(words):
        return False
    if _INVERSE.search(words):
        raise Fault(f"{key!r} names the actions that are not available; return an `action_mask`")
    return bool(_MASK.search(words))


def take(info: Mapping[Any, Any]) -> dict[str, Any]:
    """The masks of an info, by name. Raises `Fault` for a mask in a dictionary inside."""
    found = {}
    for key, entry in info.items():
        if is_mask(key):
            found[key] = entry
        elif isinstance(entry, Mapping) and (name := next(_names(entry), None)):
            raise Fault(f"the action mask {name!r} is inside {key!r}, and is looked for beside it")
    return found


def _names(entries: Mapping[Any, Any]) -> Iterator[str]:
    """The names of all masks in nested dictionaries."""
    for key, entry in entries.items():
        if is_mask(key):
            yield key
        elif isinstance(entry, Mapping):
            yield from _names(entry)


def read(name: str, mask: Any, size: int, parts: Sequence[int] = ()) -> Bool[np.ndarray, " action"]:
    """The mask of `size` actions. For the combinations of `parts` it may as well have an entry for
    each choice of each part, in one array or in one for each part.

    Raises `Fault` for another shape, for other values than 0 and 1, and where the shape has both
    meanings.
    """
    if len(parts) > 1 and isinstance(mask, (tuple, list)) and len(mask) == len(parts):
        each = [to_flags(name, part) for part in mask]
        if [part.shape for part in each] == [(n,) for n in parts]:
            return _combine(each)
    flags = to_flags(name, mask)
    if len(parts) > 1 and flags.shape == (sum(parts),):
        if sum(parts) == size:
            raise Fault(
                f"`{name}` has {size} entries, one for each combination of actions or for each "
                f"choice of the parts {tuple(parts)}; return one array for each part instead"
            )
        return _combine(np.split(flags, np.cumsum(parts)[:-1]))
    if flags.shape != (size,):
        by_parts = f" or {(sum(parts),)}" if len(parts) > 1 else ""
        raise Fault(f"`{name}` has shape {flags.shape}, expected {(size,)}{by_parts}")
    return flags


def _combine(parts: Sequence[Bool[np.ndarray, " _"]]) -> Bool[np.ndarray, " action"]:
    """A combination is available if all of its parts are."""
    return functools.reduce(np.logical_and.outer, parts).ravel()
