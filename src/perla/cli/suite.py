"""`perla suite`: the runs that a file lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perla.cli import suites
from perla.cli.parser import Parser, add_trust, trust
from perla.cli.tables import say
from perla.errors import UserError

if TYPE_CHECKING:
    from perla.suites.suite import Cell


def suite_command(argv: Sequence[str]) -> int:
    """Run a suite and compare its methods."""
    parser = Parser(
        "suite",
        "Run the experiments that a JSON file lists, and compare their methods.\n\n"
        "The file has a name and grids. A grid is the product of its lists:\n\n"
        '  {"name": "rates", "grids": [{"env": ["lbf:Foraging-8x8-2p-2f-coop-v2"],\n'
        '    "algo": ["ippo", "perla-ippo"], "settings": {"lr": [1e-3, 3e-4]},\n'
        '    "steps": 1000000, "seeds": 5}]}',
    )
    parser.add_argument("file", metavar="FILE", help="the suite's file")
    parser.add_argument(
        "--shard", metavar="I/N",
        help="carry out the I-th of N parts only; the last process to finish compares all parts",
    )  # fmt: skip
    add_trust(parser)
    suites.add_results(parser)
    suites.add_execution(parser)
    arguments = parser.parse(argv)
    suites.settle(arguments)

    from perla.suites import execute, results
    from perla.suites.suite import load

    suite = load(Path(arguments.file), trust(arguments))
    out = Path(arguments.out or f"runs/{suite.name}")
    cells = suite.cells()
    mine = part(cells, arguments.shard)
    if arguments.dry_run:
        return suites.dry_run(mine)
    own = suites.carry_out(mine, out, arguments)
    rest = execute.collect([cell for cell in cells if cell.name not in own.failures], out)
    outcome = rest._replace(failures=own.failures | rest.failures)
    if outcome.pending:
        return suites.leave_to_others(outcome)
    if len({run.method for run in results.complete(outcome.results)}) < 2:
        suites.name_failures(outcome.failures)
        say(f"no two methods have results on the same environments to compare; all runs: {out}")
        return suites.FAILED if outcome.failures else 0
    with suites.compared_once(out) as free:
        if not free:
            say(f"{out}: another process compares the results")
            return suites.FAILED if outcome.failures else 0
        return suites.finish(outcome.results, outcome.failures, out, arguments)


def part(cells: Sequence[Cell], shard: str | None) -> list[Cell]:
    """The cells of `--shard i/n`, every n-th from the i-th on; all without a shard. Raises
    `UserError` for anything else."""
    if shard is None:
        return list(cells)
    numbers = re.fullmatch(r"(\d+)/(\d+)", shard)
    index, count = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= index <= count:
        raise UserError(f"--shard {shard}: expected a part of all, such as 1/3, 2/3 or 3/3")
    return list(cells[index - 1 :: count])
