"""`perla compare`: methods side by side, with 95% intervals and a verdict."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from perla.cli import importing, suites
from perla.cli.parser import Parser, seeds
from perla.cli.tables import tell
from perla.cli.train import new_folder, option
from perla.config import Count, convert
from perla.errors import UserError

ENV = "lbf:Foraging-8x8-2p-2f-coop-v2"
STEPS = 500_000
COMPARING = ("--metric", "--threshold", "--until", "--out", "--quiet", *importing.FLAGS)
"""Flags that apply to finished runs."""


def compare_command(argv: Sequence[str]) -> int:
    """Compare methods, or finished runs."""
    from perla.analysis.gather import is_source
    from perla.cli import flags

    arguments = flags.parse(_parser(), argv, lambda arguments: arguments.what)

    sources = [word for word in arguments.what if is_source(word)]
    if not sources:
        for flag in ("--until", *importing.FLAGS):
            if flag in arguments.given:
                raise UserError(f"{flag}: is for finished runs, and {arguments.what[0]} is none")
        suites.settle(arguments)
        return _train_and_compare(arguments)
    for word in arguments.what:
        if word not in sources:
            raise UserError(
                f"{word}: is no folder or file, and {sources[0]} is; name methods or finished runs"
            )
    for flag in arguments.given:
        if flag not in COMPARING:
            raise UserError(
                f"{flag}: is for training, and {sources[0]} is a folder of finished runs; leave "
                "it out, or name methods instead of folders"
            )
    return _compare_runs(arguments)


def _parser() -> Parser:
    parser = Parser(
        "compare",
        "Train methods with equal budgets and compare them: a table with 95% intervals, a figure\n"
        "and a verdict. With folders of finished runs instead of methods, compare those, also\n"
        "runs of other programs (`perla import --help`). NAME=DIR names a method; equal runs\n"
        "with other seeds are joined.\n\n"
        "Settings are flags too (`perla train ALGO --help`) and apply to all methods.",
    )
    parser.add_argument(
        "what", metavar="ALGO|[NAME=]DIR", nargs="+", help="methods, or folders or files of runs"
    )
    parser.add_argument(
        "--env", metavar="ENV", action="append", help=f"the environment; may be repeated [{ENV}]"
    )
    parser.add_argument(
        "--env-option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the environments; may be repeated",
    )
    parser.add_argument(
        "--steps",
        metavar="N",
        default=str(STEPS),
        help=f"environment steps of each seed [{STEPS:_}]",
    )
    parser.add_argument(
        "--seeds", metavar="S", default="10", help="number of seeds, or a list such as 3,7 [10]"
    )
    parser.add_argument(
        "--preset", metavar="P", default="default", help="the preset of all methods [default]"
    )
    parser.add_argument(
        "--num-evaluations",
        metavar="N",
        help="evaluations, evenly spaced [50; these three are fewer where evaluations would take "
        "over a fifth of the steps]",
    )
    parser.add_argument("--eval-episodes", metavar="N", help="episodes per evaluation [32]")
    parser.add_argument(
        "--absolute-episodes",
        metavar="N",
        help="episodes of the final evaluation of the best parameters [320]",
    )
    suites.add_results(parser)
    parser.add_argument(
        "--until", metavar="N", help="compare finished runs up to this step [their end]"
    )
    importing.add_reading(parser)
    suites.add_execution(parser)
    return parser


def _train_and_compare(arguments: argparse.Namespace) -> int:
    from perla.cli import flags
    from perla.envs.registry import make_env
    from perla.methods.settings import configure
    from perla.suites.suite import Grid, Suite

    if len(set(arguments.what)) < 2:
        raise UserError(f"{', '.join(arguments.what)}: a comparison takes two methods or more")
    given = flags.given(vars(arguments))
    for algo in arguments.what:
        configure(algo, arguments.preset, given, flag_name=flags.flag_name)
    envs = tuple(arguments.env or (ENV,))
    options = dict(map(option, arguments.env_option))
    for env in envs:
        make_env(env, **options)  # Wrong names fail before anything runs.
    grid = Grid(
        env=envs,
        env_options=options,
        algo=tuple(arguments.what),
        preset=arguments.preset,
        settings=given,
        steps=convert(arguments.steps, Count, name="--steps"),
        seeds=seeds(arguments.seeds),
        **{
            name: convert(getattr(arguments, name), Count | None, name=flags.flag_name(name))
            for name in ("num_evaluations", "eval_episodes", "absolute_episodes")
        },
    )
    cells = Suite(name="comparison", grids=(grid,)).cells()
    if arguments.dry_run:
        return suites.dry_run(cells)
    out = (
        Path(arguments.out)
        if arguments.out
        else new_folder(Path("runs"), "compare-" + "-".join(arguments.what))
    )
    outcome = suites.carry_out(cells, out, arguments)
    if outcome.pending:
        return suites.leave_to_others(outcome)
    return suites.finish(outcome.results, outcome.failures, out, arguments)


def _compare_runs(arguments: argparse.Namespace) -> int:
    from perla.analysis.align import cut
    from perla.analysis.gather import gather

    until = convert(arguments.until or "none", Count | None, name="--until")
    gathered = gather(arguments.what, importing.options(arguments))
    runs, notes = gathered.runs, gathered.notes
    if until is not None:
        runs, shortened = cut(runs, until)
        notes = notes + shortened
    for note in notes:
        tell(note)
    out = Path(arguments.out) if arguments.out else new_folder(Path("runs"), "compare")
    return suites.finish(runs, gathered.failures, out, arguments)
