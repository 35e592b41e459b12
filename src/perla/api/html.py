"""The form of a run in a notebook."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from perla.analysis import figures
from perla.errors import visible
from perla.runs.sinks import greedy_and_sampled

if TYPE_CHECKING:
    from perla.api.run import Run

KINDS = ("final", "best", "absolute")


def of_run(run: Run) -> str:
    """The facts of a run, its returns and its learning curves."""
    spec = run.spec
    facts = {
        "method": f"{spec.algo} ({spec.preset})",
        "environment": spec.env,
        "seeds": ", ".join(map(str, spec.seeds)),
        "steps": f"{spec.steps:,} of each seed",
        "state": "finished" if run.finished else "not finished",
        "folder": "none" if run.out is None else str(run.out),
    }
    parts = [_table([[name, value] for name, value in facts.items()])]
    if run.finished:
        rows = [["seed", *(f"{kind} return" for kind in KINDS)]]
        for entry in run.summary["seeds"]:
            returns = (greedy_and_sampled(entry[kind]) for kind in KINDS)
            rows.append([str(entry["seed"]), *returns])
        parts.append(f"<p>greedy / sampled</p>{_table(rows)}")
    if run.records:
        picture = base64.b64encode(figures.render(run.plot())).decode()
        parts.append(f'<img width="640" src="data:image/png;base64,{picture}">')
    return f"<div>{''.join(parts)}</div>"


def _table(rows: list[list[str]]) -> str:
    lines = ("".join(f"<td>{escape(visible(cell))}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
