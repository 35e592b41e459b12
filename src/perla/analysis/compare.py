"""Comparison of methods: statistics of their runs and a verdict in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, Literal

import numpy as np

from perla.analysis import stats
from perla.analysis.align import align
from perla.analysis.fair import check_fair
from perla.analysis.load import Budget, Curves
from perla.analysis.stats import Score
from perla.errors import UserError, nearest

FEWEST_SEEDS = 3
"""Least number of seeds for a verdict: intervals of one or two seeds are meaningless."""

METRICS = {"return": "greedy return", "return_sampled": "sampled return"}
"""Names in words of metrics whose own name does not name the evaluated policy."""


def in_words(metric: str) -> str:
    """The name of a metric in words."""
    return METRICS.get(metric, metric)


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
    """Wall-clock seconds of all seeds of a task together; NaN if nobody recorded them."""
    flops: np.ndarray | None
    """Floating-point operations of each seed's training; None if they were not counted."""


@dataclass(frozen=True, eq=False)
class Method:
    """Results of a method. Scores are interquartile means over its runs, unless noted."""

    name: str
    seeds: int
    """Number of seeds on each task."""
    absolute: Score
    """The score: the absolute metric, which is that of the best parameters in a further evaluation,
    or the last evaluation if not every run has one (`Comparison.score`)."""
    final: Score
    """The last evaluation."""
    best: Score
    """The best evaluation; optimistic, as it is a maximum."""
    area: Score
    """The area under the learning curve over steps, divided by the span of steps."""
    optimality_gap: Score
    """Mean shortfall of the score below `Comparison.threshold`; lower is better."""
    profile: Score
    """Performance profile: the fraction of runs whose score exceeds each of `Comparison.taus`,
    `[tau]`."""
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
    """The score of every run: `[seed, task]`."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """A comparison of methods on the same tasks with the same budget."""

    metric: str
    metric_name: str
    """The metric in words; `return` alone if a source does not say which policy was evaluated."""
    score: Literal["absolute", "final"]
    """The score of a run: its absolute metric or, if not every run has one, its last evaluation."""
    tasks: tuple[str, ...]
    budget: Budget
    """The budget of every run; `seeds` are those of the method with the fewest."""
    notes: tuple[str, ...]
    """Lines that say what was done to make the runs comparable."""
    threshold: float
    """Target value of the metric, for `Method.steps_to` and `Method.optimality_gap`."""
    taus: np.ndarray
    """Scores of the performance profiles, from the lowest to the highest of all runs: `[tau]`."""
    methods: tuple[Method, ...]
    """The first is the baseline."""
    improvement: dict[str, dict[str, Score]]
    """`improvement[x][y]` is the probability that a run of x has a higher score than a run of y."""

    @property
    def verdict(self) -> str:
        """Verdict in a sentence, from the score and the area under the curve.

        A method is better than another if their 95% intervals do not overlap. The subject is the
        method that wins the most pairs or, among equals, has the highest score.
        """
        score = f"{self.score} {self.metric_name}"
        if len(self.methods) == 1:
            (only,) = self.methods
            return (
                f"{only.name} {self._scope}: {score} {only.absolute}, area under the curve "
                f"{only.area}; there is no other method to compare it with."
            )
        leader = max(self.methods, key=lambda method: (self._wins(method), method.absolute.point))
        rivals = [method for method in self.methods if method is not leader]
        groups: dict[str, list[Method]] = {}
        for rival in rivals:
            groups.setdefault(_RELATIONS[self._relation(leader, rival)], []).append(rival)
        claims = [f"{how} {_and(rival.name for rival in group)}" for how, group in groups.items()]
        chances = [
            f"{self.improvement[leader.name][rival.name]}"
            + f" over {rival.name}" * (len(rivals) > 1)
            for rival in rivals
        ]
        evidence = [
            self._quote(score, leader, "absolute"),
            self._quote("area under the curve", leader, "area"),
            f"probability of improvement {_and(chances)}",
        ]
        text = ", ".join(evidence)
        if self.budget.seeds < FEWEST_SEEDS:
            text = f"fewer than {FEWEST_SEEDS} are too few for a verdict ({text})"
        elif set(groups) == {_RELATIONS[0, 0]}:
            text = f"the intervals overlap ({text})"
        return f"{leader.name} {', and '.join(claims)} {self._scope}: {text}."

    @property
    def _scope(self) -> str:
        """The seeds and tasks in words."""
        fewest, most = self.budget.seeds, max(method.seeds for method in self.methods)
        seeds = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        tasks = f" of {len(self.tasks)} tasks" if len(self.tasks) > 1 else ""
        return f"in {seeds} seed{'s' * (most > 1)}{tasks}"

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
    metric: str | None = None,
    threshold: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare the methods of `runs`; that of the first run is the baseline.

    Higher values of `metric` are better, and it has the same scale on all tasks, as scores are
    averaged over tasks; by default it is `return` or, if a run has no greedy one,
    `return_sampled`. `threshold` is the target of the steps to threshold and of the optimality
    gap; by default it is 0.9 of the best method's final interquartile mean. `seed` is that of the
    bootstrap. Runs that were evaluated at different steps are aligned, which `notes` says. Raises
    `UserError` as `check_fair` and `align` do, and if a run lacks the metric.
    """
    check_fair(runs)
    metric, runs, score, notes = _comparable(runs, metric)
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
        metric_name=in_words(metric) if all(run.names_policy for run in runs) else metric,
        score=score,
        tasks=tasks,
        budget=_common_budget(runs),
        notes=tuple(notes),
        threshold=threshold,
        taus=taus,
        methods=methods,
        improvement=improvement,
    )


