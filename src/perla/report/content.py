"""The comparisons of a report: verdicts, tables, and the data of the charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perla.analysis import stats
from perla.analysis.compare import METRICS, Comparison, compare
from perla.analysis.load import Curves
from perla.analysis.stats import Score
from perla.analysis.tables import rows
from perla.errors import UserError

AXES = {
    "steps": "Environment steps of each seed",
    "seconds": "Wall-clock time of all seeds",
    "flops": "Floating-point operations of each seed (matrix products)",
}
"""The horizontal axes of learning curves."""
SHOWN = {
    "return": "Greedy return per episode",
    "return_sampled": "Sampled return per episode",
    "win_rate": "Greedy win rate",
    "win_rate_sampled": "Sampled win rate",
}
"""The metrics whose learning curves a report draws, if the runs have them."""
DIGITS = 5
"""Significant digits of the charts' numbers."""


@dataclass(frozen=True)
class Section:
    """The results on one task, or on all tasks together."""

    title: str
    runs: list[Curves]
    comparison: Comparison | None
    verdict: str
    """The verdict, or the reason why there is none."""

    @property
    def table(self) -> list[dict[str, str]]:
        """The results of every method: column → cell."""
        if self.comparison is not None:
            return rows(self.comparison)
        return [_summary(run) for run in self.runs]


def sections(
    runs: Sequence[Curves], *, metric: str | None = None, threshold: float | None = None
) -> list[Section]:
    """All tasks together, if there are several and their results can be compared, then each."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    found = []
    for task in tasks:
        own = [run for run in runs if run.task == task]
        found.append(_section(task, own, metric, threshold))
    if len(tasks) > 1:
        methods = {run.method for run in runs}
        common = [task for task in tasks if _methods(runs, task) == methods]
        shared = [run for run in runs if run.task in common]
        if len(common) > 1:
            title = f"All {len(tasks)} tasks"
            if len(common) < len(tasks):
                title = f"{len(common)} of {len(tasks)} tasks, those with every method"
            whole = _section(title, shared, metric, threshold)
            if whole.comparison is not None:
                found.insert(0, whole)
    return found


def _methods(runs: Sequence[Curves], task: str) -> set[str]:
    return {run.method for run in runs if run.task == task}


def _section(
    title: str, runs: list[Curves], metric: str | None, threshold: float | None
) -> Section:
    finished = [run for run in runs if run.finished]
    try:
        if len({run.method for run in finished}) < 2:
            return Section(title, runs, None, _alone(runs, metric or "return"))
        comparison = compare(finished, metric=metric, threshold=threshold)
    except UserError as error:
        return Section(title, runs, None, f"No comparison: {error}.")
    return Section(title, runs, comparison, comparison.verdict)


def _alone(runs: Sequence[Curves], metric: str) -> str:
    """The result of a single method in one sentence."""
    finished = [run for run in runs if run.finished and metric in run.absolute]
    if not finished:
        return f"{runs[0].method} is not finished on {runs[0].task}: its curve is all there is."
    run = finished[0]
    score = score_of(run.absolute[metric])
    seeds = len(run.seeds)
    return (
        f"{run.method} reaches an absolute {METRICS.get(metric, metric)} of {score} on {run.task} "
        f"in {seeds} seed{'s' * (seeds > 1)}; there is no second method to compare with."
    )


def _summary(run: Curves) -> dict[str, str]:
    """A run's row in a table without a comparison."""

    def cell(values: Mapping[str, np.ndarray]) -> str:
        return f"{score_of(values['return'])}" if "return" in values else "–"

    seconds = float(run.wall_seconds[-1])
    return {
        "method": run.method,
        "absolute greedy return": cell(run.absolute),
        "final": cell(run.final),
        "best": cell(run.best),
        "seeds": str(len(run.seeds)),
        "steps": f"{run.steps[-1]:,.0f}",
        "steps/s": f"{len(run.seeds) * run.steps[-1] / seconds:,.0f}" if seconds > 0 else "–",
        "finished": "yes" if run.finished else "no",
    }


def score_of(values: np.ndarray) -> Score:
    """The interquartile mean over seeds with its interval."""
    return stats.bootstrap(stats.interquartile_mean, np.asarray(values, float)[:, None])


# --- Charts -------------------------------------------------------------------------------------


def curves_chart(section: Section, methods: Sequence[str]) -> dict[str, Any]:
    """The learning curves of a section, for the page's script."""
    names = list(dict.fromkeys(run.method for run in section.runs))
    series = [
        {"method": methods.index(name), **_curve([r for r in section.runs if r.method == name])}
        for name in names
    ]
    axes = [axis for axis in AXES if any(axis in each["x"] for each in series)]
    metrics = [metric for metric in SHOWN if any(metric in each["y"] for each in series)]
    return {
        "title": section.title,
        "axes": [{"key": axis, "label": AXES[axis]} for axis in axes],
        "metrics": [{"key": metric, "label": SHOWN[metric]} for metric in metrics],
        "series": series,
    }


def _curve(runs: Sequence[Curves]) -> dict[str, Any]:
    """The curve of a method over its runs on all tasks, up to the last evaluation of all."""
    count = min(len(run.steps) for run in runs)
    x = {
        "steps": np.mean([run.steps[:count] for run in runs], axis=0),
        "seconds": np.mean([run.wall_seconds[:count] for run in runs], axis=0),
    }
    flops = [run.flops_per_step for run in runs]
    if None not in flops:
        x["flops"] = np.mean([run.flops_per_step * run.steps[:count] for run in runs], axis=0)
    y = {}
    for metric in SHOWN:
        if all(metric in run.metrics for run in runs):
            y[metric] = _interval([run.metrics[metric][:, :count] for run in runs])
    known = {name: values for name, values in x.items() if np.isfinite(values).all()}
    return {"x": {name: numbers(values) for name, values in known.items()}, "y": y}


def _interval(values: Sequence[np.ndarray]) -> dict[str, Any]:
    """The interquartile mean of `[seed, evaluation]` of each task, with its interval."""
    seeds = min(len(each) for each in values)
    stacked = np.stack([each[:seeds] for each in values], axis=1)
    score = stats.bootstrap(stats.interquartile_mean, stacked)
    return {name: numbers(getattr(score, name)) for name in ("point", "low", "high")}


def profile_chart(section: Section, compared: Comparison, methods: Sequence[str]) -> dict[str, Any]:
    """The performance profiles of a section that is a comparison."""
    name = METRICS.get(compared.metric, compared.metric.replace("_", " "))
    taus = numbers(compared.taus)
    return {
        "title": f"Performance profiles: {section.title}",
        "axes": [{"key": "tau", "label": f"Absolute {name} τ"}],
        "metrics": [{"key": "above", "label": "Fraction of runs above τ"}],
        "series": [
            {
                "method": methods.index(method.name),
                "x": {"tau": taus},
                "y": {
                    "above": {
                        part: numbers(getattr(method.profile, part))
                        for part in ("point", "low", "high")
                    }
                },
            }
            for method in compared.methods
        ],
    }


def numbers(values: Any) -> list[float | None]:
    """`values` as JSON with `DIGITS` significant digits; NaN and infinity are null."""
    flat = np.asarray(values, float).ravel().tolist()
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in flat]
