"""Numbers that summarise several seeds and tasks, and how far they can be trusted.

Scores are arrays `[seed, task]`, of curves `[seed, task, evaluation]`; more is better. A statistic
takes such arrays and reduces their two leading axes. The aggregates are those of Agarwal et al.,
*Deep Reinforcement Learning at the Edge of the Statistical Precipice* (2021), and agree with its
library, rliable. What is not a number makes every statistic that sees it not a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LEVEL, RESAMPLES = 0.95, 2000
"""The share of resamples inside an interval, and their number."""


class Score(NamedTuple):
    """An estimate with its percentile-bootstrap interval: numbers, or arrays of one shape."""

    point: Any
    low: Any
    high: Any

    def __format__(self, spec: str) -> str:
        point, low, high = (format(number, spec or ".3f") for number in self)
        return f"{point} [{low}, {high}]"


def ahead(x: Score, y: Score) -> int:
    """1 where x's interval lies above y's, −1 where it lies below, 0 where they touch."""
    return int(x.low > y.high) - int(y.low > x.high)


# --- The stratified bootstrap -------------------------------------------------------------------


def indices(
    *shapes: tuple[int, ...], resamples: int = RESAMPLES, seed: int = 0
) -> list[np.ndarray]:
    """The seeds that every resample takes: `[seed, task, resample]` for each shape (seeds, tasks).

    They are drawn with replacement, independently within every task (the strata) and for every
    shape, from `seed` alone.
    """
    generator = np.random.default_rng(seed)
    return [generator.integers(shape[0], size=(*shape, resamples)) for shape in shapes]


def bootstrap(
    statistic: Callable[..., Any],
    *scores: npt.ArrayLike,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Score:
    """`statistic(*scores)` and its stratified percentile-bootstrap interval.

    Every array is `[seed, task, …]`; `statistic` reduces seed and task. The interval says how far
    the estimate would have moved had other seeds been drawn; from few seeds it is itself rough.
    """
    arrays = [np.asarray(array, dtype=float) for array in scores]
    shapes = [array.shape[:2] for array in arrays]
    drawn = indices(*shapes, resamples=resamples, seed=seed)
    # [seed, task, resample, …]: to the statistic, resamples are one more axis of data.
    resampled = [
        array[index, np.arange(array.shape[1])[:, None]]
        for array, index in zip(arrays, drawn, strict=True)
    ]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(statistic(*resampled), [tail, 1.0 - tail], axis=0)
    return Score(statistic(*arrays), low, high)


def interval(
    values: npt.ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Any, Any]:
    """The percentile-bootstrap interval of the interquartile mean over the leading axis (seeds).

    `values [seed, …]` are of one task: this is `bootstrap` with a single stratum.
    """
    one_task = np.asarray(values, dtype=float)[:, None]
    estimate = bootstrap(interquartile_mean, one_task, level=level, resamples=resamples, seed=seed)
    return estimate.low, estimate.high


# --- Statistics ---------------------------------------------------------------------------------


def iqm(values: npt.ArrayLike, axis: int | tuple[int, ...] = 0) -> Any:
    """The interquartile mean along `axis`: the mean after cutting ⌊n/4⌋ values from either end.

    Over several axes, their values are cut together. Fewer than four values are averaged plainly.
    Agrees with rliable, and with `scipy.stats.trim_mean(values, 0.25, axis)`.
    """
    values = np.asarray(values, dtype=float)
    axes = (axis,) if isinstance(axis, int) else axis
    last = np.moveaxis(values, axes, range(-len(axes), 0))
    ordered = np.sort(last.reshape(*last.shape[: -len(axes)], -1), axis=-1)
    count = ordered.shape[-1]
    cut = count // 4
    middle = ordered[..., cut : count - cut].mean(axis=-1)
    # Sorting puts NaN last, where it would be cut like the highest score.
    middle = np.where(np.isnan(ordered[..., -1]), np.nan, middle)
    return float(middle) if np.ndim(middle) == 0 else middle


def interquartile_mean(scores: npt.ArrayLike) -> Any:
    """The interquartile mean over all runs, seeds and tasks together: `[seed, task, …] → […]`."""
    return iqm(scores, axis=(0, 1))


def mean(scores: npt.ArrayLike) -> Any:
    """The mean over tasks of the means over seeds: `[seed, task, …] → […]`."""
    return np.asarray(scores, dtype=float).mean(axis=(0, 1))


def median(scores: npt.ArrayLike) -> Any:
    """The median over tasks of the means over seeds: `[seed, task, …] → […]`."""
    return np.median(np.asarray(scores, dtype=float).mean(axis=0), axis=0)


def optimality_gap(scores: npt.ArrayLike, gamma: float = 1.0) -> Any:
    """By how much runs miss `gamma` on average, better ones counting as γ: `[seed, task, …] → […]`.

    Less is better.
    """
    # γ − E[min(x, γ)]
    return gamma - np.mean(np.minimum(scores, gamma), axis=(0, 1))


def improvement(x: npt.ArrayLike, y: npt.ArrayLike) -> Any:
    """How probably a run of x beats a run of y on the same task, averaged over tasks.

    `[seed, task, …]`, where x and y may differ in seeds only (`ValueError` otherwise), `→ […]`.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x {x.shape} and y {y.shape} [seed, task, …] differ in more than seeds")
    # P(X > Y) + ½ P(X = Y), over all pairs of seeds: the Mann–Whitney U statistic over n_x n_y
    wins = (1.0 + np.sign(x[:, None] - y[None, :])) / 2.0
    return wins.mean(axis=(0, 1, 2))


