"""`perla reproduce`: the paper's experiments, each with the verdict on its claim."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from perla.cli import suites
from perla.cli.parser import Parser
from perla.cli.tables import say, table
from perla.errors import nearest


def reproduce_command(argv: Sequence[str]) -> int:
    """Repeat an experiment and judge its claim."""
    parser = Parser(
        "reproduce",
        "Repeat an experiment of the paper (`perla list experiments`) and judge its claim. Cells\n"
        "that experiments share are carried out once if they share --out.",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT")
    parser.add_argument(
        "--scale", metavar="smoke|quick|paper", default="quick",
        help="smoke shows that it works, quick fits a laptop, paper has the paper's budget [quick]",
    )  # fmt: skip
    suites.add_conduct(parser)
    arguments = parser.parse(argv)

    from perla.suites.experiment import SCALES
    from perla.suites.paper import EXPERIMENTS

    if arguments.experiment not in EXPERIMENTS:
        raise nearest(arguments.experiment, EXPERIMENTS, what="experiment")
    if arguments.scale not in SCALES:
        raise nearest(arguments.scale, SCALES, what="scale")
    cells = EXPERIMENTS[arguments.experiment].suites[arguments.scale].cells()
    if arguments.dry_run:
        return suites.dry_run(cells)
    return _reproduce(arguments, Path(arguments.out or f"runs/reproduce-{arguments.scale}"))


def _reproduce(arguments: argparse.Namespace, out: Path) -> int:
    from perla.suites import results
    from perla.suites.paper import EXPERIMENTS

    experiment = EXPERIMENTS[arguments.experiment]
    outcome = suites.carry_out(experiment.suites[arguments.scale].cells(), out, arguments)
    for name, reason in outcome.failures.items():
        suites.tell(f"{name}: {reason}")
    folder = out / arguments.experiment
    report = results.judge(experiment, arguments.experiment, arguments.scale, outcome, folder)
    say(table(arguments.experiment, report.rows, left=("method",)))
    say(f"{experiment.figure}. {experiment.claim}")
    say(f"{report.verdict.status}: {report.verdict.reason}")
    if not arguments.quiet:
        say(f"results and figures: {folder}")
    return suites.FAILED if outcome.failures else 0
