"""CSV files: one row for each evaluation of a seed, or a chart exported from Weights & Biases."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from perla.analysis.importers.series import Options, Series, method_and_seed, named_return
from perla.errors import UserError, nearest
from perla.files import explained, read_regular

NEEDED, KEYS = ("step", "return"), ("step", "seed", "method", "task")
"""Columns that a file must have, and those that are no metrics."""
COLUMNS = (*NEEDED, *KEYS[1:], "wall_seconds")
"""Columns with a meaning of their own; others are metrics if they are named."""
BOUNDS = ("__MIN", "__MAX")
"""Ends of the columns with which Weights & Biases bounds a smoothed or grouped line."""
BETWEEN = " - "
"""Between the run and the metric in a column of Weights & Biases."""

Rows = list[dict[str, str]]


def read(path: Path, options: Options) -> list[Series]:
    """The seeds in the file `path`. Raises `UserError`, with the line, for a column that is not
    there and for a value that is no number."""
    with explained(path):
        text = read_regular(path).decode("utf-8-sig", errors="replace")
    reader = csv.DictReader(io.StringIO(text))
    names = list(reader.fieldnames or ())
    rows = [row for row in reader if any(value for value in row.values() if isinstance(value, str))]
    if not names or not rows:
        raise UserError(f"{path}: no rows")
    if not options.columns and len(names) > 1 and all(BETWEEN in name for name in names[1:]):
        return _wandb(path, names, rows, options)
    return _tidy(path, names, rows, options)


def _tidy(path: Path, names: Sequence[str], rows: Rows, options: Options) -> list[Series]:
    """One row for each evaluation."""
    theirs = _mapping(path, names, options)
    groups: dict[tuple[str, str, str], Rows] = {}
    for row in rows:
        key = tuple(
            row[theirs[name]] if name in theirs else "" for name in ("method", "task", "seed")
        )
        groups.setdefault((key[0], key[1], key[2]), []).append(row)
    metrics = {ours: name for ours, name in theirs.items() if ours not in KEYS}
    return [
        Series(
            path=path,
            source="CSV",
            method=method or path.stem,
            task=task or None,
            seed=int(_number(path, seed, "seed")) if seed else None,
            steps=[_number(path, row[theirs["step"]], theirs["step"]) for row in group],
            metrics={
                ours: [_number(path, row[name], name) for row in group]
                for ours, name in metrics.items()
            },
            meaning=(
                f"steps are the column {theirs['step']!r}, returns the column {theirs['return']!r}",
            ),
        )
        for (method, task, seed), group in groups.items()
    ]


def _mapping(path: Path, names: Sequence[str], options: Options) -> dict[str, str]:
    """perla's names → the file's columns."""
    given = dict(options.columns)
    if options.tag is not None:
        given.setdefault("return", options.tag)
    for ours, name in given.items():
        if name not in names:
            raise UserError(
                f"{path}: --column {ours}={name}: {nearest(name, names, what='column')}"
            )
    theirs = {name: name for name in COLUMNS if name in names} | given
    for name in NEEDED:
        if name not in theirs:
            raise UserError(
                f"{path}: no column {name!r}; name it by --column {name}=COLUMN, one of: "
                f"{', '.join(names)}"
            )
    return theirs


def _wandb(path: Path, names: Sequence[str], rows: Rows, options: Options) -> list[Series]:
    """A chart of Weights & Biases: a column for each run and metric, beside one of steps."""
    at, *others = names
    lines = [name for name in others if not name.endswith(BOUNDS)]
    metrics = {name.rpartition(BETWEEN)[2] for name in lines}
    tag = named_return(sorted(metrics), options, path)
    found = []
    for name in lines:
        run, _, metric = name.rpartition(BETWEEN)
        points: list[Mapping[str, str]] = [row for row in rows if row[name]]
        if metric != tag or not points:
            continue
        group = run.startswith("Group: ")
        method, seed = method_and_seed([run.removeprefix("Group: ")])
        found.append(
            Series(
                path=path,
                source="Weights & Biases",
                method=method,
                task=None,
                seed=seed,
                steps=[_number(path, row[at], at) for row in points],
                metrics={"return": [_number(path, row[name], name) for row in points]},
                meaning=(
                    f"steps are the chart's axis {at!r}"
                    + ", which counts logged rows, not environment steps" * (at == "Step"),
                    f"returns are {tag}"
                    + f"; {run!r} is a group's mean and counts as one seed" * group,
                ),
            )
        )
    return found


def _number(path: Path, text: str | None, column: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        raise UserError(f"{path}: column {column!r}: {text!r} is no number") from None
