"""Figures of runs, readable by colour-blind people and in greyscale.

Each function returns a matplotlib `Figure`. `render` turns it into the bytes of a PNG or an SVG,
the same bytes for the same numbers.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from perla.analysis.compare import METRICS, Comparison, in_words
from perla.analysis.load import Curves
from perla.analysis.stats import Score, interval, iqm
from perla.analysis.style import (
    GREY,
    HATCHES,
    INK,
    MARKS,
    colour,
    dash,
    format_thousands,
    marker,
    style,
)

INTERVALS = "line: IQM, band: 95% bootstrap interval"
STEPS = "Environment steps of each seed"


def render(figure: Figure, format: str = "png") -> bytes:
    """Render a figure as `png`, `svg` or `pdf`: the same bytes for the same figure, without a
    date."""
    metadata: dict[str, Any] = {
        "png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None},
    }[format]  # fmt: skip
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=format, metadata=metadata)
    return buffer.getvalue()


# --- Figures ------------------------------------------------------------------------------------


@style()
def curves(
    steps: npt.ArrayLike, values: Mapping[str, np.ndarray], *, title: str, ylabel: str
) -> Figure:
    """Plot the curves of one run against its environment steps: `values` are `[seed, evaluation]`,
    by their names in the legend.

    The line is the interquartile mean over seeds, the band spans the lowest to the highest seed,
    and thin lines are single seeds.
    """
    figure, [axes] = _panels(1, ylabel)
    seeds = max(len(rows) for rows in values.values())
    for index, (name, rows) in enumerate(values.items()):
        if seeds > 1:
            axes.plot(steps, rows.T, color=colour(index), alpha=0.35, linewidth=0.8)
        _line(axes, steps, Score(iqm(rows), rows.min(axis=0), rows.max(axis=0)), name, index)
    axes.set_title(title)
    _from_zero(axes, STEPS)
    _legend(figure, f"line: IQM of {seeds} seeds, band: their range" if seeds > 1 else "")
    return figure


@style()
def comparison(compared: Comparison) -> Figure:
    """Plot a comparison's learning curves against environment steps, wall-clock time and FLOPs.

    A panel is left out unless its numbers are known for every method.
    """
    curves = [method.curve for method in compared.methods]
    axes_by_label: dict[str, list[Any]] = {
        STEPS: [curve.steps for curve in curves],
        "Wall-clock minutes of all seeds": [
            None if np.isnan(curve.seconds).any() else curve.seconds / 60 for curve in curves
        ],
        "Matrix FLOPs of each seed": [curve.flops for curve in curves],
    }
    known = {
        label: values
        for label, values in axes_by_label.items()
        if all(value is not None for value in values)
    }
    figure, panels = _panels(
        len(known), _axis_name(compared.metric, compared.metric_name), share=True
    )
    for axes, (label, values) in zip(panels, known.items(), strict=True):
        for index, (method, x) in enumerate(zip(compared.methods, values, strict=True)):
            _line(axes, x, method.curve.value, method.name, index)
        _from_zero(axes, label)
    tasks = compared.tasks
    panels[0].set_title(tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks")
    seeds = sorted({method.seeds for method in compared.methods})
    _legend(figure, f"{INTERVALS}, seeds: {' or '.join(map(str, seeds))}")
    return figure


@style()
def learning_curves(
    panels: Mapping[str, Sequence[Curves]], *, metric: str = "return", label: str | None = None
) -> Figure:
    """Plot learning curves in small multiples: one panel for each title, one line for each run.

    All panels share the vertical scale and the legend, and a method has the same colour and dash in
    each. `label` is the name of the vertical axis; by default it is made from the metric's.
    """
    figure, axes_of = _panels(len(panels), label or _axis_name(metric), share=True)
    methods = list(dict.fromkeys(run.method for runs in panels.values() for run in runs))
    for axes, (title, runs) in zip(axes_of, panels.items(), strict=True):
        for run in runs:
            values = run.metrics[metric]
            score = Score(iqm(values), *interval(values))
            _line(axes, run.steps, score, run.method, methods.index(run.method))
        axes.set_title(title)
        _from_zero(axes, STEPS)
        format_thousands(axes.yaxis)
    seeds = sorted({len(run.seeds) for runs in panels.values() for run in runs})
    _legend(figure, f"{INTERVALS}, seeds: {' or '.join(map(str, seeds))}")
    return figure


@style()
def bars(
    labels: Sequence[str],
    values: Mapping[str, Sequence[Score | float | int]],
    *,
    ylabel: str,
    none: str = "all are 0",
) -> Figure:
    """Plot a group of bars for each label, with one bar for each method; whiskers are intervals.

    Plain numbers are counts: they have no whiskers, and the axis has integer ticks only. If all are
    0, the figure says `none` in words.
    """
    figure, [axes] = _panels(1, ylabel, width=max(6.4, 0.35 * len(labels) * len(values)))
    wide = 0.8 / len(values)
    for index, (method, scores) in enumerate(values.items()):
        centres = np.arange(len(labels)) + (index - (len(values) - 1) / 2) * wide
        score = _stack(scores)
        axes.bar(
            centres,
            score.point,
            width=0.92 * wide,
            color=colour(index),
            hatch=HATCHES[index % len(HATCHES)],
            linewidth=0,
            label=method,
        )
        known = score.low < score.high
        axes.errorbar(
            centres[known],
            score.point[known],
            yerr=_whiskers(score)[:, known],
            fmt="none",
            ecolor=INK,
            elinewidth=1.2,
            capsize=3,
        )
    axes.set_xticks(range(len(labels)), [textwrap.fill(label, 18) for label in labels])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=not _any_interval(values)))
    format_thousands(axes.yaxis)
    if not any(np.any(_stack(scores)) for scores in values.values()):
        axes.set_yticks([])
        words = axes.transAxes
        axes.text(0.5, 0.5, none, transform=words, ha="center", va="center", color=GREY)
    _legend(figure, "whisker: 95% bootstrap interval" if _any_interval(values) else "")
    return figure


@style()
def ranking(values: Mapping[str, Score], *, xlabel: str, most: int = 20) -> Figure:
    """Plot the `most` highest of `values` in order, with names and intervals, the best on top."""
    best = sorted(values, key=lambda name: -values[name].point)[:most]
    score = _stack([values[name] for name in best])
    figure, [axes] = _panels(1, "", width=8.0, height=1.4 + 0.28 * len(best))
    rows = np.arange(len(best))
    axes.errorbar(
        score.point,
        rows,
        xerr=_whiskers(score),
        fmt="o",
        markersize=5,
        color=colour(0),
        elinewidth=1.2,
        capsize=3,
    )
    axes.set_yticks(rows, best)
    axes.invert_yaxis()
    axes.margins(y=0.6 / len(best))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    hidden = len(values) - len(best)
    note = f", {hidden} lower ones left out" if hidden else ""
    _legend(figure, f"whisker: 95% bootstrap interval{note}")
    return figure


@style()
def against(
    x: npt.ArrayLike,
    values: Mapping[str, Sequence[Score | float | int]],
    *,
    xlabel: str,
    ylabel: str,
    log: bool = True,
    log_y: bool = False,
) -> Figure:
    """Plot a quantity against a number (K, agents): one line for each method, with whiskers.

    Each entry of `x` is a tick. `log` and `log_y` make the horizontal and the vertical axis
    logarithmic.
    """
    x = np.asarray(x, dtype=float)
    figure, [axes] = _panels(1, ylabel)
    for index, (method, scores) in enumerate(values.items()):
        score = _stack(scores)
        drawn = axes.errorbar(
            x,
            score.point,
            yerr=_whiskers(score),
            fmt="o",
            linestyle=dash(index),
            markersize=5,
            color=colour(index),
            elinewidth=1.2,
            capsize=3,
            label=method,
        )
        # Shifted by four points each, so that no whisker hides another.
        inches = 4.0 / 72.0 * (index - (len(values) - 1) / 2)
        aside = ScaledTranslation(inches, 0.0, figure.dpi_scale_trans)
        for artist in drawn.get_children():
            artist.set_transform(axes.transData + aside)
    if log:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(np.unique(x).tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(xlabel)
    if log_y:
        axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        format_thousands(axis)
    _legend(figure, "whisker: 95% interval" if _any_interval(values) else "")
    return figure


@style()
def heat(
    rows: Sequence[str],
    panels: Mapping[str, tuple[Sequence[str], Sequence[Sequence[float]]]],
    *,
    label: str,
) -> Figure:
    """Plot tables side by side, as colours and as numbers, on one colour scale named `label`.

    A panel is (column names, table `[row, column]`), by its title.
    """
    widest = max(len(columns) for columns, _ in panels.values())
    size = {"width": max(6.4, 2.4 + 0.62 * widest * len(panels)), "height": 1.8 + 0.28 * len(rows)}
    figure, axes_of = _panels(len(panels), "", share=True, **size)
    values = np.concatenate([np.ravel(table) for _, table in panels.values()])
    low, high = float(values.min()), max(float(values.max()), float(values.min()) + 1.0)
    for axes, (title, (columns, table)) in zip(axes_of, panels.items(), strict=True):
        drawn = axes.imshow(table, cmap="cividis", vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(np.array(table)):
            dark = value < (low + high) / 2
            text = f"{value + 0.0:.1f}".removesuffix(".0")
            axes.text(
                column, row, text, ha="center", va="center", size=8,
                color="white" if dark else INK,
            )  # fmt: skip
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set_title(title)
    figure.colorbar(drawn, ax=axes_of, location="bottom", label=label, shrink=0.5, aspect=40)
    return figure


@style()
def agreement(
    x: npt.ArrayLike, y: Sequence[Score], *, xlabel: str, ylabel: str, label: str
) -> Figure:
    """Plot points that should lie on the diagonal, with whiskers."""
    x, score = np.asarray(x, dtype=float), _stack(y)
    figure, [axes] = _panels(1, ylabel)
    axes.axline((float(x.mean()), float(x.mean())), slope=1.0, color=GREY, linewidth=0.8)
    axes.errorbar(
        x,
        score.point,
        yerr=_whiskers(score),
        fmt="o",
        markersize=4,
        color=colour(0),
        elinewidth=1.0,
        capsize=2,
        label=label,
    )
    axes.set_xlabel(xlabel)
    _legend(figure, "whisker: 95% interval, line: equal")
    return figure


@style()
def profiles(taus: npt.ArrayLike, values: Mapping[str, Score], *, xlabel: str) -> Figure:
    """Plot performance profiles: the fraction of runs above each τ, one line for each method.

    `values` are arrays `[tau]` from `stats.performance_profile`; higher is better at every τ.
    """
    figure, [axes] = _panels(1, "Fraction of runs above τ")
    for index, (method, score) in enumerate(values.items()):
        _line(axes, taus, score, method, index)
    axes.set_xlabel(f"{xlabel} τ")
    axes.set_ylim(-0.02, 1.02)
    axes.margins(x=0.0)
    _legend(figure, "band: 95% bootstrap interval")
    return figure


@style()
def compared_profiles(compared: Comparison) -> Figure:
    """Plot the performance profiles of a comparison's scores."""
    name = compared.metric_name.replace("_", " ")
    values = {method.name: method.profile for method in compared.methods}
    return profiles(compared.taus, values, xlabel=f"{compared.score.capitalize()} {name}")


