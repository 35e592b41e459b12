"""Every experiment of the paper, as data.

The paper's budgets are in part unstated; ours are said here. At scale `paper` the methods have the
paper's settings (preset `paper-lbf`, the same for all), at `quick` those that learn fastest here
(preset `default`) on fewer steps, and `smoke` only shows that everything works. All methods of an
experiment have equal budgets. The paper evaluates with sampled actions, as EPyMARL does; so do we.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from perla.analysis import figures, stats
from perla.analysis.compare import Comparison, compare
from perla.analysis.load import Curves
from perla.analysis.stats import Score
from perla.suites.experiment import SCALES, Experiment, Scale, Verdict
from perla.suites.suite import Grid, Scalar, Suite, text

METRIC = "return_sampled"
FOUR = ("ippo", "mappo", "perla-ippo", "perla-mappo")
PAIRS = (("perla-ippo", "ippo"), ("perla-mappo", "mappo"))

MAPS = tuple(
    f"lbf:Foraging-{name}-v2"
    for name in (
        "5x5-2p-1f", "5x5-2p-1f-coop", "5x5-2p-2f", "8x8-2p-2f-coop", "8x8-3p-3f",
        "10x10-5p-1f-coop", "10x10-3p-5f", "10x10-5p-3f", "10x10-8p-1f-coop", "15x15-8p-1f-coop",
    )
)  # fmt: skip
"""The ten maps of the paper's appendix E.1."""

TABLE_3: dict[str, tuple[Scalar, ...]] = {
    "hidden": (64, 128, 256),
    "lr": (3e-4, 5e-4),
    "actor": ("mlp", "gru"),
    "normalise_rewards": (False, True),
    "entropy": (1e-3, 1e-2, 1e-1),
    "target": ("hard", "soft"),
    "n": (5, 10),
    "k": (10, 100),
}
"""The paper's search."""
TABLE_4: dict[str, Scalar] = {
    "hidden": 256,
    "lr": 5e-4,
    "actor": "mlp",
    "normalise_rewards": False,
    "entropy": 1e-3,
    "target": "soft",
    "n": 10,
    "k": 100,
}
"""What it found."""

PAPER_STEPS = 2_000_000
"""Each seed's steps at scale `paper`; the paper does not say how many it had."""

SMALL = {"hidden": 8, "copies": 2, "horizon": 8, "epochs": 1}
"""Settings that show that everything works, and teach nothing."""


def suites(
    name: str,
    *,
    steps: int,
    quick: Mapping[str, Any] | None = None,
    smoke: Mapping[str, Any] | None = None,
    **grid: Any,
) -> dict[Scale, Suite]:
    """An experiment's suites: `grid` at scale `paper`; `quick` takes `steps` of each seed, and
    both smaller scales may have parts of the grid different."""
    grids: dict[Scale, dict[str, Any]] = {
        "paper": {
            "preset": "paper-lbf", "steps": PAPER_STEPS, "seeds": 3, "evaluations": 40,
            "eval_episodes": 100,
        } | grid,
        "quick": grid | {"steps": steps, "seeds": 5, "evaluations": 20} | dict(quick or {}),
        "smoke": grid | {
            "steps": 64, "seeds": 3, "evaluations": 2, "eval_episodes": 2, "absolute_episodes": 2,
        } | dict(smoke or {}),
    }  # fmt: skip
    small = grids["smoke"]
    small["settings"] = SMALL | small.get("settings", {})
    return {scale: Suite(name=f"{name}-{scale}", grids=(Grid(**grids[scale]),)) for scale in SCALES}


# --- Rules --------------------------------------------------------------------------------------


def of(runs: Sequence[Curves], *methods: str) -> Comparison:
    """These methods side by side, on all tasks together; the last is the baseline."""
    return compare(
        [run for name in reversed(methods) for run in runs if run.method == name], metric=METRIC
    )


