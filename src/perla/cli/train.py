"""`perla train` and `perla resume`."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perla.cli.parser import Parser, add_trust, seeds, trust
from perla.config import Count, NonNegative, Positive, convert
from perla.envs import options
from perla.envs.processes.pool import STEP_SECONDS
from perla.errors import UserError

if TYPE_CHECKING:
    from perla.runs.spec import Run

ALGO = "perla-ippo"
ENV = "lbf:Foraging-5x5-2p-1f-coop-v2"
STEPS = 300_000
SECONDS = 10.0
KEEP = 2


def train_command(argv: Sequence[str]) -> int:
    """Train a method on an environment."""
    from perla.cli import flags

    arguments = flags.parse(_parser(), argv, lambda arguments: [arguments.algo or ALGO])
    if arguments.help:
        print(_help(arguments.algo, arguments.preset), end="")
        return 0

    from perla.cli.run_file import render_run
    from perla.runs import execute, sinks, warm_start

    part = convert(arguments.from_part, warm_start.Part, name="--from-part")
    if "--from-part" in arguments.given and arguments.from_dir is None:
        raise UserError(f"--from-part {part}: belongs to --from DIR, which is not given")
    source = warm_start.read(Path(arguments.from_dir)) if arguments.from_dir else None
    run = _run(arguments).replace(warm_start=None if source is None else source.describe(part))
    if arguments.print_config:
        sys.stdout.write(render_run(run))
        return 0
    execution = _execution(arguments)
    out = arguments.out or new_folder(Path("runs"), f"{run.env}-{run.algo}")
    display = sinks.display(quiet=arguments.quiet)
    result = execute.train(run, Path(out), display=display, source=source, **execution)
    display.say(f"run folder: {out}")
    return _status(result.dropped)


def _run(arguments: argparse.Namespace) -> Run:
    """The run that the flags describe, or that of `--config` with them on top."""
    from perla.cli import flags
    from perla.cli.run_file import read_run
    from perla.methods.settings import configure, override
    from perla.runs.spec import Run

    given = flags.given(vars(arguments))
    numbers = _numbers(arguments)
    if arguments.config is None:
        algo = ALGO if arguments.algo is None else arguments.algo
        config = configure(algo, arguments.preset, given, flag_name=flags.flag_name)
        options = dict(map(option, arguments.env_option))
        env, preset = arguments.env, arguments.preset
        return Run(env=env, env_options=options, algo=algo, preset=preset, config=config, **numbers)
    for name, value in (("ALGO", arguments.algo), ("--preset", arguments.preset)):
        if value is not None and (name == "ALGO" or name in arguments.given):
            raise UserError(f"{value}: --config {arguments.config} names method and preset; leave "
                            f"out {name}")  # fmt: skip
    env = arguments.env if "--env" in arguments.given else None
    run = read_run(Path(arguments.config), env=env, trust=arguments.trust)
    changed: dict[str, Any] = {
        name: value for name, value in numbers.items() if f"--{name.replace('_', '-')}" in
        arguments.given
    }  # fmt: skip
    if arguments.env_option:
        changed["env_options"] = run.env_options | dict(map(option, arguments.env_option))
    config = override(run.algo, run.config, given, flag_name=flags.flag_name)
    return run.replace(config=config, **changed)


def _numbers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps, seeds, devices and numbers of evaluations and episodes."""
    from perla.runs.spec import Steps

    counts = ("num_evaluations", "eval_episodes", "absolute_episodes")
    return {
        "data_parallel": convert(arguments.data_parallel, Count, name="--data-parallel"),
        "steps": convert(arguments.steps, Steps, name="--steps"),
        "seeds": seeds(arguments.seeds),
    } | {
        name: convert(getattr(arguments, name), Count | None, name=f"--{name.replace('_', '-')}")
        for name in counts
    }


def resume_command(argv: Sequence[str]) -> int:
    """Continue an interrupted run."""
    parser = Parser(
        "resume",
        "Continue an interrupted run, with the results of an uninterrupted one; or, with --steps,\n"
        "extend a run, finished or not.",
    )
    parser.add_argument("dir", metavar="DIR", help="the run's folder")
    parser.add_argument(
        "--steps",
        metavar="N",
        help="environment steps of each seed in all; schedules follow the new number [as before]",
    )
    add_trust(parser)
    _add_execution(parser)
    arguments = parser.parse(argv)
    execution = _execution(arguments)

    from perla.runs import execute, sinks
    from perla.runs.spec import Steps
    from perla.runs.store import Folder

    steps = convert(arguments.steps or "none", Steps | None, name="--steps")
    out = Path(arguments.dir)
    display = sinks.display(quiet=arguments.quiet)
    done = Folder.open(out).finished and steps is None
    result = execute.resume(out, steps=steps, trust=trust(arguments), display=display, **execution)
    if not done:
        display.say(f"run folder: {out}")
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
    parser.add_argument("--data-parallel", default="1")
    parser.add_argument("--num-evaluations")
    parser.add_argument("--eval-episodes")
    parser.add_argument("--absolute-episodes")
    parser.add_argument("--from", dest="from_dir")
    parser.add_argument("--from-part", default="all")
    parser.add_argument("--config")
    parser.add_argument("--trust", action="store_true")
    parser.add_argument("--print-config", action="store_true")
    _add_execution(parser)
    return parser


