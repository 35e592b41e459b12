"""`perla reproduce`: the paper's experiments, with verdicts on their claims."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from perla.cli import suites
from perla.cli.parser import Parser
from perla.cli.tables import say, say_table
from perla.errors import UserError, nearest
from perla.files import make_below

if TYPE_CHECKING:
    from perla.experiments.experiment import Calculation, Experiment


def reproduce_command(argv: Sequence[str]) -> int:
    """Repeat an experiment and check its claim."""
    parser = Parser(
        "reproduce",
        "Repeat an experiment of the paper (`perla list experiments`) and check its claim.\n"
        "Experiments with the same --out share runs.",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT")
    parser.add_argument(
        "--scale", metavar="smoke|quick|paper", default="quick",
        help="smoke: a test that it works; quick: fits a laptop; paper: the paper's settings, and "
        "our budgets where it has none [quick]",
    )  # fmt: skip
    suites.add_execution(parser)
    arguments = parser.parse(argv)
    suites.settle(arguments)

    from perla.experiments.catalogue import EXPERIMENTS
    from perla.experiments.experiment import SCALES, Calculation

    if arguments.experiment not in EXPERIMENTS:
        raise nearest(arguments.experiment, EXPERIMENTS, what="experiment")
    if arguments.scale not in SCALES:
        raise nearest(arguments.scale, SCALES, what="scale")
    experiment = EXPERIMENTS[arguments.experiment]
    if isinstance(experiment, Calculation):
        if arguments.executor != "local":
            raise UserError(
                f"{arguments.experiment}: is a calculation on this machine, without runs; leave "
                f"out --executor {arguments.executor}"
            )
        if arguments.dry_run:
            say(f"no runs; on two cores {experiment.takes}")
            return 0
    if arguments.dry_run:
        return suites.dry_run(experiment.cells(arguments.scale))
    return _reproduce(experiment, arguments)


def _reproduce(experiment: Experiment | Calculation, arguments: argparse.Namespace) -> int:
    from perla.experiments import results
    from perla.experiments.cache import cached
    from perla.experiments.experiment import Experiment, Options

    name, scale = arguments.experiment, arguments.scale
    out = Path(arguments.out or f"runs/reproduce-{scale}")
    own = make_below(out, Path(name))
    failures: dict[str, str] = {}
    if isinstance(experiment, Experiment):
        outcome = suites.carry_out(experiment.cells(scale), out, arguments)
        if outcome.pending:
            return suites.leave_to_others(outcome)
        failures = outcome.failures
        suites.name_failures(failures)
        findings = results.judge(experiment, name, scale, outcome, own)
    else:
        tell = (lambda text: None) if arguments.quiet else say
        parts = make_below(own, Path("parts"))
        compute = partial(cached, folder=parts, processes=arguments.processes, say=tell)
        found = experiment.compute(scale, Options(tell, compute))
        findings = results.publish(experiment, name, scale, found, own)
    words = ("method", "regime", "claim", "found")
    say_table(name, findings.rows, left=words)
    if findings.claims:
        say_table("claims", findings.claims, left=words)
    say(f"{experiment.figure}. {experiment.claim}")
    say(f"{findings.verdict.status}: {findings.verdict.reason}")
    if not arguments.quiet:
        say(f"results and figures: {own}")
    return suites.FAILED if failures else 0
