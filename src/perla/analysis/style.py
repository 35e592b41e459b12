"""House style of all figures: fonts, colours, dashes and number formats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import rc_context
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter

COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8000E0",
    "#602000", "#002080",
)  # fmt: skip
"""Okabe and Ito's palette and three more: distinguishable with every kind of colour vision."""
DARK_COLOURS = (
    "#4DA3E0", "#F0803C", "#2FC79A", "#E59AC6", "#F2B632", "#A5DCFA", "#F2F2F2", "#8040E0",
    "#806040", "#A04080",
)  # fmt: skip
"""The same for a dark background."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "*")
"""Shapes of the markers on lines, by the names of matplotlib."""
MARKS = 8
"""About the number of markers on a line."""
DASHES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "...", "xxx")
INK, GREY = "#222222", "#8a8a8a"


@contextmanager
def style() -> Iterator[None]:
    """Context in which figures have the house style."""
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


def colour(index: int) -> str:
    """Return the colour of the line or bar number `index`."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Return the marker of the line number `index`."""
    return MARKERS[index % len(MARKERS)]


def dash(index: int) -> str:
    """Return the line style of the line number `index`."""
    return DASHES[index % len(DASHES)]


def format_thousands(axis: Axis) -> None:
    """Write the numbers of an axis with units."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))


def thousands(value: float) -> str:
    """Format `value` with a unit: 250k, 1.5M, 3T."""
    units = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    for size, unit in units:
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
