"""Tables and lines on standard output.

Their text may come from files of other people: it is printed literally, without markup for rich and
without control characters for the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perla.errors import visible

WIDTH = 160
"""Columns of output into a pipe or a file, so that nothing is cut off."""


def say(what: Any) -> None:
    """Print a table or a line."""
    from rich.console import Console

    target = Console()
    if not target.is_terminal:
        target = Console(width=WIDTH)
    line = isinstance(what, str)
    target.print(words(what) if line else what, soft_wrap=line)


def table(title: str, rows: Sequence[Mapping[str, str]], *, left: Sequence[str] = ()) -> Any:
    """A table of formatted cells; the columns in `left` are left-aligned."""
    from rich.table import Table

    table = Table(title=words(title, style="table.title"))
    for name in rows[0]:
        table.add_column(words(name), justify="left" if name in left else "right")
    for row in rows:
        table.add_row(*map(words, row.values()))
    return table


def words(text: str, *, style: str = "") -> Any:
    """`text` for rich, without markup and control characters."""
    from rich.text import Text

    return Text(visible(text), style=style)
