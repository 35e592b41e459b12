"""The exception for user errors."""

from __future__ import annotations

import difflib
import shlex
import unicodedata
from collections.abc import Container, Iterable
from pathlib import Path

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of invisible characters that act on the terminal or on other characters:
controls and escapes, formats (such as writing direction), surrogates, line separators."""


class UserError(Exception):
    """A mistake that the caller can correct, explained in one line.

    The message names the value, the cause and the usual fix. The command line prints it, without a
    traceback, and exits with a non-zero status. Control characters in it, which may come from a
    file, are escaped.
    """

    def __init__(self, message: object) -> None:
        super().__init__(visible(" ".join(str(message).splitlines())))


def visible(text: str) -> str:
    r"""`text` with an escape such as `\x1b` for each invisible character."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escape, text))


def _escape(character: str) -> str:
    if unicodedata.category(character) not in HIDDEN:
        return character
    return character.encode("unicode_escape").decode()


def resume_command(folder: object) -> str:
    """The command that continues the run in `folder`, quoted for a shell."""
    return f"perla resume {shlex.quote(str(folder))}"


def page(name: str) -> str:
    """The path of a page of the documentation, such as `smac.md`: in a clone, or where the wheel
    put it, in a folder above the package. Without the file, its place in the repository."""
    package = Path(__file__).parent
    folders = (folder / "share" / "doc" / "perla" for folder in package.parents)
    found = [folder / name for folder in (package.parents[1] / "docs", *folders)]
    return str(next(filter(Path.is_file, found), f"docs/{name} in perla's repository"))


def nearest(
    word: str, known: Iterable[str], *, what: str, preferred: Container[str] = ()
) -> UserError:
    """The error for an unknown `word`: it suggests the `closest` of `known`, or lists all."""
    known = sorted(known)
    close = closest(word, known, preferred=preferred)
    hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
    return UserError(f"unknown {what} {word!r}; {hint}")


def closest(word: str, known: Iterable[str], *, preferred: Container[str] = ()) -> str | None:
    """The closest of `known` to `word`; none if nothing is close. One of those `preferred` may be a
    little less close than the others."""

    def closeness(name: str) -> float:
        ratio = difflib.SequenceMatcher(None, name, word).ratio()
        return ratio + 0.1 * (name in preferred and ratio >= 0.5)

    best = max(sorted(known), key=closeness, default=None)
    return best if best is not None and closeness(best) >= 0.5 else None
