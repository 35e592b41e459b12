"""Consumers of a run's records: TensorBoard, the terminal, a final table.

A loop yields lists of records, one record for each seed; whoever wants them consumes them.
"""

from __future__ import annotations

import itertools
import math
import socket
import statistics
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from perla.errors import visible
from perla.files import append
from perla.runs.spec import Run
from perla.runs.store import Record, metrics

SHOWN = {
    "return": "return",
    "win_rate": "won",
    "td_error": "TD error",
    "spread": "spread",
    "joint_actions": "K",
    "effective_samples": "effective K",
}
"""Metrics of the terminal display, in order, where a record has them."""


@runtime_checkable
class Display(Protocol):
    """Whoever watches a run."""

    def begin(self, run: Run, done: int) -> None:
        """The run is about to start or to go on after `done` steps of each seed."""
        ...

    def consume(self, records: Sequence[Record]) -> None:
        """One evaluation of every seed."""
        ...

    def say(self, text: str) -> None:
        """A line of news."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over."""
        ...

    def close(self) -> None:
        """Nothing follows, whether the run is over or not."""
        ...


class Silent:
    """Says nothing."""

    def begin(self, run: Run, done: int) -> None:
        """Nothing."""

    def consume(self, records: Sequence[Record]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Plain:
    """One short line for each evaluation, for pipes and log files."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run: Run | None = None

    def begin(self, run: Run, done: int) -> None:
        """Say what runs."""
        self.run = run
        self.say(title(run) + (f", from step {done:,}" if done else ""))

    def consume(self, records: Sequence[Record]) -> None:
        """Print the line."""
        assert self.run is not None
        step = records[0]["step"]
        parts = [f"step {step:,}/{self.run.steps:,}"]
        parts += [f"{label} {over_seeds(records, name)}" for name, label in shown(records)]
        rate = records[0].get("steps_per_second")
        if rate:
            parts += [f"{rate:,.0f} steps/s", f"{left(self.run, step, rate)} left"]
        self.say("  ".join(parts))

    def say(self, text: str) -> None:
        """Print `text`."""
        self.console.print(Text(visible(text)), soft_wrap=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Print the table."""
        self.console.print(final_table(summary))

    def close(self) -> None:
        """Nothing is open."""


class Live:
    """A display that renews itself: progress, speed, time left, and how the metrics move."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.history: dict[str, list[float]] = {}
        self.latest: list[Record] = []
        self.progress = Progress(
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
            TextColumn("[bold]{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("[dim]{task.fields[left]}"),
            console=console,
            expand=True,
        )
        self.live: RichLive | None = None
        self.run: Run | None = None

    def begin(self, run: Run, done: int) -> None:
        """Start to draw."""
        self.run = run
        self.task = self.progress.add_task(
            "", total=run.steps, completed=done, rate="compiling", left=""
        )
        self.live = RichLive(self._picture(), console=self.console, transient=True)
        self.live.start()

    def consume(self, records: Sequence[Record]) -> None:
        """Renew the picture."""
        assert self.run is not None
        self.latest = list(records)
        for name, _ in shown(records):
            self.history.setdefault(name, []).append(_mean(values(records, name)))
        step, rate = records[0]["step"], records[0].get("steps_per_second")
        self.progress.update(
            self.task,
            completed=step,
            rate=f"{rate:,.0f} steps/s" if rate else "",
            left=f"{left(self.run, step, rate)} left" if rate else "",
        )
        if self.live is not None:
            self.live.update(self._picture())

    def say(self, text: str) -> None:
        """Print `text` above the picture."""
        self.console.print(Text(visible(text)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Put the table in the picture's place."""
        self.close()
        self.console.print(final_table(summary))

    def close(self) -> None:
        """Stop to draw."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _picture(self) -> Group:
        assert self.run is not None
        table = Table.grid(padding=(0, 2))
        for name, label in shown(self.latest):
            table.add_row(
                Text(label, style="dim"),
                Text(over_seeds(self.latest, name), style="bold"),
                Text(sparkline(self.history[name]), style="cyan"),
            )
        step = self.latest[0]["step"] if self.latest else 0
        steps = Text(f"step {step:,} of {self.run.steps:,}", style="dim")
        return Group(Text(visible(title(self.run)), style="bold"), table, steps, self.progress)


def display(*, quiet: bool = False) -> Display:
    """What fits the place where standard output goes."""
    if quiet:
        return Silent()
    console = Console()
    return Live(console) if console.is_terminal and not console.is_dumb_terminal else Plain(console)


class TensorBoard:
    """Scalars as TensorBoard events: every metric for each seed, and its mean.

    TensorBoard forgets what an earlier process wrote into the folder from `purge_step` on.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        stamp = f"{time.time():.0f}.{socket.gethostname()}"
        self.path = folder / f"events.out.tfevents.{stamp}"
        log = SessionLog(status=SessionLog.START)
        start = [
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), step=purge_step, session_log=log),
        ]
        append(self.path, b"".join(framed(event.SerializeToString()) for event in start))

    def consume(self, records: Sequence[Record]) -> None:
        """Write the scalars of one evaluation, durably."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary()
        for record in records:
            for name, value in metrics(record).items():
                if value is not None:
                    summary.value.add(tag=f"{name}/seed_{record['seed']}", simple_value=value)
        for name in metrics(records[0]):
            if found := values(records, name):
                summary.value.add(tag=f"{name}/mean", simple_value=_mean(found))
        event = Event(wall_time=time.time(), step=records[0]["step"], summary=summary)
        append(self.path, framed(event.SerializeToString()))


def framed(data: bytes) -> bytes:
    """`data` as one TFRecord: length, checksum, data, checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    check, check_data = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + check + data + check_data


