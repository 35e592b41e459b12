"""The one exception that people who use perla are meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the caller can mend, told in one line.

    The message names the value, the cause and the nearest right thing. The command line prints
    it and exits with a non-zero status; nobody sees a traceback.
    """


def nearest(word: str, known: Iterable[str], *, what: str) -> UserError:
    """The error for an unknown `word`: it suggests the closest of `known`, else lists them."""
    known = sorted(known)
    close = closest(word, known)
    hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
    return UserError(f"unknown {what} {word!r}; {hint}")


def closest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` most likely means; none where nothing is close."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return close[0] if close else None
