"""The results that a report shows: runs with their settings, verdicts, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from perla.analysis.labels import label
from perla.analysis.load import STUDY, Curves, find, flatten, load, read_summary
from perla.errors import UserError
from perla.files import decode, explained, read_regular


@dataclass(frozen=True)
class Entry:
    """A run with its configuration."""

    curves: Curves
    """Its results. The method's name tells it from the other runs of the report."""
    settings: dict[str, Any]
    """All settings of the learner and of the run, by dotted name."""
    versions: dict[str, Any]
    hardware: dict[str, Any]
    dropped_episodes: int
    """Episodes of all seeds that were dropped because a host environment failed."""


@dataclass(frozen=True)
class Sources:
    """Everything that a report shows."""

    entries: list[Entry]
    verdicts: list[Reproduction]
    """Verdicts of reproductions of the paper."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reasons why a run cannot be shown, by its folder."""
    tuned: list[Tuned] = field(default_factory=list)
    """The searches that the runs' settings come from."""


class _Verdict(msgspec.Struct):
    experiment: str
    scale: str
    figure: str
    claim: str
    rule: str
    verdict: str
    reason: str
    command: str = ""
    rows: list[dict[str, str]] = []
    claims: list[dict[str, str]] = []
    failures: dict[str, str] = {}


@dataclass(frozen=True)
class Reproduction:
    """The verdict on a claim of the paper."""

    path: Path
    facts: _Verdict
    figures: dict[str, bytes]
    """The PNG files of its figures, by name."""


class Tuned(msgspec.Struct):
    """The search of a method's settings, from the `best.json` of its study."""

    algo: str
    env: str
    metric: str
    tuning_seeds: list[int]
    trials: int
    complete: int
    pruned: int
    failed: int
    steps: int
    seconds: float
    best_trial: int
    best_value: float
    settings: dict[str, Any]
    space: dict[str, dict[str, Any]]
    search: str
    pruner: str


class _Best(msgspec.Struct):
    tuning: Tuned


class _Configuration(msgspec.Struct):
    run: dict[str, Any]
    versions: dict[str, Any] = {}
    hardware: dict[str, Any] = {}


def read(paths: Sequence[Path]) -> Sources:
    """Read all runs and verdicts in `paths`, each a run folder or a folder with some below it.

    Raises `UserError` if one of `paths` has neither, or if no run can be read and there is no
    verdict.
    """
    folders: dict[Path, Path] = {}
    verdicts: dict[Path, Path] = {}
    for path in paths:
        below = find_verdicts(path)
        verdicts |= {each.resolve(): each for each in below}
        try:
            folders |= {each.resolve(): each for each in find(path)}
        except UserError:
            if not below:
                raise
    entries, failures = [], {}
    for folder in folders.values():
        try:
            entries.append(_entry(folder))
        except UserError as error:
            failures[str(folder)] = str(error)
    if failures and not entries and not verdicts:
        first, *others = failures.values()
        raise UserError(first + (f" (and {len(others)} more such runs)" if others else ""))
    found = [_reproduction(each) for each in verdicts.values()]
    return Sources(_named(entries), found, failures, _tuned(list(folders)))


def find_verdicts(path: Path) -> list[Path]:
    """The files `verdict.json` in `path` and below it, sorted."""
    if not path.is_dir():
        return []
    return sorted(each for each in path.rglob("verdict.json") if not each.is_symlink())


def _tuned(folders: Sequence[Path]) -> list[Tuned]:
    """The searches to whose studies the run `folders` belong: `STUDY/cells/ENV/RUN`."""
    studies = dict.fromkeys(parent for each in folders for parent in each.parents[:3])
    paths = [each / "best.json" for each in studies if (each / STUDY).exists()]
    return [
        decode(read_regular(path), _Best, source=path).tuning for path in paths if path.exists()
    ]


def words(value: Any) -> str:
    """A setting or a fact as people write it."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case int():
            return f"{value:,}" if abs(value) >= 10_000 else str(value)
        case list() | tuple():
            return ", ".join(map(words, value)) or "none"
        case Mapping():
            return ", ".join(f"{name}: {words(each)}" for name, each in value.items()) or "none"
    return str(value)


def _entry(folder: Path) -> Entry:
    curves = load(folder)
    facts = decode(read_regular(folder / "config.json"), _Configuration, source=folder)
    kept = ("preset", "steps", "num_evaluations", "eval_episodes", "absolute_episodes")
    settings = curves.settings | {name: facts.run.get(name) for name in kept}
    return Entry(curves, settings, facts.versions, flatten(facts.hardware), _dropped(curves))


def _dropped(curves: Curves) -> int:
    if not curves.finished:
        return 0
    counts = [entry.get("dropped_episodes") for entry in read_summary(curves.path)["seeds"]]
    return sum(int(count) for count in counts if isinstance(count, int | float))


def _named(entries: list[Entry]) -> list[Entry]:
    """The entries with names that tell different settings apart; equal runs on a task are told
    apart by their folders."""
    runs = label([entry.curves for entry in entries])
    counts = Counter((run.method, run.task) for run in runs)
    names = [
        f"{run.method} ({run.path.name})" if counts[run.method, run.task] > 1 else run.method
        for run in runs
    ]
    return [
        replace(entry, curves=replace(run, method=name))
        for entry, run, name in zip(entries, runs, names, strict=True)
    ]


def _reproduction(path: Path) -> Reproduction:
    with explained(path):
        facts = decode(read_regular(path), _Verdict, source=path)
        pictures = sorted(path.parent.glob("*.png"))
        return Reproduction(path, facts, {each.stem: read_regular(each) for each in pictures})
