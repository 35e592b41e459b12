"""Figures of runs, in one house style, safe for colour-blind eyes and for grey paper.

Each function returns a matplotlib `Figure`, which `render` turns into the bytes of a PNG or an SVG:
the same bytes for the same numbers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from perla.analysis.compare import METRICS, Comparison
from perla.analysis.load import Curves, load_all
from perla.analysis.stats import Score, interval, iqm

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: told apart by every kind of colour vision."""
DASHES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "...", "xxx")
INK, GREY = "#222222", "#8a8a8a"
INTERVALS = "line: IQM, band: 95% bootstrap interval"
STEPS = "Environment steps of each seed"


@contextmanager
def style() -> Iterator[None]:
    """The house style of every figure."""
    with rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "text.color": INK,
            "text.parse_math": False,
            "axes.labelcolor": INK,
            "axes.edgecolor": GREY,
            "axes.linewidth": 0.8,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.8,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "xtick.major.size": 3,
            "ytick.major.size": 0,
            "lines.linewidth": 2.0,
            "lines.solid_capstyle": "round",
            "hatch.color": "white",
            "legend.frameon": False,
            "legend.fontsize": 9,
            "svg.hashsalt": "perla",
        }
    ):
        yield


def render(figure: Figure, format: str = "png") -> bytes:
    """The bytes of a `png` or an `svg`, the same for the same figure: nothing tells the time."""
    metadata: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}}[format]
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=format, metadata=metadata)
    return buffer.getvalue()


# --- Figures ------------------------------------------------------------------------------------


@style()
def curves(paths: Sequence[Path], *, metric: str = "return", label: str = "Greedy return") -> bytes:
    """`metric` against environment steps, a line for each run folder, as a PNG.

    The line is the interquartile mean over seeds, the band reaches from the lowest seed to the
    highest, and thin lines are the seeds.
    """
    runs = load_all(paths)
    figure, [axes] = _panels(1, f"{label} per episode")
    for index, run in enumerate(runs):
        values = run.metrics[metric]
        lowest, highest = values.min(axis=0), values.max(axis=0)
        if len(run.seeds) > 1:
            axes.plot(run.steps, values.T, color=_colour(index), alpha=0.35, linewidth=0.8)
        _line(axes, run.steps, Score(iqm(values), lowest, highest), run.method, index)
    axes.set_title(", ".join(sorted({run.env for run in runs})))
    _from_zero(axes, STEPS)
    most = max(len(run.seeds) for run in runs)
    _legend(figure, f"line: IQM of {most} seeds, band: their range" if most > 1 else "")
    return render(figure)


