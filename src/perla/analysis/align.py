"""Curves on one grid of steps: runs that were evaluated at other steps are interpolated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from perla.analysis.load import Budget, Curves
from perla.errors import UserError

CLOSE = 0.1
"""Share of the interval between evaluations by which equal grids may differ."""
MARGIN = 1.0
"""Intervals of the coarser grid by which runs may end apart without a common budget."""


def align(runs: Sequence[Curves]) -> tuple[list[Curves], list[str]]:
    """`runs` on one grid, and lines that say what changed.

    Runs with equal grids stay as they are. Else every curve is interpolated linearly at the steps
    of the run with the fewest evaluations, from the latest first evaluation to the earliest last
    one, and the final and best values are those of these points. Absolute metrics stay.

    Raises `UserError` if the grids have less than two steps in common, or end far apart.
    """
    first = runs[0]
    if all(is_same_grid(first, run) for run in runs[1:]):
        return list(runs), []
    _check_ends(runs)
    coarsest = min(runs, key=lambda run: len(run.steps))
    low = max(run.steps[0] for run in runs)
    high = min(run.steps[-1] for run in runs)
    inner = coarsest.steps[(coarsest.steps > low) & (coarsest.steps < high)]
    grid = np.concatenate([[low], inner, [high]])
    if low >= high:
        late = max(runs, key=lambda run: run.steps[0])
        early = min(runs, key=lambda run: run.steps[-1])
        raise UserError(
            f"{early.path} and {late.path}: the evaluations of the first end at step "
            f"{early.steps[-1]:,.0f}, and those of the second begin at step {late.steps[0]:,.0f}"
        )
    text = (
        f"evaluations are at different steps: all curves are interpolated at the {len(grid)} "
        f"steps of {coarsest.path} from {low:,.0f} to {high:,.0f}"
    )
    return [resample(run, grid) for run in runs], [text]


def cut(runs: Sequence[Curves], until: int) -> tuple[list[Curves], list[str]]:
    """`runs` up to the step `until`, with that of the longer ones interpolated; their absolute
    metrics, which belong to longer budgets, are left out.

    Raises `UserError` for a run that ends long before.
    """
    kept, notes = [], []
    for run in runs:
        end = run.steps[-1]
        if end < until - MARGIN * _interval(run):
            raise UserError(f"{run.path}: ends at step {end:,.0f}, before --until {until:,}")
        if end <= until + CLOSE * _interval(run):
            kept.append(replace(run, budget=replace(run.budget, steps=None)))
            continue
        grid = np.concatenate([run.steps[run.steps < until], [until]])
        budget = replace(run.budget, steps=None, num_evaluations=None, absolute_episodes=None)
        kept.append(replace(resample(run, grid), absolute={}, budget=budget))
        notes.append(f"{run.path}: cut at step {until:,} of {end:,.0f}")
    return kept, notes


def is_same_grid(x: Curves, y: Curves) -> bool:
    """True if both were evaluated at the same steps, as planned or within a tenth of an interval:
    the last update before an evaluation may exceed its step."""
    if len(x.steps) != len(y.steps):
        return False
    if None not in (x.budget.steps, y.budget.steps) and _plan(x.budget) == _plan(y.budget):
        return True
    return bool(np.all(np.abs(x.steps - y.steps) <= CLOSE * _interval(x)))


def resample(run: Curves, grid: np.ndarray) -> Curves:
    """`run` with its metrics interpolated at the steps `grid`; the absolute metrics stay."""
    metrics = {
        name: np.stack([np.interp(grid, run.steps, row) for row in values])
        for name, values in run.metrics.items()
    }
    final, best = ends(grid, metrics)
    return replace(run, steps=grid, metrics=metrics, final=final, best=best)


def ends(
    steps: np.ndarray, metrics: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The final and the best metrics of curves `[seed, evaluation]`: `[seed]` each.

    The best evaluation is that with the highest return, the last one of equal ones; without
    returns, that of each metric.
    """
    seeds = np.arange(len(next(iter(metrics.values()))))

    def peak(values: np.ndarray) -> np.ndarray:
        backwards = np.where(np.isnan(values), -np.inf, values)[:, ::-1]
        return values.shape[1] - 1 - backwards.argmax(axis=1)

    leading = metrics.get("return")
    at = {name: peak(values if leading is None else leading) for name, values in metrics.items()}
    best = {name: values[seeds, at[name]] for name, values in metrics.items()}
    if leading is not None:
        best["step"] = steps[peak(leading)]
    return {name: values[:, -1] for name, values in metrics.items()}, best


def _plan(budget: Budget) -> tuple[int | None, int | None]:
    return budget.steps, budget.num_evaluations


def _check_ends(runs: Sequence[Curves]) -> None:
    """Raise `UserError` if runs without a common budget end more than an evaluation apart."""
    short = min(runs, key=lambda run: run.steps[-1])
    long = max(runs, key=lambda run: run.steps[-1])
    interval = max(_interval(short), _interval(long))
    if long.steps[-1] - short.steps[-1] > MARGIN * interval * 1.001:
        end = f"{short.steps[-1]:.0f}"
        raise UserError(
            f"{short.path} and {long.path}: end at steps {short.steps[-1]:,.0f} and "
            f"{long.steps[-1]:,.0f}; --until {end} compares all up to there"
        )


def _interval(run: Curves) -> float:
    """The mean number of steps between two evaluations."""
    if len(run.steps) == 1:
        return float(run.steps[0])
    return float(run.steps[-1] - run.steps[0]) / (len(run.steps) - 1)
