"""Tables and lines on standard output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 160
"""Columns where nobody looks: in a pipe or a file nothing is cut short."""


def say(what: Any) -> None:
    """Print a table or a line."""
    from rich.console import Console

    target = Console()
    if not target.is_terminal:
        target = Console(width=WIDTH)
    target.print(what, soft_wrap=isinstance(what, str), highlight=False, markup=False)


def table(title: str, rows: Sequence[Mapping[str, str]], *, left: Sequence[str] = ()) -> Any:
    """Rows of formatted cells as a table; columns of words are called `left`."""
    from rich.table import Table

    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in left else "right")
    for row in rows:
        table.add_row(*row.values())
    return table
