"""The learning curves of one run, as a figure: of its folder, or of its records in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from perla.analysis import figures
from perla.analysis.compare import METRICS
from perla.analysis.load import load
from perla.errors import nearest

RETURNS = ("return", "return_sampled")
"""The metrics of a run's picture: the returns of the greedy and of the sampled policies."""


def curves(folder: Path) -> bytes:
    """The returns of the run in `folder` against environment steps, as a PNG. Raises `UserError` as
    `perla.analysis.load.load` does."""
    run = load(folder)
    values = {name: run.metrics[name] for name in RETURNS if name in run.metrics}
    return figures.render(_draw(run.steps, values, f"{run.algo} on {run.env}"))


def plot(
    records: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    title: str,
    metrics: Sequence[str] = RETURNS,
) -> Figure:
    """The `metrics` of `records`, lines of `metrics.jsonl`, of these `seeds`. Evaluations that not
    every seed has are left out. Raises `UserError` for a metric that no record has."""
    by_seed = [{r["evaluation"]: r for r in records if r["seed"] == seed} for seed in seeds]
    common = sorted(set.intersection(*(set(own) for own in by_seed))) if by_seed else []
    known = sorted({name for record in records for name in record})
    for name in metrics:
        if name not in known and metrics is not RETURNS:
            raise nearest(name, known, what="metric")

    def column(name: str) -> np.ndarray:
        values = [[own[index].get(name) for index in common] for own in by_seed]
        return np.array(values, dtype=float).reshape(len(by_seed), len(common))

    values = {name: column(name) for name in metrics if name in known}
    return _draw(column("step").mean(axis=0), values, title)


def _draw(steps: np.ndarray, values: Mapping[str, np.ndarray], title: str) -> Figure:
    are_returns = set(values) <= set(RETURNS)
    named = {METRICS.get(name, name.replace("_", " ")): rows for name, rows in values.items()}
    return figures.curves(
        steps, named, title=title, ylabel="Return per episode" if are_returns else "Value"
    )
