"""Display of a run in a notebook: a progress bar, and the final table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from tqdm.auto import tqdm

from perla.errors import visible
from perla.runs import sinks
from perla.runs.sinks import Display, final_table, mean_over_seeds, shown_metrics, title
from perla.runs.spec import Run
from perla.runs.store import Record


class Notebook:
    """A bar of tqdm with the metrics of the latest evaluation behind it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Any = None

    def begin(self, run: Run, evaluations: str, done: int) -> None:
        """Show the bar."""
        self.say(evaluations)
        self.bar = tqdm(
            total=run.steps, initial=done, desc=visible(title(run)), unit=" steps", unit_scale=True
        )

    def consume(self, records: Sequence[Record]) -> None:
        """Move the bar, and show the metrics."""
        self.bar.update(int(records[0]["step"]) - self.bar.n)
        shown = {label: mean_over_seeds(records, name) for name, label in shown_metrics(records)}
        self.bar.set_postfix(shown)

    def say(self, text: str) -> None:
        """Print `text`."""
        print(visible(text))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Print the final table."""
        self.close()
        self.console.print(final_table(summary))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def display(*, quiet: bool = False) -> Display:
    """The display of training from Python: as on the command line, and in a notebook the bar."""
    console = Console()
    if console.is_jupyter and not quiet:
        return Notebook(console)
    return sinks.display(quiet=quiet)
