"""Methods side by side: the numbers of a comparison, and one sentence that says what they show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from perla.analysis import stats
from perla.analysis.load import Budget, Curves
from perla.analysis.stats import Score
from perla.errors import UserError, nearest
from perla.files import read_regular

FEWEST_SEEDS = 3
"""Fewer seeds than this are not judged: the intervals of one or two say nothing."""

METRICS = {"return": "greedy return", "return_sampled": "sampled return"}
"""Metrics whose name does not say which policy was measured."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A method's learning curve over seeds and tasks, all arrays `[evaluation]`."""

    value: Score
    """Interquartile mean and interval of the metric."""
    steps: np.ndarray
    """Environment steps of each seed."""
    seconds: np.ndarray
    """Wall-clock seconds of all seeds of a task together."""
    flops: np.ndarray | None
    """Floating-point operations of each seed's training; None where they were not counted."""


@dataclass(frozen=True, eq=False)
class Method:
    """What one method reached. Scores are interquartile means over all its runs."""

    name: str
    absolute: Score
    """The best parameters, evaluated once more."""
    final: Score
    """The last evaluation."""
    best: Score
    """The best evaluation, flattered by having been chosen."""
    area: Score
    """The area under the learning curve over steps, divided by their span."""
    steps_to: float
    """Median over runs of the steps to the threshold, never counting as ∞; NaN if it is never."""
    reached: int
    """How many runs reached the threshold."""
    failures: int
    """How many runs ended below 0.1."""
    steps_per_second: float
    """Environment steps of all seeds a second, evaluations included."""
    curve: Curve
    runs: np.ndarray
    """The absolute metric of every run: `[seed, task]`."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods on the same tasks with the same budget."""

    metric: str
    tasks: tuple[str, ...]
    budget: Budget
    threshold: float
    """The value of the metric that `Method.steps_to` asks for."""
    methods: tuple[Method, ...]
    """The first is the baseline."""
    improvement: dict[str, dict[str, Score]]
    """`improvement[x][y]`: the probability that a run of x has a higher absolute metric than a run
    of y, for all pairs of methods."""

    @property
    def verdict(self) -> str:
        """What the absolute metric and the area under the curve show, in one sentence.

        One method is better than another where their 95% intervals do not overlap. The sentence is
        about the method that wins the most pairs, or if none wins more, has the highest estimate.
        """
        leader = max(self.methods, key=lambda method: (self._wins(method), method.absolute.point))
        rivals = [method for method in self.methods if method is not leader]
        found: dict[str, list[Method]] = {}
        for rival in rivals:
            found.setdefault(_RELATIONS[self._relation(leader, rival)], []).append(rival)
        claims = [f"{how} {_and(rival.name for rival in own)}" for how, own in found.items()]
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
            text = f"fewer than {FEWEST_SEEDS} are not judged ({text})"
        elif set(found) == {_RELATIONS[0, 0]}:
            text = f"the intervals overlap ({text})"
        return f"{leader.name} {', and '.join(claims)} {scope}: {text}."

    def as_dict(self) -> dict[str, Any]:
        """The comparison as strict JSON can hold it: arrays are lists, what is not finite null."""
        return _plain(self) | {"verdict": self.verdict}

    def _relation(self, x: Method, y: Method) -> tuple[int, int]:
        """Whether x (1), y (−1) or neither (0) is ahead at the end, and along the way."""
        if self.budget.seeds < FEWEST_SEEDS:
            return 0, 0
        return stats.ahead(x.absolute, y.absolute), stats.ahead(x.area, y.area)

    def _wins(self, method: Method) -> int:
        """Over how many more methods it prevails than prevail over it; the end counts first."""
        relations = [self._relation(method, other) for other in self.methods]
        return sum(end or way for end, way in relations)

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
"""(ahead at the end, ahead along the way) → how x stands to y."""


