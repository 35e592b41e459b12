"""Progress of a diagnosis: a bar for each stage, or a line where nobody watches."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from tqdm.auto import tqdm

STAGES = {
    "train": "training, steps",
    "visit": "visiting states, rollouts",
    "branch": "branching, states",
}
"""The stages, with their units."""


class Bars:
    """Called with a stage and its progress. On a terminal and in a notebook a bar shows it, else a
    line on standard error says that the stage begins."""

    def __init__(self) -> None:
        self.stage = ""
        self.bar: Any = None
        self.watched = sys.stderr.isatty() or Console().is_jupyter

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        if stage != self.stage:
            self.close()
            self.stage = stage
            if self.watched:
                self.bar = tqdm(total=total, desc=STAGES[stage], unit_scale=True)
            else:
                print(f"perla: {STAGES[stage]}: {total:,}", file=sys.stderr, flush=True)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""