def probability_of_improvement(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Score:
    """`improvement` of x over y, both `[seed, task]`, with its interval: ½ where they are equal."""
    return bootstrap(improvement, x, y, level=level, resamples=resamples, seed=seed)


def performance_profile(
    scores: npt.ArrayLike,
    taus: npt.ArrayLike,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Score:
    """The fraction of runs whose score is above each τ, with intervals: `[tau]`.

    `scores` are `[seed, task]`, every run counting alike (the run-score distribution).
    """
    taus = np.asarray(taus, dtype=float)

    def above(scores: np.ndarray) -> np.ndarray:
        # F̂(τ) = 1/(MN) Σₘ Σₙ 1[xₙₘ > τ]
        return np.stack([(scores > tau).mean(axis=(0, 1)) for tau in taus], axis=-1)

    return bootstrap(above, scores, level=level, resamples=resamples, seed=seed)


# --- Curves -------------------------------------------------------------------------------------


def area_under_curve(steps: npt.ArrayLike, values: npt.ArrayLike) -> np.ndarray:
    """The height of each seed's curve averaged over steps: `[seed, evaluation] → [seed]`.

    `steps [evaluation]` ascend; between evaluations curves are straight. In the unit of `values`.
    """
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if len(steps) == 1:  # Of a curve of no length, its one value is the height.
        return values[..., 0]
    # Σₖ (tₖ₊₁ − tₖ) (vₖ + vₖ₊₁) / 2 / (t_last − t_first)
    return np.trapezoid(values, steps, axis=-1) / (steps[-1] - steps[0])


def steps_to(steps: npt.ArrayLike, values: npt.ArrayLike, threshold: float) -> np.ndarray:
    """The first of `steps [evaluation]` at which each seed's value is at least `threshold`.

    `[seed, evaluation] → [seed]`, NaN for a seed that never is.
    """
    reached = np.asarray(values, dtype=float) >= threshold
    first = np.asarray(steps, dtype=float)[reached.argmax(axis=-1)]
    return np.where(reached.any(axis=-1), first, np.nan)


def failures(final: npt.ArrayLike, bound: float = 0.1) -> int:
    """How many runs failed: final scores, of any shape, that are not at least `bound`.

    The default is the paper's: a final return or win rate below 0.1. A score that is not a number
    is a failure.
    """
    return int(np.count_nonzero(~(np.asarray(final, dtype=float) >= bound)))
