"""A report from run folders: read, compared, recorded and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from perla.analysis import figures
from perla.analysis.importers.series import Options
from perla.analysis.load import Curves
from perla.envs.registry import Trust
from perla.errors import UserError
from perla.files import make_below, write_atomic
from perla.report import sources as reading
from perla.report.content import Section, sections
from perla.report.page import Report, Shown, page
from perla.report.replays import caption, replay
from perla.report.sources import Sources
from perla.runs.recordings import record_run
from perla.suites.suite import slug

REPLAYS = 4
"""Number of replays by default."""
Say = Callable[[str], None]


def build(
    paths: Sequence[str | Path],
    *,
    options: Options | None = None,
    version: str,
    title: str | None = None,
    metric: str | None = None,
    threshold: float | None = None,
    replays: int = REPLAYS,
    failures: Mapping[str, str] = MappingProxyType({}),
    trust: Trust = (),
    say: Say = lambda text: None,
) -> tuple[bytes, list[Section]]:
    """The page of the runs and verdicts in `paths`, and the sections that it shows. `options` are
    for other programs' files.

    At most `replays` episodes are recorded, which takes the run's environment: that of a run whose
    environment is code only if it is in `trust`. `failures` are reasons by name, which the page
    lists with those of its own. Raises `UserError` as `sources.read` does.
    """
    found = reading.read(paths, options)
    found = replace(found, failures={**failures, **found.failures})
    runs = found.runs
    shown = sections(runs, metric=metric, threshold=threshold) if runs else []
    recorded, notes = _record(runs, replays, trust, say)
    report = Report(title or _title(found), found, shown, recorded, notes, version)
    return page(report), shown


def draw(shown: Sequence[Section], folder: Path) -> list[Path]:
    """Write the learning curves and performance profiles of every section that is a comparison as
    SVG and PDF files into `folder`; return their paths."""
    make_below(folder, Path())
    written = []
    for section in shown:
        if section.comparison is None:
            continue
        for name, figure in (
            ("curves", figures.comparison(section.comparison)),
            ("profiles", figures.compared_profiles(section.comparison)),
        ):
            for suffix in ("svg", "pdf"):
                path = folder / f"{slug(section.title)}-{name}.{suffix}"
                write_atomic(path, figures.render(figure, suffix))
                written.append(path)
    return written


def _title(found: Sources) -> str:
    tasks = list(dict.fromkeys(run.task for run in found.runs))
    methods = list(dict.fromkeys(run.method for run in found.runs))
    if not methods:
        return "The paper's claims"
    who = ", ".join(methods) if len(methods) <= 4 else f"{len(methods)} methods"
    return f"{who} on {tasks[0] if len(tasks) == 1 else f'{len(tasks)} tasks'}"


# --- Replays ------------------------------------------------------------------------------------


def _record(
    runs: Sequence[Curves], most: int, trust: Trust, say: Say
) -> tuple[list[Shown], list[str]]:
    """Replays, and a sentence for each run without one."""
    recorded, notes = [], []
    for run in chosen(runs)[:most]:
        name = f"{run.method} on {run.task}"
        say(f"{name}: recording an episode")
        try:
            episode = record_run(run.path, trust=trust)
            recorded.append(Shown(name, caption(episode), replay(episode)))
        except UserError as error:
            notes.append(f"{name}: no replay ({error}).")
    possible = sum(map(_can_be_replayed, runs))
    if most and possible > most:
        notes.append(f"Replays of {most} of {possible} runs; `--replays N` records others too.")
    return recorded, notes


def chosen(runs: Sequence[Curves]) -> list[Curves]:
    """perla's finished runs in the order in which they are recorded: the best method of each task,
    then the second best of each, and so on."""
    ranks: list[tuple[int, int, Curves]] = []
    tasks = list(dict.fromkeys(run.task for run in runs))
    for place, task in enumerate(tasks):
        own = [run for run in runs if run.task == task and _can_be_replayed(run)]
        own.sort(key=_score, reverse=True)
        ranks += [(rank, place, run) for rank, run in enumerate(own)]
    return [run for _, _, run in sorted(ranks, key=lambda entry: entry[:2])]


def _can_be_replayed(run: Curves) -> bool:
    return run.finished and run.source == "perla"


def _score(run: Curves) -> float:
    return float(np.mean(run.absolute.get("return", -np.inf)))
