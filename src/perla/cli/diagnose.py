"""`perla diagnose`: the most that policy embedding can gain in an environment, before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from perla.cli.compare import ENV
from perla.cli.parser import Parser
from perla.cli.tables import say, say_table
from perla.cli.train import option
from perla.variance import ALGO, LAMBDAS, STATES, STEPS

LAMBDAS_TEXT = ",".join(f"{lam:g}" for lam in LAMBDAS)


def diagnose_command(argv: Sequence[str]) -> int:
    """Forecast the gain of policy embedding, and print the causes of noise."""
    from perla.cli import flags

    arguments = flags.parse(_parser(), argv, lambda arguments: [arguments.algo or ALGO])

    from perla.envs.registry import make_env
    from perla.variance import report
    from perla.variance.plan import Plan
    from perla.variance.progress import Bars, silent

    numbers = ("steps", "states", "lambdas", "seed")
    plan = Plan.read(
        arguments.env,
        dict(map(option, arguments.env_option)),
        arguments.algo,
        arguments.preset,
        flags.given(vars(arguments)),
        name=flags.flag_name,
        **{name: getattr(arguments, name) for name in numbers},
    )
    out = Path(arguments.out) if arguments.out else None
    if out is not None:
        report.check_folder(out)
    env = make_env(plan.env, **plan.env_options)
    bars = Bars()
    try:
        found = plan.carry_out(env, silent if arguments.quiet else bars)
    finally:
        bars.close()
    say(found.forecast)
    say_table(f"Error of the advantage by its cause, {plan.title}", report.part_rows(found))
    say_table("Noise of the policy gradient that exact critics remove", report.removed_rows(found))
    for note in report.NOTES:
        say(note)
    if out is not None:
        report.save(out, plan, found)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "diagnose",
        "Forecast, in minutes, the most that policy embedding can gain in an environment: train\n"
        "the base method for a short while, branch from the states that it visits, and estimate\n"
        "how much of its noise comes from the other agents, the environment and the critic.\n\n"
        "Settings of the method are flags too (`perla train ALGO --help`).",
    )
    parser.add_argument("--env", metavar="ENV", default=ENV, help=f"the environment [{ENV}]")
    parser.add_argument(
        "--env-option", metavar="NAME=VALUE", action="append", default=[],
        help="an option of the environment; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--algo", metavar="ALGO", default=ALGO,
        help=f"the base method, an actor-critic with λ-returns [{ALGO}]",
    )  # fmt: skip
    parser.add_argument("--preset", metavar="P", default="default", help="the preset [default]")
    parser.add_argument(
        "--steps",
        metavar="N",
        default=str(STEPS),
        help=f"environment steps of training [{STEPS:_}]",
    )
    parser.add_argument(
        "--states", metavar="N", default=str(STATES),
        help=f"visited states, each of another rollout; intervals shrink as 1/√N [{STATES}]",
    )  # fmt: skip
    parser.add_argument(
        "--lambdas", metavar="X,…", default=LAMBDAS_TEXT,
        help=f"values of λ beside the method's own [{LAMBDAS_TEXT}]",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="N", default="0", help="seed of everything random [0]")
    parser.add_argument(
        "--out", metavar="DIR", help="also write diagnose.json and diagnose.png to this folder"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser
