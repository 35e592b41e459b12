"""Comparison of methods: statistics of their runs and a verdict in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from perla.analysis import stats
from perla.analysis.load import Budget, Curves
from perla.analysis.stats import Score
from perla.errors import UserError, nearest, resume_command
from perla.files import read_regular

FEWEST_SEEDS = 3
"""Least number of seeds for a verdict: intervals of one or two seeds are meaningless."""

METRICS = {"return": "greedy return", "return_sampled": "sampled return"}
"""Names in words of metrics whose own name does not name the evaluated policy."""

PROFILE_POINTS = 51
"""Number of scores τ at which performance profiles are computed."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A method's learning curve over all seeds and tasks; all arrays are `[evaluation]`."""

    value: Score
    """Interquartile mean of the metric, with its interval."""
    steps: np.ndarray
    """Environment steps of each seed."""
    seconds: np.ndarray
    """Wall-clock seconds of all seeds of a task together."""
    flops: np.ndarray | None
    """Floating-point operations of each seed's training; None if they were not counted."""


@dataclass(frozen=True, eq=False)
class Method:
    """Results of a method. Scores are interquartile means over its runs, unless noted."""

    name: str
    absolute: Score
    """The absolute metric: the best parameters in a further evaluation."""
    final: Score
    """The last evaluation."""
    best: Score
    """The best evaluation; optimistic, as it is a maximum."""
    area: Score
    """The area under the learning curve over steps, divided by the span of steps."""
    optimality_gap: Score
    """Mean shortfall of the absolute metric below `Comparison.threshold`; lower is better."""
    profile: Score
    """Performance profile: the fraction of runs whose absolute metric exceeds each of
    `Comparison.taus`, `[tau]`."""
    steps_to: float
    """Median over runs of the steps to the threshold. Runs that never reach it count as ∞; a median
    of ∞ is NaN."""
    reached: int
    """Number of runs that reached the threshold."""
    failures: int
    """Number of runs with a final score below 0.1."""
    steps_per_second: float
    """Environment steps of all seeds per second, evaluations included."""
    curve: Curve
    runs: np.ndarray
    """The absolute metric of every run: `[seed, task]`."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """A comparison of methods on the same tasks with the same budget."""

    metric: str
    tasks: tuple[str, ...]
    budget: Budget
    threshold: float
    """Target value of the metric, for `Method.steps_to` and `Method.optimality_gap`."""
    taus: np.ndarray
    """Scores of the performance profiles, from the lowest to the highest of all runs: `[tau]`."""
    methods: tuple[Method, ...]
    """The first is the baseline."""
    improvement: dict[str, dict[str, Score]]
    """`improvement[x][y]` is the probability that a run of x has a higher absolute metric than a
    run of y."""

    @property
    def verdict(self) -> str:
        """Verdict in a sentence, from the absolute metric and the area under the curve.

        A method is better than another if their 95% intervals do not overlap. The subject is the
        method that wins the most pairs or, among equals, has the highest absolute metric.
        """
        leader = max(self.methods, key=lambda method: (self._wins(method), method.absolute.point))
        rivals = [method for method in self.methods if method is not leader]
        groups: dict[str, list[Method]] = {}
        for rival in rivals:
            groups.setdefault(_RELATIONS[self._relation(leader, rival)], []).append(rival)
        claims = [f"{how} {_and(rival.name for rival in group)}" for how, group in groups.items()]
        seeds = self.budget.seeds
        chances = [
            f"{self.improvement[leader.name][rival.name]}"
            + f" over {rival.name}" * (len(rivals) > 1)
            for rival in rivals
        ]
        evidence = [
            self._quote(f"absolute {METRICS.get(self.metric, self.metric)}", leader, "absolute"),
            self._quote("area under the curve", leader, "area"),
            f"probability of improvement {_and(chances)}",
        ]
        scope = f"in {seeds} seed{'s' * (seeds > 1)}"
        if len(self.tasks) > 1:
            scope += f" of {len(self.tasks)} tasks"
        text = ", ".join(evidence)
        if seeds < FEWEST_SEEDS:
            text = f"fewer than {FEWEST_SEEDS} are too few for a verdict ({text})"
        elif set(groups) == {_RELATIONS[0, 0]}:
            text = f"the intervals overlap ({text})"
        return f"{leader.name} {', and '.join(claims)} {scope}: {text}."

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as strict JSON: arrays are lists, and NaN and ∞ are null."""
        return _plain(self) | {"verdict": self.verdict}

    def _relation(self, x: Method, y: Method) -> tuple[int, int]:
        """Return 1 (x is ahead), −1 (y is) or 0, by the absolute metric and by the area."""
        if self.budget.seeds < FEWEST_SEEDS:
            return 0, 0
        return stats.ahead(x.absolute, y.absolute), stats.ahead(x.area, y.area)

    def _wins(self, method: Method) -> int:
        """Return wins less losses; the absolute metric decides a pair before the area does."""
        relations = [self._relation(method, other) for other in self.methods]
        return sum(absolute or area for absolute, area in relations)

    def _quote(self, what: str, leader: Method, field: str) -> str:
        rivals = [method for method in self.methods if method is not leader]
        named = [
            f"{rival.name}'s " * (len(rivals) > 1) + f"{getattr(rival, field)}" for rival in rivals
        ]
        return f"{what} {getattr(leader, field)} against {_and(named)}"