def better(runs: Sequence[Curves], x: str, y: str) -> tuple[int, str]:
    """Whether x is ahead of y in the area under the curve and at the end: 1 where it is ahead in
    one and behind in none, −1 the other way round, else 0. And the numbers, in words."""
    found = of(runs, x, y)
    b, a = found.methods
    signs = [
        int(mine.low > other.high) - int(other.low > mine.high)
        for mine, other in ((a.area, b.area), (a.final, b.final))
    ]
    ahead = max(signs) if min(signs) >= 0 else min(signs) if max(signs) <= 0 else 0
    words = (
        f"{x} against {y}: area under the curve {span(a.area)} against {span(b.area)}, "
        f"final return {span(a.final)} against {span(b.final)}"
    )
    return ahead, words


def span(score: Score) -> str:
    """A score and its interval."""
    return f"{score.point:.3f} [{score.low:.3f}, {score.high:.3f}]"


def judge_pairs(pairs: Sequence[tuple[str, str]]) -> Callable[[Sequence[Curves]], Verdict]:
    """The claim that each first method improves on its second."""

    def judge(runs: Sequence[Curves]) -> Verdict:
        found = [better(runs, x, y) for x, y in pairs]
        signs = [sign for sign, _ in found]
        reason = "; ".join(words for _, words in found)
        if all(sign == 1 for sign in signs):
            return Verdict("holds", reason)
        if any(sign == 1 for sign in signs) and -1 not in signs:
            return Verdict("holds in part", reason)
        return Verdict("does not hold", reason)

    return judge


def judge_failures(runs: Sequence[Curves]) -> Verdict:
    """The claim that PERLA-IPPO does not fail where IPPO does."""
    failed = {name: failed_maps(runs, name) for name in ("ippo", "mappo", "perla-ippo")}
    maps = len({run.task for run in runs})
    reason = ", ".join(f"{name} fails on {count} of {maps} maps" for name, count in failed.items())
    if failed["ippo"] == 0:
        return Verdict("not tested", f"{reason}: IPPO has no failure to mend")
    if failed["perla-ippo"] == 0 and failed["mappo"] >= failed["perla-ippo"]:
        return Verdict("holds", reason)
    better_than_both = failed["perla-ippo"] < min(failed["ippo"], failed["mappo"] + 1)
    return Verdict("holds in part" if better_than_both else "does not hold", reason)


def failed_maps(runs: Sequence[Curves], method: str) -> int:
    """On how many maps the mean final return of a method is below 0.1."""
    finals = [float(np.mean(run.final[METRIC])) for run in runs if run.method == method]
    return stats.failures(finals)


def judge_full_observability(runs: Sequence[Curves]) -> Verdict:
    """The claim that PERLA-IPPO ends at least 15% above IPPO where agents see everything."""
    ahead, reason = better(runs, "perla-ippo", "ippo")
    base, perla = of(runs, "perla-ippo", "ippo").methods
    gain = percent(perla.final.point, base.final.point)
    reason = f"{reason}; the final return is {gain:+.0f}%"
    if ahead == 1:
        return Verdict("holds" if gain > 15 else "holds in part", reason)
    return Verdict("does not hold", reason)


def percent(new: float, old: float) -> float:
    """By how much `new` exceeds `old`, in percent of `old`."""
    return 100.0 * (new - old) / old if old > 0 else (0.0 if new == old else np.inf)


def agents(run: Curves) -> int:
    """How many agents the run's world has."""
    return int(run.environment["agents"])


def gains(runs: Sequence[Curves], base: str) -> dict[int, Score]:
    """By number of agents: PERLA-IPPO's final return less that of `base`, over seeds."""
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
    """The claim that the gain grows with the agents and passes 1000% at the largest number."""
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
            + ", ".join(f"N = {n}: {span(score)}" for n, score in found.items())
            + f" of final return, {percent(mine, other):+.0f}% at N = {most}"
        )
    text = "; ".join(reason)
    if all(grows and large for grows, large in parts):
        return Verdict("holds", text)
    return Verdict("holds in part" if any(grows for grows, _ in parts) else "does not hold", text)


