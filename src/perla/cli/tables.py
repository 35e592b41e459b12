"""Tables and lines on standard output.

Their text may come from files of other people: it is printed literally, without markup for rich and
without control characters for the terminal.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from perla.errors import visible

WIDTH = 160
"""Columns of output into a pipe or a file, so that nothing is cut off, unless COLUMNS says
otherwise."""
LEAST_WIDTH = 40
"""Columns below which tables are not made narrower."""


def say(what: Any) -> None:
    """Print a table or a line."""
    line = isinstance(what, str)
    _console().print(words(what) if line else what, soft_wrap=line)


def tell(text: str) -> None:
    """Print a line on standard error."""
    print("perla:", visible(" ".join(text.split())), file=sys.stderr)


def say_table(title: str, rows: Sequence[Mapping[str, str]], *, left: Sequence[str] = ()) -> None:
    """Print a table with every cell in full: where it is too wide, an interval stands below its
    number, and then the columns are spread over several tables, each with the first column."""
    width = max(LEAST_WIDTH, _console().width)
    if _width(rows) > width:
        rows = [{name: _two_lines(cell) for name, cell in row.items()} for row in rows]
    for block in _blocks(rows, width):
        narrow = [{_wrapped(name, block): row[name] for name in block} for row in rows]
        say(table(title, narrow, left=[_wrapped(name, block) for name in left if name in block]))
        title = ""


def table(title: str, rows: Sequence[Mapping[str, str]], *, left: Sequence[str] = ()) -> Any:
    """A table of formatted cells; the columns in `left` are left-aligned."""
    from rich.table import Table

    table = Table(title=words(title, style="table.title") if title else None)
    for name in rows[0]:
        table.add_column(words(name), justify="left" if name in left else "right")
    for row in rows:
        table.add_row(*map(words, row.values()))
    return table


def words(text: str, *, style: str = "") -> Any:
    """`text` for rich, without markup and control characters save for ends of lines."""
    from rich.text import Text

    return Text("\n".join(map(visible, text.split("\n"))), style=style)


def _console() -> Any:
    """The console for standard output."""
    from rich.console import Console

    target = Console()
    if target.is_terminal:
        return target
    columns = os.environ.get("COLUMNS", "")
    given = columns.isdecimal() and int(columns) > 0
    return Console(width=max(LEAST_WIDTH, int(columns)) if given else WIDTH)


# --- Widths -------------------------------------------------------------------------------------


def _blocks(rows: Sequence[Mapping[str, str]], width: int) -> list[dict[str, int]]:
    """The columns of each table, with their widths; the first column is in all."""
    first, *others = _widths(rows).items()
    blocks = [dict([first])]
    for name, wide in others:
        if len(blocks[-1]) > 1 and _total([*blocks[-1].values(), wide]) > width:
            blocks.append(dict([first]))
        blocks[-1][name] = wide
    return blocks


def _width(rows: Sequence[Mapping[str, str]]) -> int:
    return _total(list(_widths(rows).values()))


def _widths(rows: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """The width of each column: of its widest cell, or of the longest word of its name."""
    return {
        name: max(
            *(len(word) for word in name.split()),
            *(len(line) for row in rows for line in row[name].split("\n")),
        )
        for name in rows[0]
    }


def _total(widths: Sequence[int]) -> int:
    """The width of a table with its borders."""
    return sum(widths) + 3 * len(widths) + 1


def _wrapped(name: str, widths: Mapping[str, int]) -> str:
    """A column's name in lines of the column's width, so that it does not widen the column."""
    return "\n".join(textwrap.wrap(name, widths[name])) or name


def _two_lines(cell: str) -> str:
    """An interval or a count below its number."""
    return re.sub(r" (?=[\[(])", "\n", cell, count=1)
