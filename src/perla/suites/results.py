"""Write the results of a suite: a comparison and its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matplotlib.figure import Figure

from perla.analysis import figures, tables
from perla.analysis.compare import Comparison, compare
from perla.analysis.load import Curves
from perla.files import explained, make_below, write_atomic
from perla.runs.store import dump
from perla.suites.suite import slug


def write(
    runs: Sequence[Curves],
    out: Path,
    *,
    metric: str | None = None,
    threshold: float | None = None,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> Comparison:
    """Compare `runs`; write summary.json, marl_eval.json, `comparison` and `profiles` (figures),
    and `table` as CSV, Markdown and LaTeX. The summary has the further `facts`, by name.

    Raises `UserError` as `perla.analysis.compare.compare` does.
    """
    comparison = compare(runs, metric=metric, threshold=threshold)
    create(out)
    write_atomic(out / "summary.json", dump(comparison.as_dict() | dict(facts)))
    write_atomic(out / "marl_eval.json", dump(tables.marl_eval(runs)))
    write_atomic(out / "table.csv", tables.as_csv(comparison).encode())
    write_atomic(out / "table.md", tables.as_markdown(comparison).encode())
    write_atomic(out / "table.tex", tables.as_latex(comparison).encode())
    draw(figures.comparison(comparison), out / "comparison")
    draw(figures.compared_profiles(comparison), out / "profiles")
    return comparison


def write_tasks(
    runs: Sequence[Curves],
    out: Path,
    *,
    metric: str | None = None,
    threshold: float | None = None,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Comparison]:
    """`write` the comparison on each task into the folder `tasks`, if there are several, and last
    that on all tasks together into `out`."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    for task in tasks if len(tasks) > 1 else ():
        folder = make_below(out, Path("tasks", slug(task)))
        own = [run for run in runs if run.task == task]
        yield write(own, folder, metric=metric, threshold=threshold, facts=facts)
    yield write(runs, out, metric=metric, threshold=threshold, facts=facts)


def draw(figure: Figure, path: Path) -> None:
    """Write `figure` to `path`.png and `path`.svg."""
    for format in ("png", "svg"):
        write_atomic(path.with_suffix(f".{format}"), figures.render(figure, format))


def complete(runs: Sequence[Curves]) -> list[Curves]:
    """Select the runs that remain comparable if some failed.

    These are the runs on the tasks where every method that has any run has one.
    """
    tasks: dict[str, set[str]] = {}
    for run in runs:
        tasks.setdefault(run.method, set()).add(run.task)
    common = set.intersection(*tasks.values()) if tasks else set()
    return [run for run in runs if run.task in common]


def create(folder: Path) -> None:
    """Create the folder if it does not exist."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
