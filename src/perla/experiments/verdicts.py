"""Verdicts on the paper's claims: the measured quantities and the rule of each claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from perla.analysis import stats
from perla.analysis.compare import Comparison, compare
from perla.analysis.load import Curves
from perla.analysis.stats import Score
from perla.experiments.experiment import METRIC, Verdict
from perla.suites.suite import Scalar, text

PAIRS = (("perla-ippo", "ippo"), ("perla-mappo", "mappo"))
"""The paper's methods, each with its base method."""

SURE = 4.5
"""Standard errors beyond which an equality is rejected; by chance in one of 150,000 tests."""
VANISHED = 0.05
"""Share of its first value below which the norm of a gradient counts as going to zero."""
SLOPE = 0.05
"""Tolerance of the slope −1/2 of the sampling error in log K."""


def compare_methods(runs: Sequence[Curves], *methods: str, metric: str = METRIC) -> Comparison:
    """Compare `methods` on all tasks together; the last is the baseline."""
    return compare(
        [run for name in reversed(methods) for run in runs if run.method == name], metric=metric
    )


def better(runs: Sequence[Curves], x: str, y: str, metric: str = METRIC) -> tuple[int, str]:
    """Compare x with y by the area under the curve and the final value; return (sign, numbers).

    The sign is 1 where x is ahead in at least one of them and behind in neither, −1 where y is, and
    0 otherwise.
    """
    b, a = compare_methods(runs, x, y, metric=metric).methods
    word = "win rate" if metric.startswith("win_rate") else "return"
    signs = stats.ahead(a.area, b.area), stats.ahead(a.final, b.final)
    sign = max(signs) if min(signs) >= 0 else min(signs) if max(signs) <= 0 else 0
    words = (
        f"{x} against {y}: area under the curve {a.area} against {b.area}, "
        f"final {word} {a.final} against {b.final}"
    )
    return sign, words


def judge_pairs(
    pairs: Sequence[tuple[str, str]], metric: str = METRIC
) -> Callable[[Sequence[Curves]], Verdict]:
    """Return the judge of the claim that the first method of each pair improves on the second."""

    def judge(runs: Sequence[Curves]) -> Verdict:
        found = [better(runs, x, y, metric) for x, y in pairs]
        signs = [sign for sign, _ in found]
        reason = "; ".join(words for _, words in found)
        if all(sign == 1 for sign in signs):
            return Verdict("holds", reason)
        if any(sign == 1 for sign in signs) and -1 not in signs:
            return Verdict("holds in part", reason)
        return Verdict("does not hold", reason)

    return judge


def judge_failures(metric: str = METRIC) -> Callable[[Sequence[Curves]], Verdict]:
    """Return the judge of the claim that PERLA-IPPO does not fail where IPPO does."""

    def judge(runs: Sequence[Curves]) -> Verdict:
        methods = ("ippo", "mappo", "perla-ippo")
        failed = {name: failed_maps(runs, name, metric) for name in methods}
        ippo, mappo, perla = failed.values()
        maps = len({run.task for run in runs})
        reason = ", ".join(f"{name} fails on {n} of {maps} maps" for name, n in failed.items())
        if ippo == 0:
            return Verdict("not tested", f"{reason}: IPPO fails nowhere")
        if perla == 0:
            return Verdict("holds", reason)
        fewer = perla < ippo and perla <= mappo
        return Verdict("holds in part" if fewer else "does not hold", reason)

    return judge


def failed_maps(runs: Sequence[Curves], method: str, metric: str = METRIC) -> int:
    """Count the maps on which the mean final `metric` of a method is below 0.1."""
    finals = [float(np.mean(run.final[metric])) for run in runs if run.method == method]
    return stats.failures(finals)


def judge_full_observability(runs: Sequence[Curves]) -> Verdict:
    """Judge the claim that PERLA-IPPO ends over 15% above IPPO under full observability."""
    ahead, reason = better(runs, "perla-ippo", "ippo")
    base, perla = compare_methods(runs, "perla-ippo", "ippo").methods
    gain = percent(perla.final.point, base.final.point)
    reason = f"{reason}; the final return is {gain:+.0f}%"
    if ahead == 1:
        return Verdict("holds" if gain > 15 else "holds in part", reason)
    return Verdict("does not hold", reason)


def percent(new: float, old: float) -> float:
    """Return the excess of `new` over `old`, in percent of `old`."""
    return 100.0 * (new - old) / old if old > 0 else (0.0 if new == old else np.inf)


def agents(run: Curves) -> int:
    """Return the number of agents in the run's environment."""
    return int(run.environment["agents"])