# --- Helpers ------------------------------------------------------------------------------------


def _panels(
    count: int,
    ylabel: str,
    *,
    share: bool = False,
    width: float | None = None,
    height: float | None = None,
) -> tuple[Figure, list[Axes]]:
    """Create a figure with `count` axes, three in a row (two if there are four).

    With `share` they have the same vertical scale.
    """
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    size = (
        width or (6.4 if count == 1 else 4.2 * columns),
        height or (3.8 if rows == 1 else 3.0 * rows),
    )
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=size, dpi=160, layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share)
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    for unused in grid.flat[count:]:
        unused.remove()
    return figure, list(grid.flat[:count])


def _line(axes: Axes, x: npt.ArrayLike, score: Score, label: str, index: int) -> None:
    """Draw an estimate as line number `index`, with its interval as a band."""
    axes.fill_between(x, score.low, score.high, color=colour(index), alpha=0.15, linewidth=0)
    axes.plot(
        x,
        score.point,
        dash(index),
        color=colour(index),
        label=label,
        marker=marker(index),
        markersize=5,
        # About as many markers on every line, not all at the same places.
        markevery=(index % 3, max(3, np.size(x) // MARKS)) if np.size(x) > MARKS else None,
    )


def _from_zero(axes: Axes, label: str) -> None:
    """Set up a horizontal axis that starts at zero."""
    axes.set_xlabel(label)
    axes.margins(x=0.0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    format_thousands(axes.xaxis)


def _legend(figure: Figure, note: str) -> None:
    """Put one legend for all axes below them, with `note` as its title."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    # In inches: the line of an entry with its margins, then its letters.
    room = int((figure.get_figwidth() - 0.65) / 0.085)
    longest = min(max(map(len, entries), default=0), room)
    columns = max(1, int(figure.get_figwidth() / (0.65 + 0.085 * longest)))
    figure.legend(
        entries.values(),
        [textwrap.fill(entry, room) for entry in entries],
        loc="outside lower center",
        ncols=max(1, min(columns, len(entries))),
        handlelength=2.25,
        title=note,
        title_fontproperties={"size": 8},
    ).get_title().set_color(GREY)


def _stack(scores: Sequence[Score | float | int]) -> Score:
    """Stack estimates into one estimate of arrays; a plain number is its own interval."""
    table = [score if isinstance(score, Score) else Score(score, score, score) for score in scores]
    return Score(*np.array(table, dtype=float).reshape(-1, 3).T)


def _whiskers(score: Score) -> np.ndarray:
    """Return the lengths of the interval below and above the estimate: `[2, estimate]`."""
    # A bootstrap interval need not contain its estimate.
    return np.maximum([score.point - score.low, score.high - score.point], 0.0)


def _any_interval(values: Mapping[str, Sequence[Score | float | int]]) -> bool:
    return any(isinstance(score, Score) for scores in values.values() for score in scores)


def _axis_name(metric: str, name: str | None = None) -> str:
    words = (name or in_words(metric)).replace("_", " ")
    return f"{words}{' per episode' * (metric in METRICS)}".capitalize()
