"""Learning curves of docs/learning.md: train every case, write small files, draw.

    python benchmarks/learning.py [--seeds 5] [--only default] [--out docs/results]

`perla.train` trains each case, with equal budgets for all methods of a panel. The files contain
interquartile means over seeds with 95% bootstrap intervals at every evaluation, and the settings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import perla
from perla.analysis import style
from perla.analysis.stats import interval, iqm


class Panel(NamedTuple):
    """Methods that are compared, and their goal."""

    title: str
    env: str
    env_options: dict[str, Any]
    preset: str
    algos: tuple[str, ...]
    steps: int
    goal: float
    """Sampled return (IQM over seeds) to be reached within `steps`."""
    evaluations: int = 25
    reference: dict[str, list[tuple[int, float]]] = {}
    """Published or measured curves of other libraries: (step, return)."""


MAP = "lbf:Foraging-8x8-2p-2f-coop"
FOUR = ("ippo", "mappo", "perla-ippo", "perla-mappo")
PANELS = {
    "default": Panel("default preset", f"{MAP}-v2", {}, "default", FOUR, 400_000, 0.95),
    "epymarl": Panel(
        "epymarl preset", f"{MAP}-v3", {}, "epymarl", ("ippo",), 200_000, 0.85, 25,
        {"EPyMARL ippo, one seed": [
            (500, 0.0), (25500, 0.025), (50500, 0.08), (75962, 0.22), (101290, 0.415),
            (126531, 0.87), (151658, 0.935), (176725, 0.93), (201866, 0.95),
        ]},
    ),
    "mava": Panel(
        "mava preset, masked", f"{MAP}-v2", {"mask": True}, "mava", ("ippo", "mappo"), 250_000,
        0.8, 60,
        {
            "Mava ippo, one seed": [
                (20000, 0.0), (102000, 0.16), (164000, 0.53), (205000, 0.81), (246000, 0.92),
            ],
            "Mava mappo, one seed": [
                (20000, 0.0), (102000, 0.09), (164000, 0.48), (205000, 0.59), (246000, 0.81),
            ],
        },
    ),
}  # fmt: skip


def curve(result: Any, metric: str) -> dict[str, list[float]]:
    """Return the IQM over seeds of a metric and its interval, at every evaluation."""
    count = 1 + max(record["evaluation"] for record in result.records)
    table = np.full((len(result.run.seeds), count), np.nan)
    steps = np.zeros_like(table)
    for record in result.records:
        row = result.run.seeds.index(record["seed"])
        table[row, record["evaluation"]] = record[metric]
        steps[row, record["evaluation"]] = record["step"]
    low, high = interval(table)
    columns = {"step": steps.mean(0), "iqm": iqm(table), "low": low, "high": high}
    return {name: [round(float(x), 4) for x in column] for name, column in columns.items()}


def first_at(curve: dict[str, list[float]], goal: float) -> int | None:
    """Return the first step at which the IQM is at least `goal`."""
    reached = [
        step for step, value in zip(curve["step"], curve["iqm"], strict=True) if value >= goal
    ]
    return int(reached[0]) if reached else None


def run(panel: Panel, seeds: int) -> dict[str, Any]:
    """Train every method of a panel."""
    cases = {}
    for algo in panel.algos:
        result = perla.train(
            panel.env, algo, steps=panel.steps, seeds=seeds, preset=panel.preset,
            env_options=panel.env_options, num_evaluations=panel.evaluations, eval_episodes=32,
            absolute_episodes=320,
        )  # fmt: skip
        curves = {name: curve(result, name) for name in ("return_sampled", "return")}
        reached = first_at(curves["return_sampled"], panel.goal)
        cases[algo] = {
            "reached_at": reached,
            "absolute": result.summary["iqm"]["absolute"],
            "steps_per_second": round(result.summary["steps_per_second"]),
            "curves": curves,
        }
        last = curves["return_sampled"]
        print(
            f"{panel.preset:<9} {algo:<12} sampled {last['iqm'][-1]:.3f} "
            f"[{last['low'][-1]:.3f}, {last['high'][-1]:.3f}]  greedy "
            f"{curves['return']['iqm'][-1]:.3f}  absolute {cases[algo]['absolute']:.3f}  "
            f"{panel.goal} reached at {reached}",
            flush=True,
        )
    return panel._asdict() | {"seeds": seeds, "cases": cases}


def draw(results: dict[str, Any]) -> bytes:
    """Draw a panel for each preset: sampled returns with intervals, and the reference curves."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.style():
        figure = Figure(figsize=(4.2 * len(results), 3.6), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
        for axes, result in zip(panels, results.values(), strict=True):
            for i, (algo, case) in enumerate(result["cases"].items()):
                points, colour = case["curves"]["return_sampled"], style.colour(i)
                axes.fill_between(
                    points["step"], points["low"], points["high"], color=colour, alpha=0.15, lw=0
                )
                axes.plot(points["step"], points["iqm"], style.dash(i), color=colour, label=algo)
            for i, (name, reference) in enumerate(result["reference"].items()):
                x, y = zip(*reference, strict=True)
                axes.plot(x, y, "o:", color=style.colour(i), ms=3, lw=1, label=name)
            axes.set_title(f"{result['title']}\n{result['env']}", fontsize=9)
            axes.set_xlabel("Environment steps of each seed")
            style.format_thousands(axes.xaxis)
            axes.set_xlim(0, result["steps"])
            axes.set_ylim(-0.02, 1.02)
            axes.legend(loc="lower right", fontsize=7)
        panels[0].set_ylabel("Sampled return per episode")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def main() -> None:
    """Train, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=PANELS, action="append")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or PANELS:
        result = run(PANELS[name], arguments.seeds)
        (arguments.out / f"learning-{name}.json").write_text(json.dumps(result) + "\n")
    kept = {
        name: json.loads(path.read_text())
        for name in PANELS
        if (path := arguments.out / f"learning-{name}.json").exists()
    }
    (arguments.out / "learning.png").write_bytes(draw(kept))


if __name__ == "__main__":
    main()
