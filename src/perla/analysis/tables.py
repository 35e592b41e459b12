"""Tables of a comparison: for the terminal, CSV, Markdown, LaTeX, and the layout of marl-eval."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perla.analysis.compare import Comparison, Method
from perla.analysis.fair import by_task
from perla.analysis.load import Curves
from perla.analysis.stats import Score

CHANCES = "probability that the row's method is better than the column's"
"""The title of the table of probabilities of improvement."""
DASH = "–"
"""The cell of a number that does not exist."""


def rows(comparison: Comparison) -> list[dict[str, str]]:
    """Return a table of the comparison: column → cell, for each method."""
    baseline = comparison.methods[0].name
    metric = comparison.metric_name
    target = f"{comparison.threshold:.3g}"
    table = []
    for method in comparison.methods:
        count = method.runs.size
        cells = {"method": method.name, "seeds": str(method.seeds)}
        if comparison.score == "absolute":
            cells[f"absolute {metric}"] = f"{method.absolute}"
        final = "final" if comparison.score == "absolute" else f"final {metric}"
        cells |= {
            final: f"{method.final}",
            "best": f"{method.best}",
            "area under curve": f"{method.area}",
            f"steps to {target}": (
                f"{DASH if math.isnan(method.steps_to) else f'{method.steps_to:,.0f}'}"
                f" ({method.reached} of {count})"
            ),
            "steps/s": (
                DASH if math.isnan(method.steps_per_second) else f"{method.steps_per_second:,.0f}"
            ),
            f"optimality gap to {target}": f"{method.optimality_gap}",
            "failures": f"{method.failures} of {count}",
        }
        if len(comparison.methods) > 1:
            cells[f"P(better than {baseline})"] = _chance(comparison, method, baseline)
        table.append(cells)
    return table


def chances(comparison: Comparison) -> list[dict[str, str]]:
    """Return a table of the probabilities of improvement: of the row's method over the column's."""
    names = [method.name for method in comparison.methods]
    return [
        {"method": method.name} | {name: _chance(comparison, method, name) for name in names}
        for method in comparison.methods
    ]


def _chance(comparison: Comparison, method: Method, other: str) -> str:
    chance = comparison.improvement[method.name].get(other)
    return DASH if chance is None else f"{chance}"


# --- Files --------------------------------------------------------------------------------------


def as_csv(comparison: Comparison) -> str:
    """Return the table as CSV: every number in full, with the bounds of intervals in columns of
    their own; a number that does not exist is empty."""
    table = [_numbers(comparison, method) for method in comparison.methods]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _numbers(comparison: Comparison, method: Method) -> dict[str, str]:
    facts: dict[str, Any] = {"method": method.name, "seeds": method.seeds}
    names = ("absolute", "final", "best", "area", "optimality_gap")
    scores: dict[str, Score | None] = {
        name: getattr(method, name)
        for name in names
        if name != "absolute" or comparison.score == "absolute"
    }
    for other in comparison.methods:
        scores[f"P(better than {other.name})"] = comparison.improvement[method.name].get(other.name)
    for name, score in scores.items():
        bounds = (None, None, None) if score is None else score
        facts |= dict(zip((name, f"{name} low", f"{name} high"), bounds, strict=True))
    facts |= {
        "threshold": comparison.threshold,
        "steps_to_threshold": method.steps_to,
        "reached": method.reached,
        "failures": method.failures,
        "steps_per_second": method.steps_per_second,
    }
    return {name: _plain(value) for name, value in facts.items()}


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def as_markdown(comparison: Comparison) -> str:
    """Return the tables, with the verdict below them, as Markdown."""
    methods, *others = map(_markdown, _tables(comparison))
    parts = [methods, *(f"{CHANCES.capitalize()}:\n\n{text}" for text in others)]
    return "\n\n".join([*parts, _escaped(comparison.verdict)]) + "\n"


def _markdown(table: Sequence[Mapping[str, str]]) -> str:
    columns = list(table[0])
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [[_escaped(cell) for cell in row.values()] for row in table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("_", r"\_").replace("*", r"\*")


def as_latex(comparison: Comparison) -> str:
    """Return the tables as LaTeX, for the package booktabs; the intervals are in small type."""
    head = f"% {', '.join(comparison.tasks)}; \\usepackage{{booktabs}}\n"
    return head + "\n".join(_latex(table) for table in _tables(comparison))


def _latex(table: Sequence[Mapping[str, str]]) -> str:
    columns = list(table[0])
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        " & ".join(map(_tex, columns)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_tex, row.values())) + r" \\" for row in table),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "–": "--",
    "−": "$-$",
}
"""Characters that LaTeX reads otherwise, and how it writes them."""


def _tex(cell: str) -> str:
    point, bracket, interval = cell.partition(" [")
    text = "".join(TEX.get(character, character) for character in point)
    return text + (rf" {{\small [{interval}}}" if bracket else "")


def _tables(comparison: Comparison) -> list[list[dict[str, str]]]:
    """The table of the methods and, of more than two, that of the probabilities of improvement."""
    return [rows(comparison)] + [chances(comparison)] * (len(comparison.methods) > 2)


# --- marl-eval ----------------------------------------------------------------------------------


def marl_eval(runs: Sequence[Curves]) -> dict[str, Any]:
    """The runs in the layout of marl-eval: environment → task → method → seed → step → metrics.

    The metrics are those of the absolute metric or, of runs without one, all but the clock. Raises
    `UserError` if a method has two runs on a task.
    """
    by_task(runs)
    merged: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        family, _, task = run.task.partition(":")
        methods = merged.setdefault(family, {}).setdefault(task or family, {})
        methods[run.method] = {
            f"seed_{seed}": _seed(run, index) for index, seed in enumerate(run.seeds)
        }
    return merged


def _seed(run: Curves, index: int) -> dict[str, Any]:
    clocks = ("wall_seconds", "steps_per_second", "dropped_episodes")
    names = [name for name in run.absolute or run.metrics if name not in clocks]
    seconds = run.metrics.get("wall_seconds")
    entry: dict[str, Any] = {
        f"step_{number}": {"step_count": round(float(step))}
        | ({} if seconds is None else {"elapsed_time": _json(seconds[index, number])})
        | {name: [_json(run.metrics[name][index, number])] for name in names if name in run.metrics}
        for number, step in enumerate(run.steps)
    }
    absolute = {name: [_json(run.absolute[name][index])] for name in names if name in run.absolute}
    return entry | ({"absolute_metrics": absolute} if absolute else {})


def _json(value: np.floating[Any] | float) -> float | None:
    return float(value) if math.isfinite(value) else None