def _add_execution(parser: Parser) -> None:
    """Add the flags for execution, which change no results."""
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "--checkpoint-seconds",
        metavar="X",
        default=str(SECONDS),
        help=f"seconds between two checkpoints [{SECONDS:g}]",
    )
    parser.add_argument(
        "--keep-checkpoints",
        metavar="N",
        default=str(KEEP),
        help=f"number of checkpoints that are kept, or all [{KEEP}]",
    )
    parser.add_argument(
        "--step-seconds",
        metavar="X",
        default=str(STEP_SECONDS),
        help=f"timeout of a step of an environment without JAX [{STEP_SECONDS:g}]",
    )
    parser.add_argument(
        "--on-nonfinite",
        metavar="DO",
        default="stop",
        help="if a seed has NaN or infinite values: stop, or drop-seed and continue [stop]",
    )
    parser.add_argument(
        "--log",
        metavar="NAMES",
        default="tensorboard",
        help="loggers: tensorboard, csv, wandb, mlflow, a list of these, or none [tensorboard]",
    )


def _help(algo: str | None, preset: str) -> str:
    from perla.cli.flags import explain, row
    from perla.methods.presets import PRESETS
    from perla.methods.recipes import RECIPES

    text = f"""\
usage: perla train [ALGO] [--env ENV] [--steps N] [--seeds S] [--out DIR] [settings ...]

Train agents and save the run in a folder. Ctrl-C stops it, and `perla resume DIR`
continues it.

{row("ALGO", f"one of {', '.join(RECIPES)}; `perla list`", ALGO)}
{row("--env ENV", "the environment; `perla list envs`", ENV)}
  --env-option NAME=VALUE         an option of the environment, such as x=0.5, x=false, x=none
                                  or x=1,2; may be repeated
  --steps N                       environment steps of each seed, such as 1e6 [{STEPS:_}]
  --seeds S                       5: seeds 0 to 4; 3,7: these two; 3,: seed 3 alone [1]
{row("--preset P", f"one of {', '.join(PRESETS)}; `perla list presets`", "default")}
  --out DIR                       the run's folder [a new one under runs/]
  --data-parallel N               divide the environments of a seed over N devices: cores of a CPU,
                                  accelerators; seeds then follow one another [1]
  --num-evaluations N             evaluations, evenly spaced over the run [50; these three are fewer
                                  where evaluations would take over a fifth of the steps]
  --eval-episodes N               episodes per evaluation [32]
  --absolute-episodes N           episodes of the final evaluation of the best parameters [320]
  --from DIR                      begin with the parameters of the run in DIR, whose environment may
                                  be another one with the same shapes
  --from-part all|actor           all of its learner but the replay buffer, or the policies [all]
  --print-config                  print the run as JSON, and train nothing
  --config FILE                   the run in such a file, or in a config.json, with the flags on top
  --trust                         make its environment also if it is code that the file names
  --checkpoint-seconds X          seconds between two checkpoints [{SECONDS:g}]
  --keep-checkpoints N            number of checkpoints that are kept, or all [{KEEP}]
  --step-seconds X                timeout of a step of an environment without JAX [{STEP_SECONDS:g}]
  --on-nonfinite DO               if a seed has NaN or infinite values: stop, or drop-seed and
                                  continue with the others [stop]
  --log NAMES                     loggers: tensorboard, csv, wandb, mlflow, a list such as
                                  csv,wandb, or none [tensorboard]
  --quiet                         print errors only
"""
    if algo is None:
        return text + "\n`perla train ALGO --help` shows the settings of a method.\n"
    return text + "\n" + explain(algo, preset)


def option(text: str) -> tuple[str, Any]:
    """Parse `NAME=VALUE`, whose value is a Python literal, or else text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"--env-option {text}: expected NAME=VALUE")
    return name, options.plain(f"--env-option {name}", options.read(value))


def _execution(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `_add_execution` as arguments of `execute.train` and `execute.resume`."""
    from perla.runs.spec import OnNonFinite

    seconds, keep = arguments.checkpoint_seconds, arguments.keep_checkpoints
    kept = convert(keep, Count | Literal["all"], name="--keep-checkpoints")
    return {
        "checkpoint_seconds": float(convert(seconds, NonNegative, name="--checkpoint-seconds")),
        "keep_checkpoints": None if kept == "all" else kept,
        "step_seconds": float(convert(arguments.step_seconds, Positive, name="--step-seconds")),
        "log": arguments.log,
        "on_nonfinite": convert(arguments.on_nonfinite, OnNonFinite, name="--on-nonfinite"),
    }


def _status(dropped: Mapping[int, str]) -> int:
    """The exit status of a run. Names the dropped seeds on standard error."""
    for seed, reason in dropped.items():
        print(f"perla: seed {seed} was dropped: {reason}", file=sys.stderr)
    return 2 if dropped else 0


def new_folder(parent: Path, name: str) -> Path:
    """The first of the folders `name-1`, `name-2`, … in `parent` that does not exist."""
    name = re.sub(r"[^\w.-]+", "-", name)
    paths = (parent / f"{name}-{number}" for number in itertools.count(1))
    return next(path for path in paths if not path.exists())