def final_table(summary: Mapping[str, Any]) -> Table:
    """Final, best and absolute return of every seed, and over seeds."""
    table = Table(
        title=Text(visible(f"{summary['algo']} on {summary['env']}"), style="table.title"),
        caption=(
            f"{summary['steps']:,} steps a seed in {clock(summary['wall_seconds'])}"
            + (f" ({summary['steps_per_second']:,.0f}/s)" if summary["steps_per_second"] else "")
            + f"\ncompiled in {summary['compile_seconds']:.1f} s"
        ),
    )
    table.add_column("seed", justify="right")
    for name in ("final return", "best return", "at step", "absolute return"):
        table.add_column(name, justify="right")
    for entry in summary["seeds"]:
        table.add_row(
            str(entry["seed"]),
            figure(entry["final"].get("return")),
            figure(entry["best"].get("return")),
            f"{entry['best']['step']:,}",
            figure(entry["absolute"].get("return")),
        )
    if len(summary["seeds"]) > 1:
        table.add_section()
        for label, kind in (("IQM", "iqm"), ("mean", "mean")):
            over = summary[kind]
            table.add_row(
                label,
                figure(over["final"]),
                figure(over["best"]),
                "",
                figure(over["absolute"]),
                style="bold" if kind == "iqm" else "",
            )
    return table


def title(run: Run) -> str:
    """What runs, in a line."""
    seeds = f"seed {run.seeds[0]}" if len(run.seeds) == 1 else f"{len(run.seeds)} seeds"
    return f"{run.algo} ({run.preset}) on {run.env}, {seeds}"


def shown(records: Sequence[Record]) -> list[tuple[str, str]]:
    """The metrics to display, of those that there are."""
    return [(name, label) for name, label in SHOWN.items() if values(records, name)]


def values(records: Sequence[Record], name: str) -> list[float]:
    """The finite values of a metric over seeds."""
    found = (record.get(name) for record in records)
    return [float(value) for value in found if value is not None and math.isfinite(value)]


def over_seeds(records: Sequence[Record], name: str) -> str:
    """A metric's mean over seeds, ± its deviation where there are several."""
    found = values(records, name)
    spread = f"±{statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{figure(_mean(found))}{spread}"


def figure(value: float | None) -> str:
    """A metric's value in a table."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def left(run: Run, step: int, rate: float) -> str:
    """The time left at `rate` steps a second of all seeds together."""
    return clock(max(0, run.steps - step) * len(run.seeds) / rate)


def clock(seconds: float) -> str:
    """`seconds` as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sparkline(history: Sequence[float], width: int = 40) -> str:
    """A curve of at most `width` characters."""
    if len(history) > width:
        ends = [round(i * len(history) / width) for i in range(width + 1)]
        history = [_mean(history[a:b]) for a, b in itertools.pairwise(ends)]
    low, high = min(history), max(history)
    blocks = "▁▂▃▄▅▆▇█"
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((value - low) * scale)] for value in history)


def _mean(found: Sequence[float]) -> float:
    return sum(found) / len(found)
