"""Display of a suite's progress, which is read from its run folders."""

from __future__ import annotations

import os
import threading
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
from perla.runs.sinks import clock, progress_line
from perla.runs.store import Record
from perla.suites.executors import Event
from perla.suites.suite import Cell

ENDS = ("finished", "failed", "skipped", "stopped")
"""Events after which a cell is no longer this process's."""
LINE_SECONDS = 1.0
"""Seconds between two looks at the running cells for a line of progress."""
TAIL_BYTES = 65_536
"""Bytes at the end of a metrics file that contain its last record."""


@runtime_checkable
class Display(Protocol):
    """Receiver of a suite's events."""

    def begin(self, cells: Mapping[Path, Cell], left: Sequence[Path]) -> None:
        """Start with the suite's cells by folder, and the folders of unfinished cells."""
        ...

    def consume(self, event: Event) -> None:
        """Receive an event of a cell."""
        ...

    def close(self) -> None:
        """End the display."""
        ...


@dataclass
class SuiteProgress:
    """Progress of every cell and an estimate of the remaining time."""

    cells: Mapping[Path, Cell]
    left: set[Path]
    running: list[Path]
    total: int
    """Number of cells that were unfinished at the start."""

    def shares(self) -> dict[Path, float]:
        """Return the finished share of every running cell."""
        return {
            folder: progress_of(folder)[0] / self.cells[folder].run.steps for folder in self.running
        }

    def seconds_left(self) -> float | None:
        """Estimate the remaining seconds from the speeds of cells; None before any is known.

        Cells without a speed are assumed to have the mean speed of their method, or else of all.
        """
        speeds: dict[str, list[float]] = {}
        known = {folder: progress_of(folder) for folder in self.cells}
        for folder, (_, speed) in known.items():
            if speed:
                speeds.setdefault(self.cells[folder].method, []).append(speed)
        all_speeds = [speed for by_method in speeds.values() for speed in by_method]
        if not all_speeds:
            return None
        seconds = 0.0
        for folder in self.left:
            run = self.cells[folder].run
            similar = speeds.get(self.cells[folder].method, all_speeds)
            speed = known[folder][1] or sum(similar) / len(similar)
            seconds += max(0, run.steps - known[folder][0]) * len(run.seeds) / speed
        return seconds / max(1, len(self.running))

    def update(self, event: Event) -> None:
        """Update with an event."""
        folder = event.task.folder
        if event.kind == "started":
            self.running.append(folder)
        elif folder in self.running:
            self.running.remove(folder)
        if event.kind in ENDS:
            self.left.discard(folder)

    def headline(self) -> str:
        """Return the progress of the suite in words."""
        seconds = self.seconds_left()
        rest = f", {clock(seconds)} left" if seconds and self.left else ""
        return f"{self.total - len(self.left)} of {self.total} cells{rest}"


def progress_of(folder: Path) -> tuple[int, float | None]:
    """Return the step, and the steps per second of all seeds, of a run folder's last record."""
    records = last_records(folder)
    if not records:
        return 0, None
    speed = records[-1].get("steps_per_second")
    return int(records[-1]["step"]), float(speed) if speed else None


def last_records(folder: Path) -> list[Record]:
    """Return the records of a run folder's last evaluation; none if they cannot be read."""
    try:
        with open_regular(folder / "metrics.jsonl") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().split(b"\n")[-1025:-1]
        last = msgspec.json.decode(lines[-1], type=dict[str, float | None])
        records: list[Record] = []
        for line in reversed(lines):
            record = msgspec.json.decode(line, type=dict[str, float | None])
            if record["evaluation"] != last["evaluation"]:
                break
            records.insert(0, record)
        return records if last["step"] is not None else []
    except (OSError, UserError, IndexError, KeyError, ValueError, msgspec.DecodeError):
        return []


class Silent:
    """Displays nothing."""

    def begin(self, cells: Mapping[Path, Cell], left: Sequence[Path]) -> None:
        """Do nothing."""

    def consume(self, event: Event) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Plain:
    """Prints a line for every event."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def begin(self, cells: Mapping[Path, Cell], left: Sequence[Path]) -> None:
        """Print the number of cells."""
        self.progress = SuiteProgress(cells, set(left), [], len(left))
        self.since = dict.fromkeys(left, 0.0)
        done = len(cells) - len(left)
        self._print(f"{len(cells)} cells" + (f", {done} of them finished before" if done else ""))

    def consume(self, event: Event) -> None:
        """Print the event."""
        self.progress.update(event)
        folder = event.task.folder
        parts = [f"{event.kind:<8}", self.progress.cells[folder].name]
        if event.kind == "started":
            self.since[folder] = time.monotonic()
        elif self.since[folder]:
            parts.append(f"after {clock(time.monotonic() - self.since[folder])}")
        parts += [event.text] if event.text else []
        parts += [f"({self.progress.headline()})"] if event.kind in ENDS else []
        self._print("  ".join(parts))

    def close(self) -> None:
        """Do nothing."""

    def _print(self, text: str) -> None:
        self.console.print(Text(visible(text)), soft_wrap=True)


class Lines(Plain):
    """Prints a line for every event, and for a running cell's newest evaluation."""

    def begin(self, cells: Mapping[Path, Cell], left: Sequence[Path]) -> None:
        """Print the number of cells, and start looking at their records."""
        super().begin(cells, left)
        self.shown: dict[Path, int] = {}
        self.ended = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def close(self) -> None:
        """Stop looking."""
        self.ended.set()
        self.watcher.join()

    def report(self) -> None:
        """Print a line for each running cell that has a new evaluation."""
        for folder in list(self.progress.running):
            cell, records = self.progress.cells[folder], last_records(folder)
            step = int(records[0]["step"]) if records else -1
            if step <= self.shown.get(folder, -1):
                continue
            self.shown[folder] = step
            self._print(f"{'running':<8}  {cell.name}  {progress_line(cell.run, records)}")

    def _watch(self) -> None:
        while not self.ended.wait(LINE_SECONDS):
            self.report()


class Live(Plain):
    """Draws progress bars of the running cells, and prints events above them."""

    def begin(self, cells: Mapping[Path, Cell], left: Sequence[Path]) -> None:
        """Start drawing."""
        super().begin(cells, left)
        self.live = RichLive(
            get_renderable=self._picture,
            console=self.console,
            refresh_per_second=1,
            transient=True,
        )
        self.live.start()

    def close(self) -> None:
        """Stop drawing."""
        self.live.stop()

    def _picture(self) -> Group:
        rows = Table.grid(padding=(0, 2))
        for folder, share in self.progress.shares().items():
            bar = ProgressBar(total=1.0, completed=share, width=24)
            rows.add_row(Text(visible(self.progress.cells[folder].name)), bar, f"{share:.0%}")
        return Group(Text(self.progress.headline(), style="bold"), rows)


def create_display(*, quiet: bool = False) -> Display:
    """Create the display that suits standard output: live on a terminal, else lines."""
    if quiet:
        return Silent()
    console = Console()
    return Live(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)