def cumulative_error(run: Curves) -> np.ndarray:
    """The TD error summed over training: `[seed, evaluation]`, in return × steps.

    `td_error` is the root mean square over the updates of an interval; each step counts once.
    """
    error = np.nan_to_num(run.metrics["td_error"])
    return np.cumsum(error * np.diff(run.steps, prepend=0.0), axis=1)


def judge_variance(runs: Sequence[Curves]) -> Verdict:
    """The claim that marginalising lowers the cumulative TD error."""
    totals = {
        run.method: stats.bootstrap(stats.mean, cumulative_error(run)[:, -1:]) for run in runs
    }
    lower = [totals[x].high < totals[y].low for x, y in PAIRS]
    higher = [totals[x].low > totals[y].high for x, y in PAIRS]
    reason = "cumulative TD error: " + ", ".join(
        f"{name} {score.point:,.0f} [{score.low:,.0f}, {score.high:,.0f}]"
        for name, score in totals.items()
    )
    if all(lower):
        return Verdict("holds", reason)
    return Verdict("holds in part" if any(lower) and not any(higher) else "does not hold", reason)


def samples_of(run: Curves) -> int:
    """K of a run whose label says it."""
    return int(run.method.rpartition("k=")[2])


def areas(runs: Sequence[Curves]) -> dict[int, Score]:
    """By K: the area under the curve, a mean over seeds and maps."""
    found: dict[int, list[np.ndarray]] = {}
    for run in runs:
        area = stats.area_under_curve(run.steps, run.metrics[METRIC])
        found.setdefault(samples_of(run), []).append(area)
    return {
        k: stats.bootstrap(stats.mean, np.stack(own, axis=1)) for k, own in sorted(found.items())
    }


def judge_samples(runs: Sequence[Curves]) -> Verdict:
    """The claim that K = 100 beats K = 5, and that K = 250 does not beat K = 100."""
    found = areas(runs)
    few, many, most = found[min(found)], found.get(100, found[max(found)]), found[max(found)]
    reason = "area under the curve " + ", ".join(f"K = {k}: {span(s)}" for k, s in found.items())
    if many.low > few.high:
        return Verdict("holds" if most.low <= many.high else "holds in part", reason)
    return Verdict("does not hold", reason)


def judge_grid(runs: Sequence[Curves]) -> Verdict:
    """The claim that Table 4's settings are the best of the grid."""
    found = of(runs, *dict.fromkeys(run.method for run in runs))
    best = max(found.methods, key=lambda method: method.area.point)
    chosen = {f"{name}={text(value)}" for name, value in TABLE_4.items()}
    (own,) = (method for method in found.methods if set(method.name.split()[1:]) <= chosen)
    reason = (
        f"best is {best.name} with area under the curve {span(best.area)}; "
        f"Table 4's choice ({own.name}) has {span(own.area)}"
    )
    if own is best:
        return Verdict("holds", reason)
    overlaps = own.area.high >= best.area.low
    return Verdict("holds in part" if overlaps else "does not hold", reason)


# --- Figures ------------------------------------------------------------------------------------


def by_task(runs: Sequence[Curves]) -> dict[str, list[Curves]]:
    """The runs on each map, by the map's short name."""
    panels: dict[str, list[Curves]] = {}
    for run in runs:
        panels.setdefault(short(run.task), []).append(run)
    return panels


def short(task: str) -> str:
    """`8x8-2p-2f-coop` of `lbf:Foraging-8x8-2p-2f-coop-v2`."""
    return task.rpartition(":")[2].removeprefix("Foraging-").removesuffix("-v2")


def draw_curves(runs: Sequence[Curves]) -> dict[str, Figure]:
    """All maps together, and each by itself."""
    return {
        "average": figures.comparison(compare(runs, metric=METRIC)),
        "maps": figures.learning_curves(by_task(runs), metric=METRIC),
    }


