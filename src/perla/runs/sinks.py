"""Displays of a run in the terminal: a line for each evaluation, a live picture, a final table."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from perla.analysis.stats import iqm
from perla.errors import visible
from perla.runs.spec import Run
from perla.runs.store import Record, finite_values, mean

SHOWN = {
    "return": "return",
    "return_sampled": "sampled",
    "win_rate": "won",
    "win_rate_sampled": "won, sampled",
    "td_error": "TD error",
    "spread": "spread",
    "joint_actions": "K",
    "effective_samples": "effective K",
}
"""Metrics of the terminal display in order, with their labels."""


@runtime_checkable
class Display(Protocol):
    """A display of a run's progress."""

    def begin(self, run: Run, evaluations: str, done: int) -> None:
        """The run starts, or resumes after `done` steps of each seed. `evaluations` is a line about
        its evaluations."""
        ...

    def consume(self, records: Sequence[Record]) -> None:
        """Show one evaluation of every seed."""
        ...

    def say(self, text: str) -> None:
        """Show a message of one line."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is finished."""
        ...

    def close(self) -> None:
        """Release the terminal; no call follows. The run may be unfinished."""
        ...


class Silent:
    """A display that shows nothing."""

    def begin(self, run: Run, evaluations: str, done: int) -> None:
        """Do nothing."""

    def consume(self, records: Sequence[Record]) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Plain:
    """A display of one short line for each evaluation, for pipes and log files."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run: Run | None = None

    def begin(self, run: Run, evaluations: str, done: int) -> None:
        """Print the run's title."""
        self.run = run
        self.say(title(run) + (f", from step {done:,}" if done else ""))
        self.say(evaluations)

    def consume(self, records: Sequence[Record]) -> None:
        """Print the line of an evaluation."""
        assert self.run is not None
        self.say(progress_line(self.run, records))

    def say(self, text: str) -> None:
        """Print `text`."""
        self.console.print(Text(visible(text)), soft_wrap=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Print the final table."""
        self.console.print(final_table(summary))

    def close(self) -> None:
        """Do nothing."""


class Live:
    """A display that updates in place: progress, speed, time left and the metrics' curves."""

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

    def begin(self, run: Run, evaluations: str, done: int) -> None:
        """Start drawing."""
        self.run = run
        self.say(evaluations)
        self.task = self.progress.add_task(
            "", total=run.steps, completed=done, rate="compiling", left=""
        )
        self.live = RichLive(self._picture(), console=self.console, transient=True)
        self.live.start()

    def consume(self, records: Sequence[Record]) -> None:
        """Update the picture."""
        assert self.run is not None
        self.latest = list(records)
        for name, _ in shown_metrics(records):
            self.history.setdefault(name, []).append(mean(finite_values(records, name)))
        step, rate = records[0]["step"], records[0].get("steps_per_second")
        self.progress.update(
            self.task,
            completed=step,
            rate=f"{rate:,.0f} steps/s" if rate else "",
            left=f"{time_left(self.run, step, rate)} left" if rate else "",
        )
        if self.live is not None:
            self.live.update(self._picture())

    def say(self, text: str) -> None:
        """Print `text` above the picture."""
        self.console.print(Text(visible(text)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Replace the picture by the final table."""
        self.close()
        self.console.print(final_table(summary))

    def close(self) -> None:
        """Stop drawing."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _picture(self) -> Group:
        assert self.run is not None
        table = Table.grid(padding=(0, 2))
        for name, label in shown_metrics(self.latest):
            table.add_row(
                Text(label, style="dim"),
                Text(mean_over_seeds(self.latest, name), style="bold"),
                Text(sparkline(self.history[name]), style="cyan"),
            )
        step = self.latest[0]["step"] if self.latest else 0
        steps = Text(f"step {step:,} of {self.run.steps:,}", style="dim")
        return Group(Text(visible(title(self.run)), style="bold"), table, steps, self.progress)


def display(*, quiet: bool = False) -> Display:
    """The display for standard output: live in a terminal, plain elsewhere, silent if `quiet`."""
    if quiet:
        return Silent()
    console = Console()
    return Live(console) if console.is_terminal and not console.is_dumb_terminal else Plain(console)


def final_table(summary: Mapping[str, Any]) -> Table:
    """A table of the final, best and absolute return of every seed, and over seeds: of the greedy
    and, behind the stroke, of the sampled policy. In environments with a winner the absolute win
    rate stands first."""
    table = Table(
        title=Text(visible(f"{summary['algo']} on {summary['env']}"), style="table.title"),
        caption=(
            f"{summary['steps']:,} steps a seed in {clock(summary['wall_seconds'])}"
            + (f" ({summary['steps_per_second']:,.0f}/s)" if summary["steps_per_second"] else "")
            + f"\ncompiled in {summary['compile_seconds']:.1f} s; returns: greedy / sampled"
        ),
    )
    wins = [entry["absolute"].get("win_rate") for entry in summary["seeds"]]
    wins = [win for win in wins if win is not None and math.isfinite(win)]
    won = len(wins) == len(summary["seeds"])
    table.add_column("seed", justify="right")
    names = ("final return", "best return", "at step", "absolute return")
    for name in ("absolute win rate", *names) if won else names:
        table.add_column(name, justify="right")
    for entry in summary["seeds"]:
        table.add_row(
            str(entry["seed"]),
            *([format_number(entry["absolute"]["win_rate"])] if won else []),
            greedy_and_sampled(entry["final"]),
            greedy_and_sampled(entry["best"]),
            f"{entry['best']['step']:,}",
            greedy_and_sampled(entry["absolute"]),
        )
    if len(summary["seeds"]) > 1:
        table.add_section()
        for label, statistic in (("IQM", iqm), ("mean", mean)):
            final, best, absolute = (
                greedy_and_sampled(_over_seeds(statistic, summary, kind))
                for kind in ("final", "best", "absolute")
            )
            bold = "bold" if label == "IQM" else ""
            first = [format_number(statistic(wins))] if won else []
            table.add_row(label, *first, final, best, "", absolute, style=bold)
    return table


def progress_line(run: Run, records: Sequence[Record]) -> str:
    """An evaluation of every seed in a line: step, metrics, speed and time left."""
    step = int(records[0]["step"])
    parts = [f"step {step:,}/{run.steps:,}"]
    parts += [f"{label} {mean_over_seeds(records, name)}" for name, label in shown_metrics(records)]
    rate = records[0].get("steps_per_second")
    if rate:
        parts += [f"{rate:,.0f} steps/s", f"{time_left(run, step, rate)} left"]
    return "  ".join(parts)


def _over_seeds(
    statistic: Callable[[list[float]], float], summary: Mapping[str, Any], kind: str
) -> dict[str, float]:
    """The `statistic` over seeds of the greedy and of the sampled return."""
    rows = [entry[kind] for entry in summary["seeds"]]
    values = {name: finite_values(rows, name) for name in ("return", "return_sampled")}
    whole = {name: each for name, each in values.items() if len(each) == len(rows)}
    return {name: float(statistic(each)) for name, each in whole.items()}


def greedy_and_sampled(metrics: Mapping[str, Any]) -> str:
    """The greedy and the sampled return, as `1.00 / 0.97`."""
    return " / ".join(format_number(metrics.get(name)) for name in ("return", "return_sampled"))


def title(run: Run) -> str:
    """Method, preset, environment and seeds in a line."""
    seeds = f"seed {run.seeds[0]}" if len(run.seeds) == 1 else f"{len(run.seeds)} seeds"
    return f"{run.algo} ({run.preset}) on {run.env}, {seeds}"


def shown_metrics(records: Sequence[Record]) -> list[tuple[str, str]]:
    """The metrics to show that the records have, with their labels."""
    return [(name, label) for name, label in SHOWN.items() if finite_values(records, name)]


def mean_over_seeds(records: Sequence[Record], name: str) -> str:
    """A metric's mean over seeds, ± its standard deviation if there are several."""
    values = finite_values(records, name)
    deviation = f"±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{format_number(mean(values))}{deviation}"


def format_number(value: float | None) -> str:
    """A metric's value in a table; "–" if there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def time_left(run: Run, step: int, rate: float) -> str:
    """The remaining time at a `rate` in steps a second of all seeds."""
    return clock(max(0, run.steps - step) * len(run.seeds) / rate)


def clock(seconds: float) -> str:
    """`seconds` as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sparkline(history: Sequence[float], width: int = 40) -> str:
    """A curve of at most `width` block characters."""
    if len(history) > width:
        ends = [round(i * len(history) / width) for i in range(width + 1)]
        history = [mean(history[a:b]) for a, b in itertools.pairwise(ends)]
    low, high = min(history), max(history)
    blocks = "▁▂▃▄▅▆▇█"
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((value - low) * scale)] for value in history)
