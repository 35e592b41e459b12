"""Finished runs, of perla and of other programs: found, read, named and joined.

A source is a folder or file, or `name=PATH`. Run folders of perla, sacred folders, folders with
TensorBoard event files, and files in the layout of marl-eval are found below a folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from perla.analysis import labels
from perla.analysis.importers import marl_eval, sacred, table, tensorboard
from perla.analysis.importers.series import UNKNOWN_TASK, Options
from perla.analysis.load import Curves, check_no_trial, load, study_of
from perla.errors import UserError

T = TypeVar("T")

OWN_MEANING = (
    "steps are transitions summed over the parallel environments",
    "returns are means over agents, of an evaluation's episodes with greedy actions",
)
"""The meaning of perla's steps and returns."""


class Source(NamedTuple):
    """A folder or file with results."""

    format: str
    """One of `READERS`, or `perla`."""
    path: Path
    name: str | None = None
    """The name that the user gives its method."""


@dataclass(frozen=True)
class Gathered:
    """Runs that are ready for a comparison."""

    runs: list[Curves]
    notes: list[str]
    """Lines on what was left out, joined or assumed, and on the meaning of imported numbers."""
    failures: dict[str, str]
    """Reasons of the sources that could not be read, by path."""


READERS = {
    "sacred": sacred.read,
    "tensorboard": tensorboard.read,
    "marl-eval": marl_eval.read,
    "csv": table.read,
}
"""Format → the function that reads it."""


def gather(sources: Sequence[str | Path], options: Options | None = None) -> Gathered:
    """The runs of `sources`, named by the settings that differ, with equal runs joined.

    A folder counts once, also if several sources lead to it. A source that cannot be read is a
    failure and stops no other. Raises `UserError` if a source does not exist or has no results, if
    nothing could be read, or if two runs that should be joined had different budgets.
    """
    known = options or Options()
    found = unique([each for word in sources for each in find(word)])
    runs, failures = read_all(found, lambda source: read(source, known))
    if not runs:
        raise unreadable(failures)
    runs, notes = in_words(runs)
    runs, joined = labels.merge(labels.label(runs))
    return Gathered(runs, [*notes, *joined], failures)


def read_all(
    sources: Sequence[Source], read: Callable[[Source], Iterable[T]]
) -> tuple[list[T], dict[str, str]]:
    """All that `read` makes of the `sources`, and the reasons of those that cannot be read."""
    found: list[T] = []
    failures: dict[str, str] = {}
    for source in sources:
        try:
            found += list(read(source))
        except UserError as error:
            failures[str(source.path)] = str(error)
    return found, failures


def unreadable(failures: Mapping[str, str]) -> UserError:
    """The error if nothing could be read: the first of the `failures`."""
    first, *others = failures.values()
    return UserError(first + (f" (and {len(others)} more such sources)" if others else ""))


def read(source: Source, options: Options) -> list[Curves]:
    """The runs of `source`, one for each seed of other programs. Raises `UserError` as its reader
    does."""
    if source.format == "perla":
        found = [load(source.path)]
    else:
        found = [each.curves(options) for each in READERS[source.format](source.path, options)]
    if source.name is None:
        return found
    return [
        replace(run, method=source.name, algo=run.algo if run.settings else source.name)
        for run in found
    ]


# --- Finding ------------------------------------------------------------------------------------


def named_path(word: str | Path) -> tuple[str | None, Path]:
    """The name and the path of `name=PATH`; a path that exists is one, whatever its name."""
    path = Path(word)
    if isinstance(word, str) and "=" in word and not os.path.lexists(path):
        name, _, rest = word.partition("=")
        return name or None, Path(rest)
    return None, path


def is_source(word: str) -> bool:
    """True if `word` is a path, or a name and a path, and nothing else: it exists, or has a
    slash or an equals sign."""
    _, path = named_path(word)
    return os.path.lexists(path) or "=" in word or "/" in word or os.sep in word


