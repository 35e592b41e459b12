"""`perla import`: other programs' results in the layout of marl-eval, and how they are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perla.cli.parser import Parser
from perla.cli.tables import say, say_table, tell
from perla.config import Positive, convert
from perla.errors import UserError

if TYPE_CHECKING:
    from perla.analysis.importers.series import Options
    from perla.analysis.load import Curves

FLAGS = ("--tag", "--column", "--task", "--step-factor")
"""The flags of `add_reading`."""


def import_command(argv: Sequence[str]) -> int:
    """Import results of other programs."""
    parser = Parser(
        "import",
        "Read results of other programs and write them in the layout of marl-eval, with the\n"
        "meaning of their steps and returns. `perla compare` reads the folder beside runs of\n"
        "perla. It also reads all of these as they are:\n\n"
        "  EPyMARL, PyMARL    folders of sacred\n"
        "  TensorBoard        event files of any program; --tag names the return\n"
        "  marl-eval          JSON of Mava and others\n"
        "  CSV                a row for each evaluation (--column), or a chart exported from\n"
        "                     Weights & Biases (JaxMARL)",
    )
    parser.add_argument(
        "what", metavar="[NAME=]PATH", nargs="+", help="folders or files; NAME names the method"
    )
    add_reading(parser)
    parser.add_argument("--out", metavar="DIR", help="the new folder [a new one under runs/]")
    arguments = parser.parse(argv)

    from perla.analysis.gather import gather
    from perla.analysis.importers.folder import write
    from perla.cli.suites import FAILED, name_failures
    from perla.cli.train import new_folder

    gathered = gather(arguments.what, options(arguments))
    for run in gathered.runs:
        if run.source == "perla":
            raise UserError(f"{run.path}: is a run of perla; `perla compare` reads it as it is")
    name_failures(gathered.failures)
    for note in gathered.notes:
        tell(note)
    out = Path(arguments.out) if arguments.out else new_folder(Path("runs"), "import")
    write(gathered.runs, out)
    say_table("imported", [_row(run) for run in gathered.runs], left=("method", "environment"))
    say(f"imported to {out}")
    return FAILED if gathered.failures else 0


def add_reading(parser: Parser) -> None:
    """Add the flags that say how other programs' files are read."""
    parser.add_argument(
        "--tag", metavar="NAME", help="the other program's name of the metric that is the return"
    )
    parser.add_argument(
        "--column", metavar="OURS=THEIRS", action="append", default=[],
        help="a column of a CSV file: OURS is step, return, seed, method, task, wall_seconds or a "
        "metric; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--task", metavar="[THEIRS=]ENV", action="append", default=[],
        help="the environment's id of imported runs, or of those on THEIRS; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--step-factor", metavar="X", default="1",
        help="multiply imported steps, such as those that count one of X parallel environments [1]",
    )  # fmt: skip


def options(arguments: argparse.Namespace) -> Options:
    """The value of the flags of `add_reading`."""
    from perla.analysis.importers.series import Options

    factor = convert(arguments.step_factor, Positive, name="--step-factor")
    columns = dict(_pair(text, "--column OURS=THEIRS") for text in arguments.column)
    tasks = {}
    for text in arguments.task:
        theirs, equals, ours = text.rpartition("=")
        tasks[theirs if equals else ""] = ours
    return Options(arguments.tag, columns, tasks, float(factor))


def _pair(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"{form.split()[0]} {text}: expected {form.split()[1]}")
    return name, value


def _row(run: Curves) -> dict[str, str]:
    metric = "return" if "return" in run.final else "return_sampled"
    return {
        "method": run.method,
        "environment": run.task,
        "seeds": str(len(run.seeds)),
        "evaluations": str(len(run.steps)),
        "last step": f"{run.steps[-1]:,.0f}",
        f"final {metric}": f"{run.final[metric].mean():.3f}" if metric in run.final else "–",
        "absolute": "yes" if run.absolute else "no",
        "from": run.source,
    }
