"""Ten environments, ranked by the forecast of `perla diagnose`.

    python benchmarks/diagnose.py [--states 2048] [--out benchmarks/diagnose.json]

Rows have the most that policy embedding can gain at the method's own λ, the parts of that gain, and
the shares of the advantage's error. Environments whose intervals overlap cannot be told apart.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import perla
from perla.analysis.stats import Score
from perla.variance.diagnosis import percent

ENVS = (
    "matrix:climbing-t25",
    "matrix:overgeneralisation-n5-a3-t25",
    "congestion:n5-others0.1",
    "congestion:n5-others0.9",
    "congestion:n20-others0.9",
    "lbf:Foraging-5x5-2p-1f-coop-v2",
    "lbf:Foraging-8x8-2p-2f-coop-v2",
    "lbf:Foraging-8x8-3p-1f-v2",
    "lbf:Foraging-10x10-5p-3f-v2",
    "skirmish:3m",
)


def row(env: str, steps: int, states: int) -> dict[str, Any]:
    """The forecast for an environment, and its causes."""
    numbers = perla.diagnose(env, steps=steps, states=states, lambdas=(0.95,), quiet=True).numbers
    own = numbers.place
    estimates = {
        "gain": numbers.gain[own],
        "by averaging": numbers.gain_by_averaging[own],
        "by critic": numbers.gain_by_critic[own],
        **{name: scores[own] for name, scores in numbers.parts.items()},
    }
    return {"env": env} | estimates


def main() -> None:
    """Diagnose all, and print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--states", type=int, default=2048)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for env in ENVS:
        rows.append(row(env, arguments.steps, arguments.states))
        print(env, percent(rows[-1]["gain"]), flush=True)
    rows.sort(key=lambda row: -row["gain"].point)
    for found in rows:
        cells = [percent(value) if isinstance(value, Score) else value for value in found.values()]
        print("| " + " | ".join(cells) + " |")
    if arguments.out:
        facts = {"steps": arguments.steps, "states": arguments.states, "rows": [
            {name: [x if math.isfinite(x) else None for x in value]
             if isinstance(value, Score) else value for name, value in found.items()}
            for found in rows
        ]}  # fmt: skip
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
