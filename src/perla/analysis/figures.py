"""Figures of runs, in one house style, safe for colour-blind eyes and for grey paper."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from perla.analysis.load import Curves, load_all
from perla.analysis.stats import iqm

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: told apart by every kind of colour vision."""
DASHES = ("-", "--", "-.", ":")
INK, GREY = "#222222", "#8a8a8a"


@contextmanager
def style() -> Iterator[None]:
    """The house style of every figure."""
    with rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "text.color": INK,
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
            "legend.frameon": False,
            "legend.fontsize": 9,
        }
    ):
        yield


def curves(paths: Sequence[Path], *, metric: str = "return", label: str = "Greedy return") -> bytes:
    """`metric` against environment steps, a line for each run folder, as a PNG.

    The line is the interquartile mean over seeds, the band reaches from the lowest seed to the
    highest, and thin lines are the seeds.
    """
    runs = load_all(paths)
    with style():
        figure = Figure(figsize=(6.4, 3.8), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for index, run in enumerate(runs):
            draw(axes, run, metric, COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)])
        envs = sorted({run.env for run in runs})
        # The legend stands between title and axes, where it hides nothing.
        rows = -(-len(runs) // 3)
        axes.set_title(", ".join(envs), pad=10 + 16 * rows)
        most = max(len(run.seeds) for run in runs)
        if most > 1:
            note = f"line: IQM of {most} seeds, band: their range"
            axes.annotate(
                note,
                xy=(1.0, 1.0),
                xytext=(0, 6),
                xycoords="axes fraction",
                textcoords="offset points",
                horizontalalignment="right",
                fontsize=8,
                color=GREY,
            )
        axes.set_xlabel("Environment steps of each seed")
        axes.set_ylabel(f"{label} per episode")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.margins(x=0.0)
        axes.set_xlim(left=0)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=3,
            borderaxespad=0.3,
            borderpad=0.0,
            handlelength=1.8,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw(axes: Axes, run: Curves, metric: str, colour: str, dash: str) -> None:
    """One run's line, band and seeds."""
    values = run.metrics[metric]
    count = len(run.seeds)
    if count > 1:
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        axes.fill_between(run.steps, low, high, color=colour, alpha=0.15, linewidth=0)
        for row in values:
            axes.plot(run.steps, row, color=colour, alpha=0.35, linewidth=0.8)
    # A lone evaluation is a point, which a line does not show.
    marker = "o" if len(run.steps) == 1 else ""
    axes.plot(run.steps, iqm(values), dash, color=colour, label=run.algo, marker=marker)


def thousands(value: float) -> str:
    """`value` with a unit: 250k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
