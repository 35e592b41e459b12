"""`perla suite`: the runs that a file lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from perla.cli import suites
from perla.cli.parser import Parser, add_trust, trust
from perla.cli.tables import say


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
    add_trust(parser)
    suites.add_results(parser)
    suites.add_execution(parser)
    arguments = parser.parse(argv)
    suites.settle(arguments)

    from perla.suites import results
    from perla.suites.suite import load

    suite = load(Path(arguments.file), trust(arguments))
    out = Path(arguments.out or f"runs/{suite.name}")
    if arguments.dry_run:
        return suites.dry_run(suite.cells())
    outcome = suites.carry_out(suite.cells(), out, arguments)
    if len({run.method for run in results.complete(outcome.results)}) < 2:
        suites.name_failures(outcome.failures)
        say(f"no two methods have results on the same environments to compare; all runs: {out}")
        return suites.FAILED if outcome.failures else 0
    return suites.finish(outcome.results, outcome.failures, out, arguments)
