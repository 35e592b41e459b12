"""Ten environments, ranked by the forecast of `perla diagnose`.

    python benchmarks/diagnose.py [--states 1024] [--out benchmarks/diagnose.json]

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
    "matrix:climbing",
    "matrix:random-n3-a3-s1-t10",
    "congestion:n5-others0.1",
    "congestion:n5-others0.9",
    "congestion:n10-others0.5",
    "lbf:Foraging-5x5-2p-1f-coop-v2",
    "lbf:Foraging-8x8-2p-2f-coop-v2",
    "lbf:Foraging-8x8-3p-1f-v2",
    "lbf:Foraging-10x10-3p-3f-v2",
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


def plain(value: Any) -> Any:
    """An estimate as a list for JSON, with null for an infinite number."""
    if not isinstance(value, Score):
        return value
    return [x if math.isfinite(x) else None for x in value]


def main() -> None:
    """Diagnose all that the file has no row of, then print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--states", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/diagnose.json"))
    arguments = parser.parse_args()
    facts: dict[str, Any] = {"steps": arguments.steps, "states": arguments.states, "rows": []}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text())
        if found | {"rows": []} != facts:
            parser.error(f"{arguments.out}: has other --steps or --states; name another file")
        facts = found
    for env in ENVS:
        if env not in [row["env"] for row in facts["rows"]]:
            new = row(env, arguments.steps, arguments.states)
            facts["rows"].append({name: plain(value) for name, value in new.items()})
            arguments.out.write_text(json.dumps(facts, indent=1) + "\n")

    def estimate(value: list[float | None]) -> Score:
        return Score(*(math.inf if x is None else x for x in value))

    for each in sorted(facts["rows"], key=lambda row: -estimate(row["gain"]).point):
        cells = [percent(estimate(value)) for name, value in each.items() if name != "env"]
        print("| " + " | ".join([f"`{each['env']}`", *cells]) + " |")


if __name__ == "__main__":
    main()
