"""Reading the command line: one line for every mistake, and the nearest right thing."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from perla.config import describe, members
from perla.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose mistakes are `UserError`s."""

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(
            prog=f"perla {command}".strip(),
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Raise the mistake."""
        raise UserError(message.removeprefix("argument "))

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments; `UserError` for an unknown flag, with the nearest known one."""
        arguments, extra = self.parse_known_args(_bind_negative_numbers(argv))
        for word in extra:
            if word.startswith("-"):
                known = [flag for action in self._actions for flag in action.option_strings]
                raise nearest(word.partition("=")[0], known, what="flag")
        if extra:
            raise UserError(f"unexpected argument {extra[0]!r}; see `{self.prog} --help`")
        return arguments


def _bind_negative_numbers(argv: Sequence[str]) -> list[str]:
    """`--lr -1e-3` as `--lr=-1e-3`, which argparse would otherwise take for two flags."""
    bound: list[str] = []
    for word in argv:
        if bound and re.fullmatch(r"--[a-z-]+", bound[-1]) and re.match(r"-\.?(\d|inf)", word):
            bound[-1] += f"={word}"
        else:
            bound.append(word)
    return bound


def convert(text: str, type: Any, *, flag: str) -> Any:
    """`text` as a value of `type`; `UserError`, naming the flag and what it allows, if it is not.

    Whole numbers may be written `1e6` or `1_000_000`, and nothing at all as `none`.
    """
    try:
        return msgspec.convert(_literal(text, type), type, strict=False)
    except (ValueError, OverflowError):
        raise UserError(f"{flag} {text}: expected {describe(type)}") from None


def _literal(text: str, type: Any) -> Any:
    if text.lower() == "none":
        return None
    if re.fullmatch(r"[+-]?[\d_]+", text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        raise ValueError
    if number.is_integer() and not any(_is_float(member) for member in members(type)):
        return int(number)
    return number


def _is_float(type: Any) -> bool:
    return type is float or getattr(type, "__origin__", None) is float


def seeds(text: str) -> tuple[int, ...]:
    """`5` means the seeds 0 to 4; `3,7` means these two, and `3,` means seed 3 alone."""
    from perla.runs.spec import Seed

    if "," not in text:
        count = convert(text, int, flag="--seeds")
        if not 1 <= count <= 1024:
            raise UserError(f"--seeds {text}: expected 1 to 1024 seeds, or a list such as 3,7")
        return tuple(range(count))
    words = [word for word in text.split(",") if word]
    found = tuple(convert(word, Seed, flag="--seeds") for word in words)
    if not found or len(set(found)) < len(found):
        raise UserError(f"--seeds {text}: expected a list in which each seed stands once")
    return found
