"""The results of a suite beside its runs: a comparison and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from perla.analysis import figures
from perla.analysis.compare import Comparison, compare, marl_eval
from perla.analysis.load import Curves
from perla.files import explained, write_atomic
from perla.runs.store import dump


def write(
    runs: Sequence[Curves],
    out: Path,
    *,
    metric: str = "return",
    threshold: float | None = None,
) -> Comparison:
    """Compare `runs` and write summary.json, marl_eval.json and the picture into `out`.

    Raises `UserError` as `perla.analysis.compare.compare` does.
    """
    comparison = compare(runs, metric=metric, threshold=threshold)
    create(out)
    write_atomic(out / "summary.json", dump(comparison.as_dict()))
    write_atomic(out / "marl_eval.json", dump(marl_eval(runs)))
    draw(figures.comparison(comparison), out / "comparison")
    return comparison


def draw(figure: Figure, path: Path) -> None:
    """`figure` as `path`.png and `path`.svg."""
    for format in ("png", "svg"):
        write_atomic(path.with_suffix(f".{format}"), figures.render(figure, format))


def complete(runs: Sequence[Curves]) -> list[Curves]:
    """Those runs that can be compared where some failed: methods with any result at all, on the
    tasks where all of these have one."""
    tasks: dict[str, set[str]] = {}
    for run in runs:
        tasks.setdefault(run.method, set()).add(run.task)
    common = set.intersection(*tasks.values()) if tasks else set()
    return [run for run in runs if run.task in common]


def create(folder: Path) -> None:
    """Make the folder where it is missing."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