def find(word: str | Path) -> list[Source]:
    """The sources in `word`, sorted by path. Raises `UserError` if there is none."""
    name, path = named_path(word)
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such file or folder")
    check_no_trial(path)
    if not path.is_dir():
        return [_of_file(path)._replace(name=name)]
    found = list(_below(path)) or [
        Source("marl-eval", file)
        for pattern in marl_eval.NAMES
        for file in sorted(path.rglob(pattern))
        if study_of(file) is None
    ]
    if not found:
        raise UserError(
            f"{path}: no run folder, nor is there one below (no config.json, event file, "
            "marl_eval.json or metrics.json; a marl-eval file of another name is given itself)"
        )
    return [source._replace(name=name) for source in found]


def unique(sources: Sequence[Source]) -> list[Source]:
    """`sources` without those that an earlier one is, too; a name counts wherever it stands."""
    chosen: dict[Path, Source] = {}
    for source in sources:
        place = source.path.resolve()
        if place not in chosen or (chosen[place].name is None and source.name is not None):
            chosen[place] = source
    return list(chosen.values())


def format_of(folder: Path) -> str | None:
    """The format of a folder that is itself a run; None if it is none."""
    if sacred.is_source(folder):
        return "sacred"
    if os.path.lexists(folder / "config.json"):
        return "perla"
    return "tensorboard" if tensorboard.is_source(folder) else None


def _below(folder: Path) -> Iterator[Source]:
    """The runs in `folder`, without looking into runs or following links."""
    kind = format_of(folder)
    if kind is not None:
        yield Source(kind, folder)
        return
    for child in sorted(folder.iterdir()):
        if study_of(child) is not None:
            continue
        if child.is_dir() and not child.is_symlink():
            yield from _below(child)


def _of_file(path: Path) -> Source:
    if ".tfevents." in path.name:
        return Source("tensorboard", path.parent)
    formats = {".csv": "csv", ".json": "marl-eval"}
    if path.suffix.lower() not in formats:
        raise UserError(
            f"{path}: expected a folder, an event file of TensorBoard, or a file that ends in "
            ".csv or .json"
        )
    return Source(formats[path.suffix.lower()], path)


# --- Words --------------------------------------------------------------------------------------


def in_words(runs: Sequence[Curves]) -> tuple[list[Curves], list[str]]:
    """`runs`, each with its task, and lines on the meaning of imported numbers and on tasks that
    are assumed. Raises `UserError` if a run's task cannot be told."""
    meaning = _meaning(runs)
    found, assumed = _with_task(runs)
    return found, [*meaning, *assumed]


def _with_task(runs: Sequence[Curves]) -> tuple[list[Curves], list[str]]:
    """`runs` with the only task of the others for those whose source names none."""
    tasks = list(dict.fromkeys(run.task for run in runs if run.task != UNKNOWN_TASK))
    unknown = [run for run in runs if run.task == UNKNOWN_TASK]
    if not unknown or not tasks:
        return list(runs), []
    if len(tasks) > 1:
        raise UserError(
            f"{unknown[0].path}: names no environment; name it by --task, in Python by tasks, one "
            f"of: {', '.join(tasks)}"
        )
    (task,) = tasks
    found = [
        replace(run, env=task, environment={"id": task}) if run.task == UNKNOWN_TASK else run
        for run in runs
    ]
    places = list(dict.fromkeys(str(run.path) for run in unknown))
    more = f" and {len(places) - 1} more" * (len(places) > 1)
    return found, [
        f"{places[0]}{more}: names no environment; taken for {task}, as the other runs are "
        "(--task ID, or tasks in Python, says otherwise)"
    ]


def _meaning(runs: Sequence[Curves]) -> list[str]:
    """Lines on the meaning of steps and returns, if any run is another program's."""
    if all(run.source == "perla" for run in runs):
        return []
    lines = [
        f"{run.source}: {line}"
        for run in runs
        for line in (OWN_MEANING if run.source == "perla" else run.meaning)
    ]
    return list(dict.fromkeys(lines))
