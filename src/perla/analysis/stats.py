"""Numbers that summarise several seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def iqm(values: npt.ArrayLike, axis: int = 0) -> Any:
    """The interquartile mean along `axis`: the mean after cutting ⌊n/4⌋ values from either end.

    Fewer than four values are averaged plainly. Agrees with rliable, and with
    `scipy.stats.trim_mean(values, 0.25)`.
    """
    ordered = np.sort(np.asarray(values, dtype=float), axis=axis)
    count = ordered.shape[axis]
    cut = count // 4
    middle = np.take(ordered, range(cut, count - cut), axis=axis).mean(axis=axis)
    return float(middle) if np.ndim(middle) == 0 else middle


def interval(
    values: npt.ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[Any, Any]:
    """The percentile-bootstrap interval of the interquartile mean over the leading axis (seeds).

    Few seeds make a wide and rough interval; it says how far the estimate would move had other
    seeds been drawn. Draws from `seed` alone.
    """
    values = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    estimates = iqm(values[draws], axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(estimates, [tail, 1.0 - tail], axis=0)
    return low, high