@style()
def comparison(compared: Comparison) -> Figure:
    """Learning curves of a comparison against environment steps, wall-clock time and computation.

    Computation is left out unless every method's is known.
    """
    labels = [STEPS, "Wall-clock minutes of all seeds"]
    if all(method.curve.flops is not None for method in compared.methods):
        labels.append("Matrix FLOPs of each seed")
    figure, panels = _panels(len(labels), _axis_name(compared.metric), share=True)
    for index, method in enumerate(compared.methods):
        curve = method.curve
        for axes, x in zip(panels, (curve.steps, curve.seconds / 60, curve.flops), strict=False):
            if x is not None:
                _line(axes, x, curve.value, method.name, index)
    for axes, label in zip(panels, labels, strict=True):
        _from_zero(axes, label)
    tasks = compared.tasks
    panels[0].set_title(tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks")
    _legend(figure, f"{INTERVALS}, seeds: {compared.budget.seeds}")
    return figure


@style()
def learning_curves(
    panels: Mapping[str, Sequence[Curves]], *, metric: str = "return", label: str | None = None
) -> Figure:
    """Small multiples: for each title a panel with a line for each run, all on one scale.

    A method has the same colour and dash in every panel, and one legend serves all. `label` says
    what the metric is, where its name does not.
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
        _thousands(axes.yaxis)
    seeds = sorted({len(run.seeds) for runs in panels.values() for run in runs})
    _legend(figure, f"{INTERVALS}, seeds: {' or '.join(map(str, seeds))}")
    return figure


@style()
def bars(
    labels: Sequence[str], values: Mapping[str, Sequence[Score | float | int]], *, ylabel: str
) -> Figure:
    """A group of bars for each label, in it one for each method; intervals are whiskers.

    Plain numbers are counts: they have no whiskers, and between them lies nothing.
    """
    figure, [axes] = _panels(1, ylabel, width=max(6.4, 0.35 * len(labels) * len(values)))
    wide = 0.8 / len(values)
    for index, (method, scores) in enumerate(values.items()):
        centres = np.arange(len(labels)) + (index - (len(values) - 1) / 2) * wide
        score = _together(scores)
        axes.bar(
            centres,
            score.point,
            width=0.92 * wide,
            color=_colour(index),
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
    axes.set_xticks(range(len(labels)), labels)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=not _any_interval(values)))
    _thousands(axes.yaxis)
    _legend(figure, "whisker: 95% bootstrap interval" if _any_interval(values) else "")
    return figure


@style()
def ranking(values: Mapping[str, Score], *, xlabel: str, most: int = 20) -> Figure:
    """The best `most` of `values`, the best one on top, each with its name and its interval."""
    best = sorted(values, key=lambda name: -values[name].point)[:most]
    score = _together([values[name] for name in best])
    figure, [axes] = _panels(1, "", width=8.0, height=1.4 + 0.28 * len(best))
    rows = np.arange(len(best))
    axes.errorbar(
        score.point,
        rows,
        xerr=_whiskers(score),
        fmt="o",
        markersize=5,
        color=_colour(0),
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
    """A quantity against a number, such as K or the agents: a line for each method, whiskers.

    Every one of `x` is a tick, on a logarithmic axis or, without `log`, a plain one. `log_y` makes
    the other axis logarithmic.
    """
    x = np.asarray(x, dtype=float)
    figure, [axes] = _panels(1, ylabel)
    for index, (method, scores) in enumerate(values.items()):
        score = _together(scores)
        drawn = axes.errorbar(
            x,
            score.point,
            yerr=_whiskers(score),
            fmt="o",
            linestyle=_dash(index),
            markersize=5,
            color=_colour(index),
            elinewidth=1.2,
            capsize=3,
            label=method,
        )
        # Side by side, four points apart, so that no whisker hides another.
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
        _thousands(axis)
    _legend(figure, "whisker: 95% interval" if _any_interval(values) else "")
    return figure


@style()
def heat(
    rows: Sequence[str],
    panels: Mapping[str, tuple[Sequence[str], Sequence[Sequence[float]]]],
    *,
    label: str,
) -> Figure:
    """Tables side by side, their numbers as colours too: for each title its columns' names and a
    number for each of `rows` and each of them. One scale for all, which `label` names."""
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
    """Points that should lie on the diagonal, with their whiskers."""
    x, score = np.asarray(x, dtype=float), _together(y)
    figure, [axes] = _panels(1, ylabel)
    axes.axline((float(x.mean()), float(x.mean())), slope=1.0, color=GREY, linewidth=0.8)
    axes.errorbar(
        x,
        score.point,
        yerr=_whiskers(score),
        fmt="o",
        markersize=4,
        color=_colour(0),
        elinewidth=1.0,
        capsize=2,
        label=label,
    )
    axes.set_xlabel(xlabel)
    _legend(figure, "whisker: 95% interval, line: equal")
    return figure


@style()
def profiles(taus: npt.ArrayLike, values: Mapping[str, Score], *, xlabel: str) -> Figure:
    """Performance profiles: the fraction of runs above each τ, a line for each method.

    `values` are arrays `[tau]`, from `stats.performance_profile`; higher is better, everywhere.
    """
    figure, [axes] = _panels(1, "Fraction of runs above τ")
    for index, (method, score) in enumerate(values.items()):
        _line(axes, taus, score, method, index)
    axes.set_xlabel(f"{xlabel} τ")
    axes.set_ylim(-0.02, 1.02)
    axes.margins(x=0.0)
    _legend(figure, "band: 95% bootstrap interval")
    return figure


# --- Parts --------------------------------------------------------------------------------------


def _panels(
    count: int,
    ylabel: str,
    *,
    share: bool = False,
    width: float | None = None,
    height: float | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes, three in a row (of four, two); `share`: one vertical scale."""
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
    """An estimate as a line in the colour and dash of `index`, its interval as a band."""
    axes.fill_between(x, score.low, score.high, color=_colour(index), alpha=0.15, linewidth=0)
    # A lone evaluation is a point, which a line does not show.
    marker = "o" if np.size(x) == 1 else ""
    axes.plot(x, score.point, _dash(index), color=_colour(index), label=label, marker=marker)


def _from_zero(axes: Axes, label: str) -> None:
    """A horizontal axis of something that grows from nothing."""
    axes.set_xlabel(label)
    axes.margins(x=0.0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _thousands(axes.xaxis)


def _legend(figure: Figure, note: str) -> None:
    """One legend for all axes, below them, where it hides nothing; `note` says what is drawn."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    longest = max(map(len, found), default=0)
    # In inches: the line of an entry and the room about it, then its letters.
    columns = max(1, int(figure.get_figwidth() / (0.65 + 0.085 * longest)))
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=max(1, min(columns, len(found))),
        handlelength=2.25,
        title=note,
        title_fontproperties={"size": 8},
    ).get_title().set_color(GREY)


def _together(scores: Sequence[Score | float | int]) -> Score:
    """Estimates as one, of arrays; a plain number is its own interval."""
    table = [score if isinstance(score, Score) else Score(score, score, score) for score in scores]
    return Score(*np.array(table, dtype=float).reshape(-1, 3).T)


def _whiskers(score: Score) -> np.ndarray:
    """How far the interval reaches below and above the estimate: `[2, estimate]`."""
    # A bootstrap interval need not hold its estimate.
    return np.maximum([score.point - score.low, score.high - score.point], 0.0)


def _any_interval(values: Mapping[str, Sequence[Score | float | int]]) -> bool:
    return any(isinstance(score, Score) for scores in values.values() for score in scores)


def _axis_name(metric: str) -> str:
    known = f"{METRICS[metric]} per episode" if metric in METRICS else metric.replace("_", " ")
    return known.capitalize()


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _dash(index: int) -> str:
    return DASHES[index % len(DASHES)]


def _thousands(axis: Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))


def thousands(value: float) -> str:
    """`value` with a unit: 250k, 1.5M, 3T."""
    units = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    for size, unit in units:
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
