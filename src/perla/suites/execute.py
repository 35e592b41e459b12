"""Execution of a suite: unfinished cells go to an executor, finished ones are kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from perla.analysis.load import Curves, is_finished, load
from perla.errors import UserError
from perla.files import check_directory, explained, make_below, read_regular, write_atomic
from perla.suites.display import Display
from perla.suites.executors import Executor, Task
from perla.suites.suite import Cell


class Outcome(NamedTuple):
    """Results and failures of a suite's cells."""

    results: list[Curves]
    """Results of the finished cells, in the suite's order."""
    failures: dict[str, str]
    """Reasons of the failures, by the cell's name."""
    pending: list[str]
    """Names of the cells that are neither finished nor failed: other processes have them."""


def carry_out(cells: Sequence[Cell], out: Path, executor: Executor, display: Display) -> Outcome:
    """Carry out the unfinished `cells` below the folder `out`, and load all results.

    A cell that fails, or whose folder cannot be read, becomes a failure and stops no other. One
    that another process is working on is skipped. After an interruption the same call continues.
    """
    make_below(out, Path())
    by_folder: dict[Path, Cell] = {}
    failures: dict[str, str] = {}
    for cell in cells:
        try:
            by_folder[_folder_of(cell, out)] = cell
        except UserError as error:
            failures[cell.name] = str(error)
    left = [folder for folder in by_folder if not is_finished(folder)]
    for folder in left:
        with explained(mark_of(folder)):
            mark_of(folder).unlink(missing_ok=True)
    tasks = [Task(by_folder[folder].run, folder) for folder in left]
    display.begin(by_folder, left)
    try:
        with closing(executor.carry_out(tasks)) as events:
            for event in events:
                display.consume(event)
                if event.kind == "failed":
                    failures[by_folder[event.task.folder].name] = event.text
                    write_atomic(mark_of(event.task.folder), event.text.encode())
    finally:
        display.close()
    outcome = collect([cell for cell in cells if cell.name not in failures], out)
    return Outcome(outcome.results, failures | outcome.failures, outcome.pending)


def collect(cells: Sequence[Cell], out: Path) -> Outcome:
    """The state of `cells` below `out`, whichever processes carry them out."""
    results: list[Curves] = []
    failures: dict[str, str] = {}
    pending: list[str] = []
    for cell in cells:
        folder = out / cell.folder
        try:
            if is_finished(folder):
                results.append(replace(load(folder), method=cell.method))
            elif os.path.lexists(mark_of(folder)):
                failures[cell.name] = read_regular(mark_of(folder)).decode(errors="replace")
            else:
                pending.append(cell.name)
        except UserError as error:
            failures[cell.name] = str(error)
    return Outcome(results, failures, pending)


def mark_of(folder: Path) -> Path:
    """The file that says, to other processes, why the cell of a run folder failed."""
    return folder.with_name(f"{folder.name}.failed")


def _folder_of(cell: Cell, out: Path) -> Path:
    """Return the folder of `cell`. Raises `UserError` if a link in its path leads out of `out`."""
    folder = make_below(out, cell.folder.parent) / cell.folder.name
    check_directory(folder)
    return folder
