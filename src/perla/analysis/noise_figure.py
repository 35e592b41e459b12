"""The picture of a diagnosis: the error of the advantage by its causes, and the policy gradient's
noise that exact critics remove, against λ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from perla.analysis.stats import Score
from perla.analysis.style import GREY, HATCHES, INK, colour, dash, marker, style


@style()
def noise(
    lambdas: Sequence[float],
    mean_square: Sequence[Score],
    parts: Mapping[str, Sequence[Score]],
    removed: Mapping[str, Sequence[Score]],
    *,
    title: str,
) -> Figure:
    """Plot a stacked bar of the parts for each λ, and a line of each share that is removed.

    `parts` are shares of `mean_square`, which whiskers have the intervals of; a part below zero, as
    an unbiased estimate may be, is left out.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(9.6, 4.8), dpi=160, layout=layout)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    places = np.arange(len(lambdas))
    whole = np.array([score.point for score in mean_square])
    height = np.zeros(len(lambdas))
    for index, (name, scores) in enumerate(parts.items()):
        part = np.maximum([score.point for score in scores], 0.0) * whole
        hatch = HATCHES[index % len(HATCHES)]
        left.bar(
            places, part, bottom=height, color=colour(index), hatch=hatch, linewidth=0, label=name
        )
        height += part
    whiskers = [[max(s.point - s.low, 0) for s in mean_square],
                [max(s.high - s.point, 0) for s in mean_square]]  # fmt: skip
    left.errorbar(places, whole, yerr=whiskers, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    left.set_ylabel("Mean squared error of the advantage")
    left.grid(axis="x", visible=False)
    for index, (name, scores) in enumerate(removed.items()):
        points, low, high = np.array(scores, float).T
        right.fill_between(places, low, high, color=colour(index), alpha=0.15, linewidth=0)
        right.plot(
            places, points, dash(index), marker=marker(index), color=colour(index), label=name
        )
    right.set_ylabel("Noise of the policy gradient removed")
    right.set_ylim(-0.2, 1.2)
    right.axhline(0.0, color=GREY, linewidth=0.8)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (left, right):
        axes.set_xticks(places, [f"{lam:g}" for lam in lambdas])
        axes.set_xlabel("λ")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
    return figure
