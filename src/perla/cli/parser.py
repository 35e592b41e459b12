"""Parsing of the command line: every mistake is one line with a suggestion."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from perla.errors import UserError, nearest

if TYPE_CHECKING:
    from perla.envs.registry import Trust

Unknown = Callable[[str, Sequence[str], argparse.Namespace], UserError]
"""Returns the error for an unknown flag, given the known flags and the other arguments."""


def _nearest(flag: str, known: Sequence[str], arguments: argparse.Namespace) -> UserError:
    return nearest(flag, known, what="flag")


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UserError`."""

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(
            prog=f"perla {command}".strip(),
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Raise `message` as a `UserError`."""
        raise UserError(message.removeprefix("argument "))

    def parse(self, argv: Sequence[str], *, unknown: Unknown = _nearest) -> argparse.Namespace:
        """The arguments, with the flags of `argv` in `given`.

        Raises the error that `unknown` returns for an unknown flag.
        """
        flags = {action.dest: action for action in self._actions if action.option_strings}
        if _collecting:
            raise _Collected(self)
        absent = argparse.Namespace(**dict.fromkeys(flags))
        arguments, extra = self.parse_known_args(_bind_negative_numbers(argv), absent)
        for word in extra:
            if word.startswith("-"):
                known = [flag for action in self._actions for flag in action.option_strings]
                raise unknown(word.partition("=")[0], known, arguments)
        if extra:
            raise UserError(f"unexpected argument {extra[0]!r}; see `{self.prog} --help`")
        missing = [name for name in flags if getattr(arguments, name) is None]
        arguments.given = [flags[name].option_strings[0] for name in flags if name not in missing]
        for name in missing:
            setattr(arguments, name, flags[name].default)
        return arguments


class _Collected(Exception):
    """Takes a command's parser out of the command."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser


_collecting: list[bool] = []


def collect(command: Callable[[Sequence[str]], int]) -> Parser:
    """The parser of a `command`, which is called until it would parse its arguments."""
    _collecting.append(True)
    try:
        command(())
    except _Collected as collected:
        return collected.parser
    finally:
        _collecting.pop()
    raise AssertionError(f"{command} parses no arguments")


def _bind_negative_numbers(argv: Sequence[str]) -> list[str]:
    """`--lr -1e-3` as `--lr=-1e-3`, which argparse would otherwise take for two flags."""
    bound: list[str] = []
    for word in argv:
        if bound and re.fullmatch(r"--[a-z-]+", bound[-1]) and re.match(r"-\.?(\d|inf)", word):
            bound[-1] += f"={word}"
        else:
            bound.append(word)
    return bound


def add_trust(parser: Parser) -> None:
    """Add the flags that allow a file to name code."""
    parser.add_argument(
        "--env", metavar="ID", action="append",
        help="trust this environment, which the file names and which is code: module:function, "
        "gym:… or pettingzoo:…; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--trust", action="store_true", help="trust every environment that the file names"
    )


def trust(arguments: argparse.Namespace) -> Trust:
    """The value of the flags of `add_trust`."""
    return arguments.trust or tuple(arguments.env or ())


def seeds(text: str) -> tuple[int, ...]:
    """The seeds of `--seeds`: `5` is 0 to 4, `3,7` are these two, and `3,` is seed 3 alone."""
    from perla.runs.spec import read_seeds

    return read_seeds(text, name="--seeds")
