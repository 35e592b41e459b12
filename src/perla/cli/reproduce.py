"""`perla reproduce`: the paper's experiments, with verdicts on their claims."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perla.cli import suites
from perla.cli.parser import Parser
from perla.cli.tables import say, say_table
from perla.errors import UserError, nearest
from perla.files import make_below

if TYPE_CHECKING:
    from perla.experiments.experiment import Calculation, Experiment


ALL = "all"
"""The name of all experiments together."""


def reproduce_command(argv: Sequence[str]) -> int:
    """Repeat experiments and check their claims."""
    parser = Parser(
        "reproduce",
        "Repeat an experiment of the paper (`perla list experiments`) and check its claim.\n"
        "Experiments with the same --out share runs. `all` repeats every experiment, and writes\n"
        "report.html: a page with each claim, its verdict, and our figures beside it.",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT|all")
    parser.add_argument(
        "--scale", metavar="smoke|quick|paper", default="quick",
        help="smoke: a test that it works; quick: fits a laptop; paper: the paper's settings, and "
        "our budgets where it has none [quick]",
    )  # fmt: skip
    parser.add_argument(
        "--family", metavar="FAMILY",
        help="the environments of smac and failures-smac: skirmish, or smac, where StarCraft II is "
        "installed [skirmish]",
    )  # fmt: skip
    parser.add_argument(
        "--env", metavar="ENV[,ENV...]", default="",
        help="only these environments of the experiment; with the same --out, its parts add up "
        "[all]",
    )  # fmt: skip
    suites.add_execution(parser)
    arguments = parser.parse(argv)
    suites.settle(arguments)
    arguments.env = tuple(filter(None, arguments.env.split(",")))

    from perla.experiments.catalogue import EXPERIMENTS
    from perla.experiments.experiment import SCALES, Calculation

    if arguments.scale not in SCALES:
        raise nearest(arguments.scale, SCALES, what="scale")
    for flag, value in (("--family", arguments.family), ("--env", arguments.env)):
        if arguments.experiment == ALL and value:
            raise UserError(f"{flag}: is for one experiment, such as smac; leave it out")
    if arguments.experiment == ALL:
        return _dry_run_all(arguments) if arguments.dry_run else _reproduce_all(arguments)
    if arguments.experiment not in EXPERIMENTS:
        raise nearest(arguments.experiment, (*EXPERIMENTS, ALL), what="experiment")
    experiment = EXPERIMENTS[arguments.experiment]
    cells = experiment.cells(arguments.scale, arguments.family, arguments.env)
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
        return suites.dry_run(cells)
    return _reproduce(arguments.experiment, experiment, arguments)


def _dry_run_all(arguments: argparse.Namespace) -> int:
    """List the runs of all experiments, each once, and the time of the calculations."""
    from perla.experiments.catalogue import EXPERIMENTS
    from perla.experiments.experiment import Calculation

    cells = [cell for each in EXPERIMENTS.values() for cell in each.cells(arguments.scale)]
    status = suites.dry_run(list({cell.folder: cell for cell in cells}.values()))
    for name, experiment in EXPERIMENTS.items():
        if isinstance(experiment, Calculation):
            say(f"{name}: on two cores {experiment.takes}")
    return status


def _reproduce_all(arguments: argparse.Namespace) -> int:
    """Repeat every experiment and write the page of their verdicts. One that ends in a user error
    stops no other; returns the exit status."""
    from perla import __version__
    from perla.experiments.catalogue import EXPERIMENTS
    from perla.files import write_atomic
    from perla.report.build import build

    out, failures, status = _folder(arguments), {}, 0
    for name, experiment in EXPERIMENTS.items():
        try:
            status = max(status, _reproduce(name, experiment, arguments))
        except UserError as error:
            failures[name] = str(error)
    suites.name_failures(failures)
    done = [out / name for name in EXPERIMENTS if name not in failures]
    if done:
        title = f"The paper's experiments at scale {arguments.scale}"
        content, _ = build(done, version=__version__, title=title, replays=0, failures=failures)
        write_atomic(out / "report.html", content)
        say(f"{out / 'report.html'}: every claim with its verdict")
    return suites.FAILED if failures else status


def _folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.out or f"runs/reproduce-{arguments.scale}")


def _reproduce(
    name: str, experiment: Experiment | Calculation, arguments: argparse.Namespace
) -> int:
    from perla.experiments import results
    from perla.experiments.experiment import Experiment

    scale, family, envs, out = arguments.scale, arguments.family, arguments.env, _folder(arguments)
    own = make_below(out, Path(name))
    failures: dict[str, str] = {}
    if isinstance(experiment, Experiment):
        outcome = suites.carry_out(experiment.cells(scale, family, envs), out, arguments)
        if outcome.pending:
            return suites.leave_to_others(outcome)
        failures = outcome.failures
        suites.name_failures(failures)
        findings = results.judge(experiment, name, scale, outcome, own, family=family, envs=envs)
    else:
        findings = results.calculate(
            experiment, name, scale, own, processes=arguments.processes,
            say=(lambda text: None) if arguments.quiet else say,
        )  # fmt: skip
    words = ("method", "regime", "claim", "found")
    say_table(name, findings.rows, left=words)
    if findings.claims:
        say_table("claims", findings.claims, left=words)
    say(f"{experiment.figure}. {experiment.claim}")
    say(f"{findings.verdict.status}: {findings.verdict.reason}")
    if not arguments.quiet:
        say(f"results and figures: {own}")
    return suites.FAILED if failures else 0
