"""Figures of the paper's experiments, drawn from finished runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from perla.analysis import figures
from perla.analysis.compare import compare
from perla.analysis.load import Curves
from perla.experiments import verdicts
from perla.experiments.experiment import METRIC

Draw = Callable[[Sequence[Curves]], dict[str, Figure]]
"""Draws an experiment's figures, by name."""


def by_task(runs: Sequence[Curves]) -> dict[str, list[Curves]]:
    """Group runs by the short name of their map."""
    panels: dict[str, list[Curves]] = {}
    for run in runs:
        panels.setdefault(short(run.task), []).append(run)
    return panels


def short(task: str) -> str:
    """Shorten `lbf:Foraging-8x8-2p-2f-coop-v2` to `8x8-2p-2f-coop`."""
    return task.rpartition(":")[2].removeprefix("Foraging-").removesuffix("-v2")


def curves(metric: str = METRIC) -> Draw:
    """Return the drawing of the learning curves of all maps together and of each map."""

    def draw(runs: Sequence[Curves]) -> dict[str, Figure]:
        return {
            "average": figures.comparison(compare(runs, metric=metric)),
            "maps": figures.learning_curves(by_task(runs), metric=metric),
        }

    return draw


def failures(metric: str = METRIC) -> Draw:
    """Return the drawing of the number of failures of each method."""

    def draw(runs: Sequence[Curves]) -> dict[str, Figure]:
        methods = list(dict.fromkeys(run.method for run in runs))
        counts = {"maps": [float(verdicts.failed_maps(runs, name, metric)) for name in methods]}
        word = "win rate" if metric.startswith("win_rate") else "return"
        ylabel = f"Maps with final {word} below 0.1"
        return {"failures": figures.bars(methods, counts, ylabel=ylabel, none="no failures")}

    return draw


def scaling(runs: Sequence[Curves]) -> dict[str, Figure]:
    """Draw the gain over each base method against the number of agents."""
    found = {f"over {base}": verdicts.gains(runs, base) for base in ("ippo", "mappo")}
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


def variance(runs: Sequence[Curves]) -> dict[str, Figure]:
    """Draw the cumulative TD error over training, and the return."""
    summed = [replace(run, metrics={"error": verdicts.cumulative_error(run)}) for run in runs]
    label = "Cumulative TD error (return × steps)"
    return {
        "cumulative-td-error": figures.learning_curves(
            by_task(summed), metric="error", label=label
        ),
        "return": figures.learning_curves(by_task(runs), metric=METRIC),
    }


def samples(runs: Sequence[Curves]) -> dict[str, Figure]:
    """Draw the area under the curve against K."""
    found = verdicts.areas_by_samples(runs)
    return {
        "samples": figures.against(
            list(found),
            {"perla-ippo": list(found.values())},
            xlabel="Joint actions sampled, K",
            ylabel="Area under the curve",
        )
    }


def grid(runs: Sequence[Curves]) -> dict[str, Figure]:
    """Draw the area under the curve of every combination of settings."""
    comparison = verdicts.compare_methods(runs, *dict.fromkeys(run.method for run in runs))
    areas = {method.name.removeprefix("perla-ippo "): method.area for method in comparison.methods}
    return {"grid": figures.ranking(areas, xlabel="Area under the curve of the sampled return")}