def gains(runs: Sequence[Curves], base: str) -> dict[int, Score]:
    """Return PERLA-IPPO's gain in final return over `base`, by the number of agents."""
    table: dict[int, Score] = {}
    for run in runs:
        if run.method != "perla-ippo":
            continue
        (other,) = (r for r in runs if r.method == base and r.task == run.task)
        mine, others = run.final[METRIC][:, None], other.final[METRIC][:, None]
        table[agents(run)] = stats.bootstrap(
            lambda x, y: stats.mean(x) - stats.mean(y), mine, others
        )
    return dict(sorted(table.items()))


def judge_scaling(runs: Sequence[Curves]) -> Verdict:
    """Judge the claim that the gain grows with the agents and exceeds 1000% at the most agents."""
    parts, reason = [], []
    for base in ("ippo", "mappo"):
        found = gains(runs, base)
        most = max(found)
        mine, other = (
            float(np.mean(run.final[METRIC]))
            for name in ("perla-ippo", base)
            for run in runs
            if run.method == name and agents(run) == most
        )
        points = [score.point for score in found.values()]
        grows = bool(np.all(np.diff(points) >= 0)) and found[most].low > 0
        parts.append((grows, grows and percent(mine, other) > 1000))
        reason.append(
            f"over {base}: "
            + ", ".join(f"N = {n}: {score}" for n, score in found.items())
            + f" of final return, {percent(mine, other):+.0f}% at N = {most}"
        )
    words = "; ".join(reason)
    if all(grows and large for grows, large in parts):
        return Verdict("holds", words)
    return Verdict("holds in part" if any(grows for grows, _ in parts) else "does not hold", words)


def cumulative_error(run: Curves) -> np.ndarray:
    """Return the TD error summed over training: `[seed, evaluation]`, in return × steps.

    `td_error` is the root mean square over the updates of an interval; each step counts once.
    """
    error = np.nan_to_num(run.metrics["td_error"])
    return np.cumsum(error * np.diff(run.steps, prepend=0.0), axis=1)


def judge_variance(runs: Sequence[Curves]) -> Verdict:
    """Judge the claim that policy-embedded critics lower the cumulative TD error."""
    totals = {
        run.method: stats.bootstrap(stats.mean, cumulative_error(run)[:, -1:]) for run in runs
    }
    lower = [totals[x].high < totals[y].low for x, y in PAIRS]
    higher = [totals[x].low > totals[y].high for x, y in PAIRS]
    reason = "cumulative TD error: " + ", ".join(
        f"{name} {score:,.0f}" for name, score in totals.items()
    )
    if all(lower):
        return Verdict("holds", reason)
    return Verdict("holds in part" if any(lower) and not any(higher) else "does not hold", reason)


def samples_of(run: Curves) -> int:
    """Return K, the number of samples, from a run's label."""
    return int(run.method.rpartition("num_samples=")[2])


def areas_by_samples(runs: Sequence[Curves]) -> dict[int, Score]:
    """Return the area under the curve, averaged over seeds and maps, by K."""
    found: dict[int, list[np.ndarray]] = {}
    for run in runs:
        area = stats.area_under_curve(run.steps, run.metrics[METRIC])
        found.setdefault(samples_of(run), []).append(area)
    return {
        k: stats.bootstrap(stats.mean, np.stack(areas, axis=1))
        for k, areas in sorted(found.items())
    }


def judge_samples(runs: Sequence[Curves]) -> Verdict:
    """Judge the claim that K = 100 beats K = 5, and that K = 250 does not beat K = 100."""
    found = areas_by_samples(runs)
    few, many, most = found[min(found)], found.get(100, found[max(found)]), found[max(found)]
    reason = "area under the curve " + ", ".join(f"K = {k}: {s}" for k, s in found.items())
    if many.low > few.high:
        return Verdict("holds" if most.low <= many.high else "holds in part", reason)
    return Verdict("does not hold", reason)


def judge_choice(chosen: Mapping[str, Scalar]) -> Callable[[Sequence[Curves]], Verdict]:
    """Return the judge of the claim that the settings `chosen` are the best of a grid."""
    words = {f"{name}={text(value)}" for name, value in chosen.items()}

    def judge(runs: Sequence[Curves]) -> Verdict:
        comparison = compare_methods(runs, *dict.fromkeys(run.method for run in runs))
        best = max(comparison.methods, key=lambda method: method.area.point)
        (paper,) = (
            method for method in comparison.methods if words.issuperset(method.name.split()[1:])
        )
        reason = (
            f"best is {best.name} with area under the curve {best.area}; "
            f"the paper's choice ({paper.name}) has {paper.area}"
        )
        if paper is best:
            return Verdict("holds", reason)
        behind = stats.ahead(best.area, paper.area) > 0
        return Verdict("does not hold" if behind else "holds in part", reason)

    return judge