def compare(
    runs: Sequence[Curves],
    *,
    metric: str = "return",
    threshold: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare the methods of `runs`, the first run's being the baseline.

    Of `metric`, more is better, and it has one scale on all tasks, because scores are averaged over
    them. `threshold` is what steps are counted to; without it, 0.9 of the best final interquartile
    mean of any method. `seed` is the bootstrap's. Raises `UserError` as `check_fair` does, and
    where a run lacks the metric.
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
        finals = [_scores([run.final[metric] for run in own]) for own in by_method.values()]
        best = max(stats.interquartile_mean(final) for final in finals)
        threshold = float(best - 0.1 * abs(best))  # 0.9 of it, and below it where it is negative.
    methods = tuple(_method(name, own, metric, threshold, seed) for name, own in by_method.items())
    improvement: dict[str, dict[str, Score]] = {method.name: {} for method in methods}
    for x, y in combinations(methods, 2):
        chance = stats.probability_of_improvement(x.runs, y.runs, seed=seed)
        improvement[x.name][y.name] = chance
        # P(Y > X) + ½ P(X = Y) is what is left.
        improvement[y.name][x.name] = Score(1 - chance.point, 1 - chance.high, 1 - chance.low)
    return Comparison(
        metric=metric,
        tasks=tasks,
        budget=runs[0].budget,
        threshold=threshold,
        methods=methods,
        improvement=improvement,
    )


def _method(name: str, runs: Sequence[Curves], metric: str, threshold: float, seed: int) -> Method:
    """The numbers of one method from its runs, one for each task."""

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


# --- What makes a comparison fair ---------------------------------------------------------------


def check_fair(runs: Sequence[Curves]) -> None:
    """Raise `UserError`, naming two runs and what is unequal, unless `runs` can be compared.

    That takes two methods or more, finished, each with one run on every task; the same steps,
    number of seeds and evaluations for all; and the same rules wherever the environment is the
    same.
    """
    for run in runs:
        if not run.finished:
            raise UserError(f"{run.path}: not finished; `perla resume {run.path}` continues it")
        if run.dropped:
            raise UserError(
                f"{run.path}: seed {run.dropped[0]} was dropped, as its numbers were not finite; "
                "a comparison of the seeds that are left would flatter the method"
            )
    by_task = _by_task(runs)
    methods = dict.fromkeys(run.method for run in runs)
    if len(methods) < 2:
        raise UserError(f"nothing to compare: {len(runs)} runs of {len(methods)} method(s)")
    for run in runs[1:]:
        _check_equal(runs[0], run, asdict(runs[0].budget), asdict(run.budget))
        made = [{"evaluations made": len(one.steps)} for one in (runs[0], run)]
        _check_equal(runs[0], run, *made)
    for task, own in by_task.items():
        first, *others = own.values()
        for other in others:
            _check_equal(first, other, _flat(first.environment), _flat(other.environment))
        for method in methods:
            if method not in own:
                other = next(run for run in runs if run.method == method)
                raise UserError(f"{other.path} and {first.path}: {method} has no run on {task}")


def _by_task(runs: Sequence[Curves]) -> dict[str, dict[str, Curves]]:
    """Task → method → its run. Raises `UserError` where there are two."""
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
    """Nested facts under dotted names, so that an error can say which one differs."""
    flat: dict[str, Any] = {}
    for name, fact in facts.items():
        if isinstance(fact, Mapping):
            flat |= _flat(fact, f"{prefix}{name}.")
        else:
            flat[prefix + name] = fact
    return flat


# --- Ways out -----------------------------------------------------------------------------------


def rows(comparison: Comparison) -> list[dict[str, str]]:
    """A table of the comparison: for each method, column → cell."""
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
                "failures": f"{method.failures} of {count}",
                f"P(better than {baseline})": "–" if chance is None else f"{chance}",
            }
        )
    return table


def marl_eval(runs: Sequence[Curves]) -> dict[str, Any]:
    """The runs' `marl_eval.json` as one: environment → task → method → seed → step → metrics.

    Raises `UserError` where a file is missing or damaged, and where two runs are of one method
    and task.
    """
    _by_task(runs)
    merged: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        for family, tasks in _layout(run.path / "marl_eval.json").items():
            for task, methods in tasks.items():
                own = merged.setdefault(family, {}).setdefault(task, {})
                for seeds in methods.values():  # One: a run has one algorithm.
                    own[run.method] = seeds
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
        return {name: _plain(own) for name, own in vars(value).items()}
    if isinstance(value, Score):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _scores(values: Sequence[np.ndarray]) -> np.ndarray:
    """Runs' values `[seed, …]`, one for each task, as `[seed, task, …]`."""
    return np.stack(values, axis=1)


def _and(words: Any) -> str:
    """The words as a list in a sentence."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
