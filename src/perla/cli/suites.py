"""What the commands that carry out many runs share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perla.cli.parser import Parser
from perla.cli.tables import say, table
from perla.config import Count, NonNegative, convert
from perla.errors import UserError, nearest, visible
from perla.files import make_below

if TYPE_CHECKING:
    from perla.analysis.load import Curves
    from perla.suites.execute import Outcome
    from perla.suites.executors import Executor
    from perla.suites.suite import Cell

EXECUTORS = {"local": ("--processes",), "ray": ("--address", "--cpus", "--gpus")}
"""Who carries cells out, with the flags that are for it alone."""
FAILED = 1
"""The exit status where some cells failed and the rest went well."""


def add_conduct(parser: Parser) -> None:
    """Flags that change how cells are carried out, and none of their numbers."""
    parser.add_argument("--out", metavar="DIR", help="the folder of all cells and results")
    parser.add_argument(
        "--executor", metavar="|".join(EXECUTORS), default="local",
        help="processes of this machine, or a Ray cluster (--address) [local]",
    )  # fmt: skip
    parser.add_argument(
        "--processes", metavar="N", help="processes at a time [what cores and memory allow]"
    )
    parser.add_argument("--address", metavar="A", help="the Ray cluster's [a local one]")
    parser.add_argument("--cpus", metavar="N", default="1", help="processors of a cell, on Ray [1]")
    parser.add_argument("--gpus", metavar="X", default="0", help="GPUs of a cell, on Ray [0]")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the cells and estimate their cost"
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing but results and mistakes")


def add_results(parser: Parser) -> None:
    """Flags that say what is compared."""
    parser.add_argument(
        "--metric", metavar="M", default="return",
        help="what is compared: return (of the greedy policy), return_sampled, … [return]",
    )  # fmt: skip
    parser.add_argument(
        "--threshold",
        metavar="X",
        help="target of the steps and of the optimality gap [0.9 of the best final value]",
    )


def settle(arguments: argparse.Namespace) -> None:
    """Turn the flags of `add_conduct` into values; `UserError` for those of another executor than
    the chosen one. No processes: as many as the machine has room for."""
    chosen = arguments.executor
    if chosen not in EXECUTORS:
        raise nearest(chosen, EXECUTORS, what="executor")
    for name, flags in EXECUTORS.items():
        for flag in flags:
            if name != chosen and flag in arguments.given:
                raise UserError(
                    f"{flag} belongs to --executor {name}, and this is --executor {chosen}; leave "
                    "it out"
                )
    arguments.processes = convert(arguments.processes or "none", Count | None, name="--processes")
    arguments.cpus = convert(arguments.cpus, Count, name="--cpus")
    arguments.gpus = convert(arguments.gpus, NonNegative, name="--gpus")


def executor(arguments: argparse.Namespace) -> Executor:
    """The executor that settled flags ask for."""
    if arguments.executor == "ray":
        from perla.suites.ray import Ray

        return Ray(arguments.address, cpus=arguments.cpus, gpus=arguments.gpus)
    from perla.suites.local import Local

    return Local(arguments.processes)


def carry_out(cells: Sequence[Cell], out: Path, arguments: argparse.Namespace) -> Outcome:
    """Carry the cells out below `out`. If it is interrupted, the same command goes on with it."""
    from perla.suites import execute
    from perla.suites.display import create_display

    try:
        return execute.carry_out(
            cells, out, executor(arguments), create_display(quiet=arguments.quiet)
        )
    except KeyboardInterrupt:
        tell(f"interrupted; the same command with --out {out} goes on")
        raise SystemExit(130) from None


def finish(
    runs: Sequence[Curves],
    failures: Mapping[str, str],
    out: Path,
    arguments: argparse.Namespace,
) -> int:
    """Compare the methods of `runs`: a table, a picture and a sentence, of all tasks together and,
    in `tasks`, of each. The exit status, which tells whether anything failed; what did is named."""
    from perla.analysis.compare import rows
    from perla.suites import results
    from perla.suites.suite import slug

    name_failures(failures)
    whole = results.complete(runs)
    for run in runs:
        if run not in whole:
            tell(f"{run.path}: left out, as not every method has a result on {run.task}")
    threshold = convert(arguments.threshold or "none", float | None, name="--threshold")
    tasks = list(dict.fromkeys(run.task for run in whole))
    apart = {task: [run for run in whole if run.task == task] for task in tasks}
    parts = {Path("tasks", slug(task)): own for task, own in apart.items() if len(tasks) > 1}
    parts[Path()] = whole
    for place, own in parts.items():
        folder = make_below(out, place)
        comparison = results.write(own, folder, metric=arguments.metric, threshold=threshold)
        say(table(", ".join(comparison.tasks), rows(comparison), left=("method",)))
        say(comparison.verdict)
    if not arguments.quiet:
        say(f"everything about this comparison: {out}")
    return FAILED if failures else 0


def name_failures(failures: Mapping[str, str]) -> None:
    """A line for each cell or folder that failed, with its reason."""
    for name, reason in failures.items():
        tell(f"{name}: {reason}")


def tell(text: str) -> None:
    """A line on standard error."""
    print("perla:", visible(" ".join(text.split())), file=sys.stderr)


def dry_run(cells: Sequence[Cell]) -> int:
    """List the cells with an estimate of what each costs on this machine."""
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
    say(table(f"{len(cells)} cells", rows, left=("environment", "method")))
    say(f"about {clock(sum(seconds))} on this machine, all its cores together")
    return 0
