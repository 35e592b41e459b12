"""Statistics over seeds and tasks, with bootstrap intervals.

Scores are arrays `[seed, task]`, or `[seed, task, evaluation]` for curves; higher is better. A
statistic reduces the two leading axes. The aggregates are those of Agarwal et al., *Deep
Reinforcement Learning at the Edge of the Statistical Precipice* (2021), and agree with its library,
rliable. NaN scores make a statistic NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LEVEL, RESAMPLES = 0.95, 2000
"""Confidence level of an interval, and number of bootstrap resamples."""


class Score(NamedTuple):
    """An estimate with its percentile-bootstrap interval: numbers, or arrays of equal shape."""

    point: Any
    low: Any
    high: Any

    def __format__(self, spec: str) -> str:
        point, low, high = (format(number, spec or "z.3f") for number in self)
        return f"{point} [{low}, {high}]"


def ahead(x: Score, y: Score) -> int:
    """Return 1 if x's interval lies above y's, −1 if it lies below, 0 if they overlap."""
    return int(x.low > y.high) - int(y.low > x.high)


# --- The stratified bootstrap -------------------------------------------------------------------


def indices(
    *shapes: tuple[int, ...], resamples: int = RESAMPLES, seed: int = 0
) -> list[np.ndarray]:
    """Draw the seeds of each resample: `[seed, task, resample]` for each shape (seeds, tasks).

    Seeds are drawn with replacement, independently for each task (stratum) and each shape. Only
    `seed` determines them.
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
    """Return `statistic(*scores)` with its stratified percentile-bootstrap interval.

    Arrays are `[seed, task, …]`, and `statistic` reduces seed and task. The interval estimates the
    variation of the statistic over other seeds; it is imprecise if there are few of them.
    """
    arrays = [np.asarray(array, dtype=float) for array in scores]
    shapes = [array.shape[:2] for array in arrays]
    drawn = indices(*shapes, resamples=resamples, seed=seed)
    # [seed, task, resample, …]: the statistic treats resamples as one more axis of data.
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
    """Return the bootstrap interval (low, high) of the interquartile mean over seeds.

    `values [seed, …]` belong to one task: this is `bootstrap` with a single stratum.
    """
    one_task = np.asarray(values, dtype=float)[:, None]
    estimate = bootstrap(interquartile_mean, one_task, level=level, resamples=resamples, seed=seed)
    return estimate.low, estimate.high


def proportion(successes: int, trials: int, *, level: float = LEVEL) -> Score:
    """Return the share of successes with Wilson's interval (1927), which is never outside [0, 1]
    nor empty at 0 or 1."""
    # (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n)
    share, z = successes / trials, NormalDist().inv_cdf(0.5 + level / 2.0)
    middle, scale = share + z**2 / (2 * trials), 1 + z**2 / trials
    half = z * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    return Score(share, max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0))


# --- Statistics ---------------------------------------------------------------------------------


def iqm(values: npt.ArrayLike, axis: int | tuple[int, ...] = 0) -> Any:
    """Return the interquartile mean along `axis`: the mean without the ⌊n/4⌋ lowest and highest.

    Values of several axes are pooled. The mean of fewer than four values leaves none out. Agrees
    with rliable and with `scipy.stats.trim_mean(values, 0.25, axis)`.
    """
    values = np.asarray(values, dtype=float)
    axes = (axis,) if isinstance(axis, int) else axis
    last = np.moveaxis(values, axes, range(-len(axes), 0))
    ordered = np.sort(last.reshape(*last.shape[: -len(axes)], -1), axis=-1)
    count = ordered.shape[-1]
    cut = count // 4
    middle = ordered[..., cut : count - cut].mean(axis=-1)
    # Sorting puts NaN last, where it would be left out like the highest score.
    middle = np.where(np.isnan(ordered[..., -1]), np.nan, middle)
    return float(middle) if np.ndim(middle) == 0 else middle


def interquartile_mean(scores: npt.ArrayLike) -> Any:
    """Return the interquartile mean over all runs of all tasks: `[seed, task, …] → […]`."""
    return iqm(scores, axis=(0, 1))


def mean(scores: npt.ArrayLike) -> Any:
    """Return the mean over tasks of the means over seeds: `[seed, task, …] → […]`."""
    return np.asarray(scores, dtype=float).mean(axis=(0, 1))


def median(scores: npt.ArrayLike) -> Any:
    """Return the median over tasks of the means over seeds: `[seed, task, …] → […]`."""
    return np.median(np.asarray(scores, dtype=float).mean(axis=0), axis=0)


def optimality_gap(scores: npt.ArrayLike, gamma: float = 1.0) -> Any:
    """Return the mean shortfall of runs below the target γ: `[seed, task, …] → […]`.

    Runs above γ count as γ. Lower is better.
    """
    # γ − E[min(x, γ)]
    return gamma - np.mean(np.minimum(scores, gamma), axis=(0, 1))


def improvement(x: npt.ArrayLike, y: npt.ArrayLike) -> Any:
    """Return the probability that a run of x beats a run of y on the same task, over all tasks.

    `[seed, task, …] → […]`. Raises `ValueError` if x and y differ in other axes than seeds.
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
    """Return `improvement` of x over y, both `[seed, task]`, with its interval; ½ for equals."""
    return bootstrap(improvement, x, y, level=level, resamples=resamples, seed=seed)


def performance_profile(
    scores: npt.ArrayLike,
    taus: npt.ArrayLike,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Score:
    """Return the fraction of runs with a score above each τ, with intervals: `[tau]`.

    `scores` are `[seed, task]`, and all runs have equal weight (the run-score distribution).
    """
    taus = np.asarray(taus, dtype=float)

    def above(scores: np.ndarray) -> np.ndarray:
        # F̂(τ) = 1/(MN) Σₘ Σₙ 1[xₙₘ > τ]
        return np.stack([(scores > tau).mean(axis=(0, 1)) for tau in taus], axis=-1)

    return bootstrap(above, scores, level=level, resamples=resamples, seed=seed)


# --- Curves -------------------------------------------------------------------------------------


def area_under_curve(steps: npt.ArrayLike, values: npt.ArrayLike) -> np.ndarray:
    """Return the mean of each seed's curve over steps: `[seed, evaluation] → [seed]`.

    `steps [evaluation]` ascend, and curves are linear between evaluations. The result has the unit
    of `values`.
    """
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if len(steps) == 1:  # A curve of one evaluation.
        return values[..., 0]
    # Σₖ (tₖ₊₁ − tₖ) (vₖ + vₖ₊₁) / 2 / (t_last − t_first)
    return np.trapezoid(values, steps, axis=-1) / (steps[-1] - steps[0])


def steps_to(steps: npt.ArrayLike, values: npt.ArrayLike, threshold: float) -> np.ndarray:
    """Return the first of `steps [evaluation]` at which each seed's value reaches `threshold`.

    `[seed, evaluation] → [seed]`, NaN for a seed that never reaches it.
    """
    reached = np.asarray(values, dtype=float) >= threshold
    first = np.asarray(steps, dtype=float)[reached.argmax(axis=-1)]
    return np.where(reached.any(axis=-1), first, np.nan)


def failures(final: npt.ArrayLike, bound: float = 0.1) -> int:
    """Count the runs with a final score (array of any shape) below `bound`.

    The default is the paper's: a final return or win rate below 0.1. A NaN score is a failure.
    """
    return int(np.count_nonzero(~(np.asarray(final, dtype=float) >= bound)))
