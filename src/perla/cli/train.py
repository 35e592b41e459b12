"""`perla train` and `perla resume`."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perla.cli.parser import Parser, add_trust, seeds, trust
from perla.config import Count, NonNegative, Positive, convert
from perla.envs.processes.pool import STEP_SECONDS
from perla.errors import UserError

ALGO = "perla-ippo"
ENV = "lbf:Foraging-5x5-2p-1f-coop-v2"
STEPS = 300_000
SECONDS = 10.0


def train_command(argv: Sequence[str]) -> int:
    """Train."""
    from perla.cli import flags
    from perla.methods.settings import configure

    arguments = flags.parse(_parser(), argv, lambda arguments: [arguments.algo or ALGO])
    algo = ALGO if arguments.algo is None else arguments.algo
    if arguments.help:
        print(_help(arguments.algo, arguments.preset), end="")
        return 0
    given = flags.given(vars(arguments))
    config = configure(algo, arguments.preset, given, flag_name=flags.flag_name)
    return _train(algo, config, arguments)


def _train(algo: str, config: Any, arguments: argparse.Namespace) -> int:
    from perla.runs.spec import Run, Steps

    run = Run(
        env=arguments.env,
        env_options=dict(map(option, arguments.env_option)),
        algo=algo,
        preset=arguments.preset,
        config=config,
        steps=convert(arguments.steps, Steps, name="--steps"),
        seeds=seeds(arguments.seeds),
        num_evaluations=convert(arguments.num_evaluations, Count, name="--num-evaluations"),
        eval_episodes=convert(arguments.eval_episodes, Count, name="--eval-episodes"),
        absolute_episodes=convert(arguments.absolute_episodes, Count, name="--absolute-episodes"),
    )
    conduct = _conduct(arguments)
    out = Path(arguments.out) if arguments.out else free(Path("runs"), f"{run.env}-{algo}")

    from perla.runs import execute, sinks

    display = sinks.display(quiet=arguments.quiet)
    result = execute.train(run, out, display=display, **conduct)
    display.say(f"everything about this run: {out}")
    return _status(result.dropped)


def resume_command(argv: Sequence[str]) -> int:
    """Go on with a run."""
    parser = Parser("resume", "Go on with an interrupted run; it ends as if it had never been.")
    parser.add_argument("dir", metavar="DIR", help="the run's folder")
    add_trust(parser)
    _add_conduct(parser)
    arguments = parser.parse(argv)
    conduct = _conduct(arguments)

    from perla.runs import execute, sinks
    from perla.runs.store import Folder

    out = Path(arguments.dir)
    display = sinks.display(quiet=arguments.quiet)
    finished = Folder.open(out).finished
    result = execute.resume(out, trust=trust(arguments), display=display, **conduct)
    if not finished:
        display.say(f"everything about this run: {out}")
    return _status(result.dropped)


def _parser() -> Parser:
    parser = Parser("train", "", add_help=False)
    parser.add_argument("algo", nargs="?")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--env", default=ENV)
    parser.add_argument("--env-option", action="append", default=[])
    parser.add_argument("--steps", default=str(STEPS))
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--out")
    parser.add_argument("--num-evaluations", default="50")
    parser.add_argument("--eval-episodes", default="32")
    parser.add_argument("--absolute-episodes", default="320")
    _add_conduct(parser)
    return parser


def _add_conduct(parser: Parser) -> None:
    """Flags that change how a run is carried out, and none of its numbers."""
    parser.add_argument("--quiet", action="store_true", help="say nothing but mistakes")
    parser.add_argument(
        "--checkpoint-seconds",
        metavar="X",
        default=str(SECONDS),
        help=f"least time between two checkpoints [{SECONDS:g}]",
    )
    parser.add_argument(
        "--step-seconds",
        metavar="X",
        default=str(STEP_SECONDS),
        help=f"worlds that are not JAX: a step that takes longer has hung [{STEP_SECONDS:g}]",
    )
    parser.add_argument(
        "--on-nonfinite",
        metavar="DO",
        default="stop",
        help="when a number of a seed is NaN or infinite: stop, or drop-seed and go on [stop]",
    )


def _help(algo: str | None, preset: str) -> str:
    from perla.cli.flags import explain, row
    from perla.methods.presets import PRESETS
    from perla.methods.recipes import RECIPES

    text = f"""\
usage: perla train [ALGO] [--env ENV] [--steps N] [--seeds S] [--out DIR] [settings ...]

Train agents. Everything about the run ends up in a folder; Ctrl-C stops it and
`perla resume DIR` continues it.

{row("ALGO", f"one of {', '.join(RECIPES)}; `perla list`", ALGO)}
  --env ENV                       the world; `perla list envs` [{ENV}]
  --env-option NAME=VALUE         an option of the world; may stand several times
  --steps N                       environment steps of each seed, such as 1e6 [{STEPS:_}]
  --seeds S                       5: seeds 0 to 4; 3,7: these; 3,: this one [1]
{row("--preset P", f"one of {', '.join(PRESETS)}; `perla list presets`", "default")}
  --out DIR                       the run's folder [a new one under runs/]
  --num-evaluations N             evaluations, spread evenly over the run [50]
  --eval-episodes N               episodes of an evaluation [32]
  --absolute-episodes N           episodes of the last evaluation, of the best parameters [320]
  --checkpoint-seconds X          least time between two checkpoints [{SECONDS:g}]
  --step-seconds X                a world's step, where it is not JAX, that takes longer has hung
                                  [{STEP_SECONDS:g}]
  --on-nonfinite DO               when a number of a seed is NaN or infinite: stop, or drop-seed
                                  and go on with the others [stop]
  --quiet                         say nothing but mistakes
"""
    if algo is None:
        return text + "\n`perla train ALGO --help` shows the settings of a method.\n"
    return text + "\n" + explain(algo, preset)


def option(text: str) -> tuple[str, bool | int | float | str]:
    """`NAME=VALUE`, the value as a number or truth value where it is one."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"--env-option {text}: expected NAME=VALUE")
    if value in ("true", "false"):
        return name, value == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def _conduct(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `_add_conduct` as `execute.train` and `execute.resume` take them."""
    from perla.runs.spec import OnNonFinite

    seconds = arguments.checkpoint_seconds
    return {
        "checkpoint_seconds": float(convert(seconds, NonNegative, name="--checkpoint-seconds")),
        "step_seconds": float(convert(arguments.step_seconds, Positive, name="--step-seconds")),
        "on_nonfinite": convert(arguments.on_nonfinite, OnNonFinite, name="--on-nonfinite"),
    }


def _status(dropped: Mapping[int, str]) -> int:
    """The exit status of a run, and on standard error which seeds it had to leave out."""
    for seed, reason in dropped.items():
        print(f"perla: seed {seed} was dropped: {reason}", file=sys.stderr)
    return 2 if dropped else 0


def free(parent: Path, name: str) -> Path:
    """The first folder of this name that does not exist."""
    name = re.sub(r"[^\w.-]+", "-", name)
    paths = (parent / f"{name}-{number}" for number in itertools.count(1))
    return next(path for path in paths if not path.exists())
