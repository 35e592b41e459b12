"""The results that a report shows: runs with their settings, verdicts, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from perla.analysis import gather
from perla.analysis.gather import Source
from perla.analysis.importers.series import Options
from perla.analysis.labels import label, merge
from perla.analysis.load import STUDY, Curves, flatten, read_summary
from perla.errors import UserError
from perla.files import decode, explained, read_regular


@dataclass(frozen=True)
class Entry:
    """A run with its configuration, of which other programs' results have little."""

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
    """Every run for itself."""
    runs: list[Curves]
    """The results of the entries, in which runs that differ in their seeds alone are one."""
    verdicts: list[Reproduction]
    """Verdicts of reproductions of the paper."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reasons why a run cannot be shown, by its folder."""
    notes: list[str] = field(default_factory=list)
    """Lines on what was joined, left out or assumed, and on the meaning of imported numbers."""
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


def read(words: Sequence[str | Path], options: Options | None = None) -> Sources:
    """Read all runs and verdicts in `words`: paths, or `name=PATH`, as `gather.find` takes them.

    Raises `UserError` if one of them has neither, or if no run can be read and there is no verdict.
    """
    found: list[Source] = []
    verdicts: dict[Path, Path] = {}
    for word in words:
        below = find_verdicts(gather.named_path(word)[1])
        verdicts |= {each.resolve(): each for each in below}
        try:
            found += gather.find(word)
        except UserError:
            if not below:
                raise
    # Beside a verdict these are the numbers of its table, and no program's runs.
    beside = {each.parent for each in verdicts}
    sources = [
        each
        for each in gather.unique(found)
        if each.format != "marl-eval" or each.path.resolve().parent not in beside
    ]
    known = options or Options()
    entries, failures = gather.read_all(
        sources, lambda source: map(_entry, gather.read(source, known))
    )
    if failures and not entries and not verdicts:
        raise gather.unreadable(failures)
    curves, notes = gather.in_words([entry.curves for entry in entries])
    labelled, runs, joined = _joined(label(curves))
    entries = [replace(entry, curves=each) for entry, each in zip(entries, labelled, strict=True)]
    reproductions = [_reproduction(each) for each in verdicts.values()]
    tuned = _tuned([source.path.resolve() for source in sources])
    return Sources(entries, runs, reproductions, failures, [*notes, *joined], tuned)


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


def _entry(curves: Curves) -> Entry:
    kept = (
        "preset", "steps", "data_parallel", "num_evaluations", "eval_episodes", "absolute_episodes"
    )  # fmt: skip
    if curves.source != "perla":
        return Entry(curves, curves.settings, {"program": curves.source}, {}, 0)
    facts = decode(read_regular(curves.path / "config.json"), _Configuration, source=curves.path)
    settings = curves.settings | {name: facts.run[name] for name in kept if name in facts.run}
    return Entry(curves, settings, facts.versions, flatten(facts.hardware), _dropped(curves))


def _dropped(curves: Curves) -> int:
    if not curves.finished:
        return 0
    counts = [entry.get("dropped_episodes") for entry in read_summary(curves.path)["seeds"]]
    return sum(int(count) for count in counts if isinstance(count, int | float))


def _joined(runs: list[Curves]) -> tuple[list[Curves], list[Curves], list[str]]:
    """The runs, the same with those joined that differ in their seeds alone, and lines on it. Equal
    runs on a task that cannot be joined are told apart by their folders."""
    try:
        joined, notes = merge(runs)
    except UserError as error:
        joined, notes = runs, [f"no runs are joined: {error}"]
    counts = Counter((run.method, run.task) for run in joined)

    def named(run: Curves) -> Curves:
        several = counts[run.method, run.task] > 1
        return replace(run, method=f"{run.method} ({run.path.name})") if several else run

    return list(map(named, runs)), list(map(named, joined)), notes


def _reproduction(path: Path) -> Reproduction:
    with explained(path):
        facts = decode(read_regular(path), _Verdict, source=path)
        pictures = sorted(path.parent.glob("*.png"))
        return Reproduction(path, facts, {each.stem: read_regular(each) for each in pictures})
