"""Callbacks: a user's code that watches a run from Python, and may stop it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from perla.envs.values import describe_value
from perla.errors import UserError
from perla.runs.spec import Run
from perla.runs.store import Record, finite_values, mean


class Progress:
    """A run while it goes on, as callbacks see it."""

    def __init__(self, run: Run, out: Path | None) -> None:
        self.run = run
        """The run as data: environment, method, settings, steps, seeds."""
        self.out = out
        """The run folder, if there is one."""
        self.step = 0
        """Environment steps that every seed has made."""
        self.records: list[Record] = []
        """The latest evaluation: a dictionary of metrics for each seed."""
        self.summary: dict[str, Any] | None = None
        """The content of `summary.json`, once the run is finished."""
        self.stopping = False
        """True once the run was asked to stop."""

    def mean(self, name: str = "return") -> float | None:
        """A metric of the latest evaluation, averaged over seeds; None if it has no value."""
        values = finite_values(self.records, name)
        return mean(values) if values else None

    def stop(self) -> None:
        """Stop the run after the present piece of training. A run in a folder saves a checkpoint,
        from which it can be resumed."""
        self.stopping = True


class Callback:
    """Base of callbacks, whose methods do nothing. Each is called with the run's `Progress`; an
    exception ends the run, whose folder can be resumed."""

    def on_start(self, progress: Progress) -> None:
        """Training begins, or goes on after a resume."""

    def on_interval(self, progress: Progress) -> None:
        """A piece of training is done: at least one before each evaluation, and in a run with a
        folder about every five seconds."""

    def on_evaluation(self, progress: Progress) -> None:
        """The policies of all seeds were evaluated."""

    def on_checkpoint(self, progress: Progress) -> None:
        """A checkpoint was saved. Runs without a folder save none."""

    def on_end(self, progress: Progress) -> None:
        """The run is finished, or was stopped by a callback."""


class _OnEvaluation(Callback):
    """Calls a function after each evaluation."""

    def __init__(self, function: Callable[[Progress], Any]) -> None:
        self.function = function

    def on_evaluation(self, progress: Progress) -> None:
        """Call the function."""
        self.function(progress)


def read_callbacks(callbacks: Iterable[Callback | Callable[[Progress], Any]]) -> list[Callback]:
    """The callbacks, with functions as callbacks that are called after each evaluation. Raises
    `UserError` for anything else."""
    found: list[Callback] = []
    for each in callbacks:
        if isinstance(each, type) or not (isinstance(each, Callback) or callable(each)):
            given = f"the class {each.__name__}" if isinstance(each, type) else describe_value(each)
            raise UserError(
                f"callbacks: {given}: expected objects of perla.Callback, or functions that are "
                "called after each evaluation"
            )
        found.append(each if isinstance(each, Callback) else _OnEvaluation(each))
    return found
