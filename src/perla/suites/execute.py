"""Execution of a suite: unfinished cells go to an executor, finished ones are kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from perla.analysis.load import Curves, is_finished, load
from perla.errors import UserError
from perla.files import check_directory, make_below
from perla.suites.display import Display
from perla.suites.executors import Executor, Task
from perla.suites.suite import Cell


@dataclass(frozen=True)
class Outcome:
    """Results and failures of a suite's cells."""

    results: list[Curves]
    """Results of the finished cells, in the suite's order."""
    failures: dict[str, str]
    """Reasons of the failures, by the cell's name."""


def carry_out(cells: Sequence[Cell], out: Path, executor: Executor, display: Display) -> Outcome:
    """Carry out the unfinished `cells` below the folder `out`, and load all results.

    A cell that fails, or whose folder cannot be read, becomes a failure and stops no other. After
    an interruption the same call continues.
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
    tasks = [Task(by_folder[folder].run, folder) for folder in left]
    display.begin(by_folder, left)
    try:
        with closing(executor.carry_out(tasks)) as events:
            for event in events:
                display.consume(event)
                if event.kind == "failed":
                    failures[by_folder[event.task.folder].name] = event.text
    finally:
        display.close()
    results = []
    for folder, cell in by_folder.items():
        if cell.name in failures:
            continue
        try:
            results.append(replace(load(folder), method=cell.method))
        except UserError as error:
            failures[cell.name] = str(error)
    return Outcome(results, failures)


def _folder_of(cell: Cell, out: Path) -> Path:
    """Return the folder of `cell`. Raises `UserError` if a link in its path leads out of `out`."""
    folder = make_below(out, cell.folder.parent) / cell.folder.name
    check_directory(folder)
    return folder