def _comparable(
    runs: Sequence[Curves], metric: str | None
) -> tuple[str, Sequence[Curves], Literal["absolute", "final"], list[str]]:
    """The metric, the runs on one grid with the score of each as its absolute metric, the kind of
    that score, and lines on what was done."""
    notes: list[str] = []
    if metric is None:
        metric, notes = _default_metric(runs)
    for run in runs:
        known = run.absolute or run.final
        if metric not in known:
            raise UserError(f"{run.path}: {nearest(metric, known, what='metric')}")
        for part in ("metrics", "final", "best"):
            if metric not in getattr(run, part):
                raise UserError(f"{run.path}: damaged ({metric!r} is missing in: {part})")
    runs, aligned = align(runs)
    notes = notes + aligned
    without = [run for run in runs if metric not in run.absolute]
    if not without:
        return metric, runs, "absolute", notes
    notes.append(
        f"{without[0].path}: has no absolute metric, so the last evaluation is the score of all"
    )
    return metric, [replace(run, absolute=run.final) for run in runs], "final", notes


def _default_metric(runs: Sequence[Curves]) -> tuple[str, list[str]]:
    """The metric that is compared unless another is named, and a line if it is the sampled one."""
    lacking = [run for run in runs if "return" not in run.final]
    if not lacking or any("return_sampled" not in run.final for run in runs):
        return "return", []
    return "return_sampled", [
        f"{lacking[0].path}: has no greedy return, so sampled returns are compared"
    ]


def _common_budget(runs: Sequence[Curves]) -> Budget:
    """The numbers that are known, and the fewest seeds of a method."""

    def known(name: str) -> Any:
        values = [getattr(run.budget, name) for run in runs]
        return next((value for value in values if value is not None), None)

    return Budget(
        steps=known("steps"),
        seeds=min(len(run.seeds) for run in runs),
        num_evaluations=len(runs[0].steps) - 1,
        eval_episodes=known("eval_episodes"),
        absolute_episodes=known("absolute_episodes"),
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
        seeds=len(runs[0].seeds),
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


# --- Helpers --------------------------------------------------------------------------------------


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