def draw_failures(runs: Sequence[Curves]) -> dict[str, Figure]:
    """Failures of each method."""
    methods = list(dict.fromkeys(run.method for run in runs))
    counts = {"maps": [float(failed_maps(runs, name)) for name in methods]}
    return {"failures": figures.bars(methods, counts, ylabel="Maps with final return below 0.1")}


def draw_scaling(runs: Sequence[Curves]) -> dict[str, Figure]:
    """The gain over either base method against the number of agents."""
    found = {f"over {base}": gains(runs, base) for base in ("ippo", "mappo")}
    numbers = list(found["over ippo"])
    return {
        "gain": figures.against(
            numbers,
            {name: list(scores.values()) for name, scores in found.items()},
            xlabel="Agents",
            ylabel="Gain of perla-ippo in final return",
            log=False,
        )
    }


def draw_variance(runs: Sequence[Curves]) -> dict[str, Figure]:
    """The cumulative TD error over training, and the return beside it."""
    runs = [
        replace(run, metrics=dict(run.metrics) | {"cumulative_td_error": cumulative_error(run)})
        for run in runs
    ]
    return {
        name: figures.learning_curves(by_task(runs), metric=metric)
        for name, metric in (("cumulative-td-error", "cumulative_td_error"), ("return", METRIC))
    }


def draw_samples(runs: Sequence[Curves]) -> dict[str, Figure]:
    """The area under the curve against K."""
    found = areas(runs)
    return {
        "samples": figures.against(
            list(found),
            {"perla-ippo": list(found.values())},
            xlabel="Joint actions sampled, K",
            ylabel="Area under the curve of the sampled return",
        )
    }


def draw_grid(runs: Sequence[Curves]) -> dict[str, Figure]:
    """The area under the curve of every combination."""
    found = of(runs, *dict.fromkeys(run.method for run in runs))
    ordered = sorted(found.methods, key=lambda method: -method.area.point)
    return {
        "grid": figures.bars(
            [method.name.removeprefix("perla-ippo ") for method in ordered],
            {"perla-ippo": [method.area for method in ordered]},
            ylabel="Area under the curve of the sampled return",
        )
    }


# --- The experiments ----------------------------------------------------------------------------

LBF = {"env": MAPS, "algo": FOUR}
QUICK_MAPS = (MAPS[3], MAPS[4], MAPS[6])
SMOKE_MAPS = (MAPS[1], MAPS[3])

