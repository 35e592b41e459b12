"""The one exception that people who use perla are meant to read."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that act on a terminal or on other characters instead of being
seen: controls and escapes, formats (which turn the direction of writing), surrogates, separators of
lines."""


class UserError(Exception):
    """A mistake that the caller can mend, told in one line.

    The message names the value, the cause and the nearest right thing. The command line prints
    it and exits with a non-zero status; nobody sees a traceback. Control characters in it, which
    may have come out of a file, are made visible.
    """

    def __init__(self, message: object) -> None:
        super().__init__(visible(" ".join(str(message).splitlines())))


def visible(text: str) -> str:
    r"""`text` with an escape such as `\x1b` in the place of each character that nobody can see."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_seen, text))


def _seen(character: str) -> str:
    if unicodedata.category(character) not in HIDDEN:
        return character
    return character.encode("unicode_escape").decode()


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
