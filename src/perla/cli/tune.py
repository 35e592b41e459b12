"""`perla tune`: a search of a method's settings, and what it gained on other seeds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perla.cli import suites
from perla.cli.compare import ENV, STEPS
from perla.cli.parser import Parser, seeds
from perla.cli.tables import say, say_table, tell
from perla.cli.train import option
from perla.config import Count, convert
from perla.errors import UserError

if TYPE_CHECKING:
    from perla.tuning.search import Trial
    from perla.tuning.study import Plan, Study

TRIALS, TUNING_SEEDS = 20, "100,101,102"


def tune_command(argv: Sequence[str]) -> int:
    """Search settings on the tuning seeds, and report the best on others."""
    from perla.cli import flags

    arguments = flags.parse(_parser(), argv, lambda arguments: [arguments.algo])
    suites.settle(arguments)
    if arguments.executor == "slurm":
        raise UserError(
            "--executor slurm: tune stops single trials, which local and ray can; on a cluster "
            "start the same command in several jobs that share --out"
        )

    from perla.tuning import report
    from perla.tuning.search import load_optuna
    from perla.tuning.space import check_trials
    from perla.tuning.study import check_seeds, open_study

    trials = convert(arguments.trials, Count, name="--trials")
    reporting = seeds(arguments.seeds)
    plan = _plan(arguments)
    check_seeds(plan.tuning_seeds, reporting)
    check_trials(plan.space, trials, name="--trials")
    if arguments.dry_run:
        return _dry_run(plan, trials, reporting)
    load_optuna()
    out = Path(arguments.out or f"runs/tune-{plan.algo}")
    study = open_study(out, plan)
    history = _search(study, trials, out, arguments)
    cells = report.report_cells(study, history, reporting)
    report.write_best(study, history, reporting)
    outcome = suites.carry_out(cells, out, arguments)
    if outcome.pending:
        return suites.leave_to_others(outcome)
    with suites.compared_once(out) as free:
        if not free:
            say(f"{out}: another process compares the results")
            return suites.FAILED if outcome.failures else 0
        say(report.best_in_words(study, history))
        say(report.budget_in_words(study, history))
        if len(cells) == 1:
            say("These are the settings that the study began with: there is nothing to compare.")
        arguments.metric = plan.metric
        found = {"tuning": report.facts(study, history)}
        return suites.finish(outcome.results, outcome.failures, out, arguments, found)


def _parser() -> Parser:
    parser = Parser(
        "tune",
        "Search a method's settings on tuning seeds, then train the best settings and those of\n"
        "the preset on other seeds, and compare them. The same command continues a search, also\n"
        "with more --trials; several processes that share --out share the work.\n\n"
        'A space is JSON: {"lr": {"low": 1e-4, "high": 1e-2, "log": true},\n'
        '"hidden_size": {"low": 32, "high": 256, "step": 32}, "num_samples": [1, 10, 100]}.\n\n'
        "Settings outside of the space are flags (`perla train ALGO --help`) and apply to all\n"
        "runs.",
    )
    parser.add_argument("algo", metavar="ALGO", help="the method")
    parser.add_argument("--env", metavar="ENV", default=ENV, help=f"the environment [{ENV}]")
    parser.add_argument(
        "--env-option", metavar="NAME=VALUE", action="append", default=[],
        help="an option of the environment; may be repeated",
    )  # fmt: skip
    parser.add_argument("--preset", metavar="P", default="default", help="the preset [default]")
    parser.add_argument(
        "--space", metavar="FILE|paper", default="paper",
        help="the space's file, or paper: that of its Table 3 [paper]",
    )  # fmt: skip
    parser.add_argument(
        "--trials", metavar="N", default=str(TRIALS), help=f"settings that are tried [{TRIALS}]"
    )
    parser.add_argument(
        "--steps", metavar="N", default=str(STEPS),
        help=f"environment steps of each seed, of trials and of reported runs [{STEPS:_}]",
    )  # fmt: skip
    parser.add_argument(
        "--tuning-seeds", metavar="S", default=TUNING_SEEDS,
        help=f"seeds of each trial: a list; a single one has a comma, as 100, [{TUNING_SEEDS}]",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", metavar="S", default="10",
        help="seeds of the reported runs, none of them a tuning seed [10]",
    )  # fmt: skip
    parser.add_argument(
        "--num-evaluations", metavar="N",
        help="evaluations, evenly spaced [50, or as many as take a fifth of the steps]",
    )  # fmt: skip
    parser.add_argument(
        "--search", metavar="tpe|random", default="tpe",
        help="choose settings by a tree-structured Parzen estimator, or at random [tpe]",
    )  # fmt: skip
    parser.add_argument(
        "--pruner", metavar="median|none", default="median",
        help="stop trials that stay below the median of the complete ones, or none [median]",
    )  # fmt: skip
    parser.add_argument(
        "--parallel", metavar="N", default="4",
        help="trials that are chosen together, and run side by side where there is room [4]",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="N", default="0", help="seed of the search [0]")
    suites.add_results(parser)
    suites.add_execution(parser)
    return parser


def _plan(arguments: argparse.Namespace) -> Plan:
    """The plan that the flags describe. Raises `UserError` for every mistake in it."""
    from perla.cli import flags
    from perla.envs.registry import make_env
    from perla.methods.settings import configure
    from perla.runs.spec import Seed, Steps
    from perla.tuning.search import Pruner, Search
    from perla.tuning.space import check_space, read_space
    from perla.tuning.study import Plan

    algo = arguments.algo
    given = flags.given(vars(arguments))
    base = configure(algo, arguments.preset, given, flag_name=flags.flag_name)
    space, left = read_space(arguments.space, algo)
    if left:
        tell(f"--space {arguments.space}: without {', '.join(left)}: no settings of {algo}")
    check_space(space, algo, base, given)
    options = dict(map(option, arguments.env_option))
    make_env(arguments.env, **options)
    return Plan(
        env=arguments.env,
        env_options=options,
        algo=algo,
        preset=arguments.preset,
        config=base,
        space=dict(space),
        steps=convert(arguments.steps, Steps, name="--steps"),
        tuning_seeds=_tuning_seeds(arguments.tuning_seeds),
        num_evaluations=convert(arguments.num_evaluations, Count | None, name="--num-evaluations"),
        metric=arguments.metric or "return",
        seed=convert(arguments.seed, Seed, name="--seed"),
        search=convert(arguments.search, Search, name="--search"),
        pruner=convert(arguments.pruner, Pruner, name="--pruner"),
        parallel=convert(arguments.parallel, Count, name="--parallel"),
    )


def _tuning_seeds(text: str) -> tuple[int, ...]:
    from perla.runs.spec import read_seeds

    return read_seeds(text, name="--tuning-seeds")


def _search(study: Study, trials: int, out: Path, arguments: argparse.Namespace) -> list[Trial]:
    """Carry out the trials; Ctrl-C stops them, resumable."""
    from perla.suites.display import create_display

    def told(text: str) -> None:
        if not arguments.quiet:
            say(text)

    try:
        return study.search(
            trials,
            lambda stop: suites.executor(arguments, stop),
            lambda: create_display(quiet=arguments.quiet),
            told,
        )
    except KeyboardInterrupt:
        tell(f"interrupted; the same command with --out {out} continues")
        raise SystemExit(130) from None


def _dry_run(plan: Plan, trials: int, reporting: Sequence[int]) -> int:
    """Estimate the cost of the trials, none of them pruned, and of the reported runs, all with the
    settings before tuning."""
    from perla.runs.sinks import clock
    from perla.suites.cost import Costs, Machine

    costs = Costs(Machine.measure())
    rows: list[dict[str, Any]] = []
    total = 0.0
    parts = (("trials", trials, plan.tuning_seeds), ("reported runs", 2, reporting))
    for name, count, chosen in parts:
        seconds = count * costs.seconds(plan.run({}, chosen))
        total += seconds
        rows.append(
            {
                "": name,
                "runs": str(count),
                "seeds of each": str(len(chosen)),
                "steps of all": f"{count * len(chosen) * plan.steps:,}",
                "time": clock(seconds),
            }
        )
    say_table(f"{plan.algo} on {plan.env}", rows, left=("",))
    say(
        f"about {clock(total)} on this machine, with all its cores and the settings before tuning; "
        "pruning saves some"
    )
    return 0