EXPERIMENTS: dict[str, Experiment] = {
    "lbf": Experiment(
        figure="Fig. 2, 9, 10",
        claim="On foraging PERLA-IPPO and PERLA-MAPPO learn faster and end better than IPPO and "
        "MAPPO.",
        rule="Each PERLA method is ahead of its base, in the area under the curve or the final "
        "return, and behind in neither (95% intervals apart, over all maps together). In part: "
        "one is, and the other is not behind.",
        suites=suites(
            "lbf", **LBF, steps=150_000, quick={"env": QUICK_MAPS}, smoke={"env": SMOKE_MAPS}
        ),
        judge=judge_pairs(PAIRS),
        draw=draw_curves,
    ),
    "failures": Experiment(
        figure="Fig. 4",
        claim="PERLA-IPPO has none of the failures (final return below 0.1) that IPPO has, and "
        "fewer than MAPPO.",
        rule="IPPO fails on some map, PERLA-IPPO on none. In part: on fewer than IPPO and on no "
        "more than MAPPO. Not tested: IPPO fails nowhere.",
        suites=suites(
            "failures", **LBF, steps=150_000, quick={"env": QUICK_MAPS}, smoke={"env": SMOKE_MAPS}
        ),
        judge=judge_failures,
        draw=draw_failures,
    ),
    "full-observability": Experiment(
        figure="Fig. 5",
        claim="Where every agent sees the whole state, PERLA-IPPO still ends more than 15% above "
        "IPPO.",
        rule="PERLA-IPPO is ahead of IPPO (as in lbf) and its final return is more than 15% "
        "higher. In part: ahead by less. These maps have full sight: what an agent sees is the "
        "state.",
        suites=suites(
            "full-observability",
            env=MAPS,
            algo=("ippo", "mappo", "perla-ippo"),
            steps=150_000,
            quick={"env": QUICK_MAPS},
            smoke={"env": SMOKE_MAPS},
        ),
        judge=judge_full_observability,
        draw=draw_curves,
    ),
    "scaling": Experiment(
        figure="Fig. 6",
        claim="PERLA-IPPO's gain over IPPO and MAPPO grows with the number of agents, to more than "
        "1000% with 8.",
        rule="The gain in final return never falls as N grows and its interval at the largest N is "
        "above 0, over both, and there it is more than 1000%. In part: it grows over one of them.",
        suites=suites(
            "scaling",
            env=tuple(f"lbf:Foraging-10x10-{n}p-1f-coop-v2" for n in range(2, 9)),
            algo=("ippo", "mappo", "perla-ippo"),
            steps=60_000,
            quick={
                "env": tuple(f"lbf:Foraging-10x10-{n}p-1f-coop-v2" for n in (2, 3, 5, 8)),
                "seeds": 3,
            },
            smoke={"env": tuple(f"lbf:Foraging-5x5-{n}p-1f-coop-v2" for n in (2, 3))},
        ),
        judge=judge_scaling,
        draw=draw_scaling,
    ),
    "variance": Experiment(
        figure="Fig. 7",
        claim="The cumulative TD error of PERLA-IPPO and PERLA-MAPPO is below that of IPPO and "
        "MAPPO.",
        rule="Each PERLA method's cumulative TD error is below its base's, 95% intervals over 5 "
        "seeds apart. In part: one is, and the other is not above.",
        suites=suites(
            "variance",
            env="lbf:Foraging-20x20-10p-3f-v2",
            algo=FOUR,
            seeds=5,
            steps=20_000,
            smoke={"env": "lbf:Foraging-8x8-3p-1f-v2"},
        ),
        judge=judge_variance,
        draw=draw_variance,
    ),
    "samples": Experiment(
        figure="Fig. 8",
        claim="More samples learn better: K = 100 has a larger area under the curve than K = 5; "
        "K = 250 has no larger one than K = 100.",
        rule="The interval of K = 100 lies above that of K = 5, and that of K = 250 not above "
        "that of K = 100. In part: only the first.",
        suites=suites(
            "samples",
            env=tuple(
                f"lbf:Foraging-{name}-v2"
                for name in ("5x5-2p-1f-coop", "10x10-5p-3f", "10x10-3p-5f")
            ),
            algo="perla-ippo",
            settings={"estimator": "sampled", "k": (5, 10, 50, 100, 250)},
            steps=30_000,
            quick={"seeds": 3},
            smoke={
                "env": "lbf:Foraging-5x5-2p-1f-coop-v2",
                "settings": {"estimator": "sampled", "k": (2, 5, 7)},
            },
        ),
        judge=judge_samples,
        draw=draw_samples,
    ),
    "grid": Experiment(
        figure="Tables 3 and 4",
        claim="Of the grid of Table 3, the settings of Table 4 are best.",
        rule="Table 4's combination has the largest area under the curve. In part: its 95% "
        "interval reaches the best one's.",
        suites=suites(
            "grid",
            env=("lbf:Foraging-8x8-2p-2f-coop-v2", "lbf:Foraging-10x10-3p-5f-v2"),
            algo="perla-ippo",
            settings=TABLE_3,
            steps=60_000,
            quick={
                "env": "lbf:Foraging-5x5-2p-1f-coop-v2",
                "settings": {"estimator": "sampled"}
                | {name: TABLE_3[name] for name in ("actor", "normalise_rewards", "k")},
                "seeds": 3,
            },
            smoke={
                "env": "lbf:Foraging-5x5-2p-1f-coop-v2",
                "settings": {"actor": TABLE_3["actor"], "normalise_rewards": (False, True)},
            },
        ),
        judge=judge_grid,
        draw=draw_grid,
    ),
}
"""What `perla reproduce` knows."""
