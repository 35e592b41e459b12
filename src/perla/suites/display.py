"""Watching a suite: its cells' own folders tell how far they are."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec
from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from perla.errors import UserError, visible
from perla.files import open_regular
from perla.runs.sinks import clock
from perla.suites.executors import Event
from perla.suites.suite import Cell

TAIL_BYTES = 65_536
"""Of a metrics file, where its last record surely lies."""


@runtime_checkable
class Display(Protocol):
    """Whoever watches a suite."""

    def begin(self, cells: Mapping[Path, Cell], left: Sequence[Path]) -> None:
        """The suite's cells by folder, and those that are still to be carried out."""
        ...

    def consume(self, event: Event) -> None:
        """Something happened to a cell."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


@dataclass
class Watch:
    """How far every cell is, and how long the rest will take."""

    cells: Mapping[Path, Cell]
    left: set[Path]
    working: list[Path]
    total: int
    """Cells that had to be carried out at the beginning."""

    def shares(self) -> dict[Path, float]:
        """The share that is done of every cell at work."""
        return {
            folder: reached(folder)[0] / self.cells[folder].run.steps for folder in self.working
        }

    def seconds_left(self) -> float | None:
        """Estimated from the speeds of the cells at work and of those like them; None before any
        is known."""
        speeds: dict[str, list[float]] = {}
        known = {folder: reached(folder) for folder in self.cells}
        for folder, (_, speed) in known.items():
            if speed:
                speeds.setdefault(self.cells[folder].method, []).append(speed)
        every = [speed for found in speeds.values() for speed in found]
        if not every:
            return None
        seconds = 0.0
        for folder in self.left:
            run = self.cells[folder].run
            like = speeds.get(self.cells[folder].method, every)
            speed = known[folder][1] or sum(like) / len(like)
            seconds += max(0, run.steps - known[folder][0]) * len(run.seeds) / speed
        return seconds / max(1, len(self.working))

    def tell(self, event: Event) -> None:
        """Follow an event."""
        folder = event.task.folder
        if event.kind == "started":
            self.working.append(folder)
        elif folder in self.working:
            self.working.remove(folder)
        if event.kind in ("finished", "failed"):
            self.left.discard(folder)

    def headline(self) -> str:
        """How far the suite is."""
        seconds = self.seconds_left()
        rest = f", {clock(seconds)} left" if seconds and self.left else ""
        return f"{self.total - len(self.left)} of {self.total} cells{rest}"


def reached(folder: Path) -> tuple[int, float | None]:
    """The step and the speed (all seeds, steps a second) in the last record of a run folder."""
    try:
        with open_regular(folder / "metrics.jsonl") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        record = msgspec.json.decode(lines[-1], type=dict[str, object])
        speed = record.get("steps_per_second")
        return int(str(record["step"])), float(str(speed)) if speed else None
    except (OSError, UserError, IndexError, KeyError, ValueError, msgspec.DecodeError):
        return 0, None


class Silent:
    """Says nothing."""

    def begin(self, cells: Mapping[Path, Cell], left: Sequence[Path]) -> None:
        """Nothing."""

    def consume(self, event: Event) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Plain:
    """A line for everything that happens."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def begin(self, cells: Mapping[Path, Cell], left: Sequence[Path]) -> None:
        """Say how much there is to do."""
        self.watch = Watch(cells, set(left), [], len(left))
        self.since = dict.fromkeys(left, 0.0)
        done = len(cells) - len(left)
        self._print(f"{len(cells)} cells" + (f", {done} of them finished before" if done else ""))

    def consume(self, event: Event) -> None:
        """Print what happened."""
        self.watch.tell(event)
        folder = event.task.folder
        parts = [f"{event.kind:<8}", self.watch.cells[folder].name]
        if event.kind == "started":
            self.since[folder] = time.monotonic()
        else:
            parts.append(f"after {clock(time.monotonic() - self.since[folder])}")
        parts += [event.text] if event.text else []
        parts += [f"({self.watch.headline()})"] if event.kind in ("finished", "failed") else []
        self._print("  ".join(parts))

    def close(self) -> None:
        """Nothing is open."""

    def _print(self, text: str) -> None:
        self.console.print(Text(visible(text)), soft_wrap=True)


class Live(Plain):
    """A picture of the cells at work that renews itself; above it what went wrong."""

    def begin(self, cells: Mapping[Path, Cell], left: Sequence[Path]) -> None:
        """Start to draw."""
        super().begin(cells, left)
        self.live = RichLive(
            get_renderable=self._picture,
            console=self.console,
            refresh_per_second=1,
            transient=True,
        )
        self.live.start()

    def close(self) -> None:
        """Stop to draw."""
        self.live.stop()

    def _picture(self) -> Group:
        rows = Table.grid(padding=(0, 2))
        for folder, share in self.watch.shares().items():
            bar = ProgressBar(total=1.0, completed=share, width=24)
            rows.add_row(Text(visible(self.watch.cells[folder].name)), bar, f"{share:.0%}")
        return Group(Text(self.watch.headline(), style="bold"), rows)


def display(*, quiet: bool = False) -> Display:
    """What fits the place where standard output goes."""
    if quiet:
        return Silent()
    console = Console()
    return Live(console) if console.is_terminal and not console.is_dumb_terminal else Plain(console)
