"""Flags and steps that the commands for many runs share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from perla.cli.parser import Parser
from perla.cli.tables import say, say_table, tell
from perla.config import Count, NonNegative, Positive, convert
from perla.errors import UserError, nearest

if TYPE_CHECKING:
    from perla.analysis.load import Curves
    from perla.suites.execute import Outcome
    from perla.suites.executors import Executor, Stop
    from perla.suites.suite import Cell

EXECUTORS = {
    "local": ("--processes",),
    "ray": ("--address", "--cpus", "--gpus"),
    "slurm": ("--cpus", "--gpus", "--processes", "--hours", "--sbatch"),
}
"""The executors, with the flags that belong to each."""
FAILED = 1
"""The exit status if some runs failed and the others succeeded."""


def add_execution(parser: Parser) -> None:
    """Add the flags for execution, which change no results."""
    parser.add_argument("--out", metavar="DIR", help="the folder of all runs and results")
    parser.add_argument(
        "--executor", metavar="|".join(EXECUTORS), default="local",
        help="processes on this machine, a Ray cluster (--address), or jobs of SLURM [local]",
    )  # fmt: skip
    parser.add_argument(
        "--processes", metavar="N",
        help="parallel processes, or jobs of SLURM [as many as cores and memory allow; all jobs]",
    )  # fmt: skip
    parser.add_argument("--address", metavar="A", help="address of the Ray cluster [a local one]")
    parser.add_argument(
        "--cpus", metavar="N", default="1", help="processors per run, on a cluster [1]"
    )
    parser.add_argument("--gpus", metavar="X", default="0", help="GPUs per run, on a cluster [0]")
    parser.add_argument(
        "--hours", metavar="X", default="24",
        help="time limit of a job of SLURM, after which it is submitted again [24]",
    )  # fmt: skip
    parser.add_argument(
        "--sbatch", metavar="NAME=VALUE", action="append", default=[],
        help="an option of sbatch, such as partition=long; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="list the runs and estimate their cost"
    )
    parser.add_argument("--quiet", action="store_true", help="print results and errors only")


def add_results(parser: Parser) -> None:
    """Add the flags for the comparison."""
    parser.add_argument(
        "--metric", metavar="M",
        help="the metric: return (of the greedy policy), return_sampled, … [return; return_sampled "
        "if a run has no greedy one]",
    )  # fmt: skip
    parser.add_argument(
        "--threshold",
        metavar="X",
        help="target of the steps and of the optimality gap [0.9 of the best final value]",
    )


def settle(arguments: argparse.Namespace) -> None:
    """Convert the flags of `add_execution`. Raises `UserError` for flags of another executor."""
    chosen = arguments.executor
    if chosen not in EXECUTORS:
        raise nearest(chosen, EXECUTORS, what="executor")
    for flag in arguments.given:
        owners = [name for name, flags in EXECUTORS.items() if flag in flags]
        if owners and chosen not in owners:
            raise UserError(
                f"{flag} belongs to --executor {' or '.join(owners)}, and this is --executor "
                f"{chosen}; leave it out"
            )
    arguments.processes = convert(arguments.processes or "none", Count | None, name="--processes")
    arguments.cpus = convert(arguments.cpus, Count, name="--cpus")
    arguments.gpus = convert(arguments.gpus, NonNegative, name="--gpus")
    arguments.hours = convert(arguments.hours, Positive, name="--hours")
    for text in arguments.sbatch:
        if not all(text.partition("=")):
            raise UserError(f"--sbatch {text}: expected NAME=VALUE")


def executor(arguments: argparse.Namespace, stop: Stop | None = None) -> Executor:
    """The executor that the converted flags choose. `stop` stops single tasks, except on SLURM."""
    from perla.suites.executors import never

    stop = stop or never
    if arguments.executor == "ray":
        from perla.suites.ray import Ray

        return Ray(arguments.address, cpus=arguments.cpus, gpus=arguments.gpus, stop=stop)
    if arguments.executor == "slurm":
        from perla.suites.slurm import Slurm

        return Slurm(
            arguments.cpus,
            float(arguments.gpus),
            float(arguments.hours),
            arguments.processes,
            dict(text.split("=", 1) for text in arguments.sbatch),
        )
    from perla.suites.local import Local

    return Local(arguments.processes, stop=stop)


def carry_out(cells: Sequence[Cell], out: Path, arguments: argparse.Namespace) -> Outcome:
    """Run the cells below `out`. The same command continues an interrupted suite."""
    from perla.suites import execute
    from perla.suites.display import create_display

    try:
        return execute.carry_out(
            cells, out, executor(arguments), create_display(quiet=arguments.quiet)
        )
    except KeyboardInterrupt:
        tell(f"interrupted; the same command with --out {out} continues")
        raise SystemExit(130) from None


@contextmanager
def compared_once(out: Path) -> Iterator[bool]:
    """Lock the folder `out`; False if another process has, which finished at the same time."""
    from perla.runs.store import Folder, FolderBusy

    folder = Folder(out)
    try:
        folder.lock()
    except FolderBusy:
        yield False
        return
    try:
        yield True
    finally:
        folder.unlock()


def leave_to_others(outcome: Outcome) -> int:
    """Say that other processes carry out some cells, name the failures, and return the exit
    status."""
    name_failures(outcome.failures)
    say(
        f"{len(outcome.pending)} cells are left to other processes, such as "
        f"{outcome.pending[0]}; the last one to finish compares all"
    )
    return FAILED if outcome.failures else 0


def finish(
    runs: Sequence[Curves],
    failures: Mapping[str, str],
    out: Path,
    arguments: argparse.Namespace,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Compare the methods of `runs`: a table, a figure and a verdict for all tasks together, and in
    the folder `tasks` for each. The summaries have the further `facts`. Names the failures and
    returns the exit status."""
    from perla.analysis.tables import CHANCES, chances, rows
    from perla.suites import results

    name_failures(failures)
    whole = results.complete(runs)
    kept = {id(run) for run in whole}
    if runs and not whole:
        pairs = ", ".join(dict.fromkeys(f"{run.method} on {run.task}" for run in runs))
        raise UserError(
            f"no environment has a result of every method: {pairs}; --task names the environment "
            "of imported runs"
        )
    for run in runs:
        if id(run) not in kept:
            tell(f"{run.path}: left out, because not every method has a result on {run.task}")
    threshold = convert(arguments.threshold or "none", float | None, name="--threshold")
    written = results.write_tasks(
        whole, out, metric=arguments.metric, threshold=threshold, facts=facts
    )
    for comparison in written:
        say_table(", ".join(comparison.tasks), rows(comparison), left=("method",))
        if len(comparison.methods) > 2:
            say_table(CHANCES, chances(comparison), left=("method",))
        for note in comparison.notes:
            tell(note)
        say(comparison.verdict)
    if not arguments.quiet:
        say(f"results and figures: {out}")
    return FAILED if failures else 0


def name_failures(failures: Mapping[str, str]) -> None:
    """Print a line for each run that failed, with the reason."""
    for name, reason in failures.items():
        tell(f"{name}: {reason}")


def dry_run(cells: Sequence[Cell]) -> int:
    """List the cells with an estimate of their time on this machine."""
    from perla.runs.sinks import clock
    from perla.suites.cost import Costs, Machine

    costs = Costs(Machine.measure())
    seconds = [costs.seconds(cell.run) for cell in cells]
    rows = [
        {
            "environment": cell.run.env,
            "method": cell.method,
            "seeds": str(len(cell.run.seeds)),
            "steps": f"{cell.run.steps:,}",
            "time": clock(cost),
        }
        for cell, cost in zip(cells, seconds, strict=True)
    ]
    say_table(f"{len(cells)} runs", rows, left=("environment", "method"))
    say(f"about {clock(sum(seconds))} on this machine, with all its cores")
    return 0