_RELATIONS = {
    (1, 1): "is better than",
    (1, 0): "is better than",
    (1, -1): "ends better but learns more slowly than",
    (0, 1): "ends no better but learns faster than",
    (0, 0): "cannot be told apart from",
    (0, -1): "ends no better and learns more slowly than",
    (-1, 1): "ends worse but learns faster than",
    (-1, 0): "is worse than",
    (-1, -1): "is worse than",
}
"""(x is ahead in the absolute metric, x is ahead in the area under the curve) → predicate."""


def compare(
    runs: Sequence[Curves],
    *,
    metric: str = "return",
    threshold: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare the methods of `runs`; that of the first run is the baseline.

    Higher values of `metric` are better, and it has the same scale on all tasks, as scores are
    averaged over tasks. `threshold` is the target of the steps to threshold and of the optimality
    gap; by default it is 0.9 of the best method's final interquartile mean. `seed` is that of the
    bootstrap. Raises `UserError` as `check_fair` does, and if a run lacks the metric.
    """
    check_fair(runs)
    for run in runs:
        if metric not in run.absolute:
            raise UserError(f"{run.path}: {nearest(metric, run.absolute, what='metric')}")
    tasks = tuple(dict.fromkeys(run.task for run in runs))
    by_method = {
        method: sorted((r for r in runs if r.method == method), key=lambda r: tasks.index(r.task))
        for method in dict.fromkeys(run.method for run in runs)
    }
    if threshold is None:
        finals = [_scores([run.final[metric] for run in each]) for each in by_method.values()]
        best = max(stats.interquartile_mean(final) for final in finals)
        threshold = float(best - 0.1 * abs(best))  # Below the best also if that is negative.
    scores = np.concatenate([run.absolute[metric] for run in runs])
    taus = np.linspace(scores.min(), scores.max(), PROFILE_POINTS)
    methods = tuple(
        _method(name, each, metric, threshold, taus, seed) for name, each in by_method.items()
    )
    improvement: dict[str, dict[str, Score]] = {method.name: {} for method in methods}
    for x, y in combinations(methods, 2):
        chance = stats.probability_of_improvement(x.runs, y.runs, seed=seed)
        improvement[x.name][y.name] = chance
        # P(Y > X) + ½ P(X = Y) is the complement.
        improvement[y.name][x.name] = Score(1 - chance.point, 1 - chance.high, 1 - chance.low)
    return Comparison(
        metric=metric,
        tasks=tasks,
        budget=runs[0].budget,
        threshold=threshold,
        taus=taus,
        methods=methods,
        improvement=improvement,
    )


def _method(
    name: str,
    runs: Sequence[Curves],
    metric: str,
    threshold: float,
    taus: np.ndarray,
    seed: int,
) -> Method:
    """Summarise one method, from its runs on each task."""

    def score(values: Sequence[np.ndarray]) -> Score:
        return stats.bootstrap(stats.interquartile_mean, _scores(values), seed=seed)

    values = [run.metrics[metric] for run in runs]
    steps_to = _scores([stats.steps_to(run.steps, run.metrics[metric], threshold) for run in runs])
    middle = float(np.median(np.where(np.isnan(steps_to), np.inf, steps_to)))
    final = [run.final[metric] for run in runs]
    absolute = [run.absolute[metric] for run in runs]
    steps = sum(len(run.seeds) * run.steps[-1] for run in runs)
    seconds = sum(run.wall_seconds[-1] for run in runs)
    counted = [run.flops_per_step * run.steps for run in runs if run.flops_per_step is not None]
    return Method(
        name=name,
        absolute=score(absolute),
        final=score(final),
        best=score([run.best[metric] for run in runs]),
        area=score([stats.area_under_curve(run.steps, run.metrics[metric]) for run in runs]),
        optimality_gap=stats.bootstrap(
            partial(stats.optimality_gap, gamma=threshold), _scores(absolute), seed=seed
        ),
        profile=stats.performance_profile(_scores(absolute), taus, seed=seed),
        steps_to=middle if math.isfinite(middle) else math.nan,
        reached=int(np.isfinite(steps_to).sum()),
        failures=stats.failures(_scores(final)),
        steps_per_second=float(steps / seconds) if seconds > 0 else math.nan,
        curve=Curve(
            value=score(values),
            steps=np.mean([run.steps for run in runs], axis=0),
            seconds=np.mean([run.wall_seconds for run in runs], axis=0),
            flops=np.mean(counted, axis=0) if len(counted) == len(runs) else None,
        ),
        runs=_scores(absolute),
    )


# --- Conditions of a fair comparison ------------------------------------------------------------


def check_fair(runs: Sequence[Curves]) -> None:
    """Raise `UserError` unless `runs` are comparable; name two runs and their difference.

    Comparable runs are finished, of two methods or more, with one run of each method on each task.
    All have the same steps, number of seeds and evaluations, and on each task the same environment.
    """
    for run in runs:
        if not run.finished:
            raise UserError(f"{run.path}: not finished; `{resume_command(run.path)}` continues it")
        if run.dropped:
            raise UserError(
                f"{run.path}: seed {run.dropped[0]} was dropped, as its numbers were not finite; "
                "a comparison of the remaining seeds would favour the method"
            )
    by_task = _by_task(runs)
    methods = dict.fromkeys(run.method for run in runs)
    if len(methods) < 2:
        raise UserError(f"nothing to compare: {len(runs)} runs of {len(methods)} method(s)")
    for run in runs[1:]:
        _check_equal(runs[0], run, asdict(runs[0].budget), asdict(run.budget))
        counts = [{"evaluations made": len(each.steps)} for each in (runs[0], run)]
        _check_equal(runs[0], run, *counts)
    for task, by_method in by_task.items():
        first, *others = by_method.values()
        for other in others:
            _check_equal(first, other, _flat(first.environment), _flat(other.environment))
        for method in methods:
            if method not in by_method:
                other = next(run for run in runs if run.method == method)
                raise UserError(f"{other.path} and {first.path}: {method} has no run on {task}")


def _by_task(runs: Sequence[Curves]) -> dict[str, dict[str, Curves]]:
    """Return task → method → run. Raises `UserError` if a method has two runs on a task."""
    found: dict[str, dict[str, Curves]] = {}
    for run in runs:
        other = found.setdefault(run.task, {}).setdefault(run.method, run)
        if other is not run:
            raise UserError(
                f"{other.path} and {run.path}: both are {run.method} on {run.task}; give one of "
                "them another name, or leave it out"
            )
    return found


def _check_equal(x: Curves, y: Curves, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    for name in dict.fromkeys((*a, *b)):
        if a.get(name) != b.get(name):
            raise UserError(f"{x.path} and {y.path}: {name} = {a.get(name)} and {b.get(name)}")


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested facts to dotted names, for an error message."""
    flat: dict[str, Any] = {}
    for name, fact in facts.items():
        if isinstance(fact, Mapping):
            flat |= _flat(fact, f"{prefix}{name}.")
        else:
            flat[prefix + name] = fact
    return flat


# --- Output -------------------------------------------------------------------------------------


def rows(comparison: Comparison) -> list[dict[str, str]]:
    """Return a table of the comparison: column → cell, for each method."""
    baseline = comparison.methods[0].name
    table = []
    for method in comparison.methods:
        chance = comparison.improvement[method.name].get(baseline)
        count = method.runs.size
        table.append(
            {
                "method": method.name,
                f"absolute {METRICS.get(comparison.metric, comparison.metric)}": (
                    f"{method.absolute}"
                ),
                "final": f"{method.final}",
                "best": f"{method.best}",
                "area under curve": f"{method.area}",
                f"steps to {comparison.threshold:.3g}": (
                    f"{'–' if math.isnan(method.steps_to) else f'{method.steps_to:,.0f}'}"
                    f" ({method.reached} of {count})"
                ),
                "steps/s": f"{method.steps_per_second:,.0f}",
                f"optimality gap to {comparison.threshold:.3g}": f"{method.optimality_gap}",
                "failures": f"{method.failures} of {count}",
                f"P(better than {baseline})": "–" if chance is None else f"{chance}",
            }
        )
    return table


def marl_eval(runs: Sequence[Curves]) -> dict[str, Any]:
    """Merge the runs' `marl_eval.json`: environment → task → method → seed → step → metrics.

    Raises `UserError` if a file is missing or damaged, or if a method has two runs on a task.
    """
    _by_task(runs)
    merged: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        for family, tasks in _layout(run.path / "marl_eval.json").items():
            for task, methods in tasks.items():
                by_method = merged.setdefault(family, {}).setdefault(task, {})
                for seeds in methods.values():  # One method: a run has one algorithm.
                    by_method[run.method] = seeds
    return merged


def _layout(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    try:
        return msgspec.json.decode(read_regular(path), type=dict[str, dict[str, dict[str, Any]]])
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: damaged ({error})") from None


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {name: _plain(each) for name, each in vars(value).items()}
    if isinstance(value, Score):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _scores(values: Sequence[np.ndarray]) -> np.ndarray:
    """Stack values `[seed, …]`, one array for each task, to `[seed, task, …]`."""
    return np.stack(values, axis=1)


def _and(words: Any) -> str:
    """Join words to a list in a sentence."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
