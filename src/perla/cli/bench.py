"""`perla bench`: measure speed and print a table."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perla.cli.parser import Parser
from perla.cli.tables import say_table
from perla.errors import UserError, nearest

BENCHES = ("env", "marginal", "train")


def bench_command(argv: Sequence[str]) -> int:
    """Measure the speed of `env`, `marginal` or `train`."""
    parser = Parser("bench", "Measure speed and print a table.")
    parser.add_argument("what", metavar="|".join(BENCHES), nargs="?", default="train")
    parser.add_argument(
        "--env", metavar="ENV", help="the environment that `perla bench env` measures"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="also write the numbers to this .json file, and a figure, if any, beside it",
    )
    arguments = parser.parse(argv)
    if arguments.what not in BENCHES:
        raise nearest(arguments.what, BENCHES, what="benchmark")
    if arguments.env is not None and arguments.what != "env":
        raise UserError(f"--env {arguments.env}: for `perla bench env`, not {arguments.what}")
    out = Path(arguments.out) if arguments.out else None
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")

    from perla import machine
    from perla.analysis.figures import render
    from perla.files import write_atomic
    from perla.runs import backend
    from perla.runs.store import dump

    backend.prepare()
    bench = importlib.import_module(f"perla.bench.{arguments.what}")
    chosen = {} if arguments.env is None else {"env_id": arguments.env}
    rows = bench.measure(**chosen)
    words = [name for name, value in rows[0].items() if isinstance(value, str)]
    cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
    say_table(f"perla bench {arguments.what}", cells, left=words)
    if out is not None:
        facts = {"rows": rows, "versions": machine.versions(), "hardware": machine.hardware()}
        write_atomic(out, dump(facts))
        if hasattr(bench, "picture"):
            write_atomic(out.with_suffix(".png"), render(bench.picture(rows)))
    return 0


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
