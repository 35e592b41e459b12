"""The command line. Every command is a module, imported when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

from perla.errors import UserError, nearest, visible

COMMANDS = {
    "train": "train agents and save the run in a folder",
    "resume": "continue an interrupted run",
    "evaluate": "evaluate the policies of a run, or a scripted one",
    "render": "draw episodes of a run's policy",
    "export": "write a run's policy as a file for other programs: JAX, NumPy or ONNX",
    "compare": "compare methods, trained with equal budgets, or finished runs",
    "import": "read results of EPyMARL, TensorBoard, marl-eval, CSV or W&B for `compare`",
    "report": "write one page about runs, comparisons and reproductions",
    "tune": "search a method's settings, and compare the best with the preset's on other seeds",
    "diagnose": "forecast, before training, the most that policy embedding can gain",
    "suite": "run the experiments that a file lists, and compare their methods",
    "reproduce": "repeat an experiment of the paper and check its claim",
    "list": "list algos, envs, presets or experiments",
    "doctor": "check this machine, and suggest remedies",
    "completion": "print a script that completes perla's words in bash, zsh or fish",
    "bench": "measure the speed of env, marginal or train",
}
"""One line about each command."""

HOME = {
    "resume": "train",
    "render": "policies",
    "list": "listing",
    "import": "importing",
}
"""The modules of commands with other names."""


def home(command: str) -> str:
    """The module of a command."""
    return f"perla.cli.{HOME.get(command, command)}"


def usage() -> str:
    """The help of `perla` itself."""
    rows = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    return (
        "usage: perla COMMAND [...]\n\n"
        "Cooperative multi-agent reinforcement learning with policy-embedded training.\n\n"
        f"commands:\n{rows}\n\n"
        "`perla train` without arguments trains PERLA-IPPO on a small map.\n"
        "`perla COMMAND --help` explains a command."
    )


def dispatch(argv: Sequence[str]) -> int:
    """Run a command and return its exit status. Exceptions of the command pass through."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    command, *rest = argv
    if command == "--version":
        from perla import __version__

        print(f"perla {__version__}")
        return 0
    if command not in COMMANDS:
        raise nearest(command, COMMANDS, what="flag" if command.startswith("-") else "command")
    module = importlib.import_module(home(command))
    return int(getattr(module, f"{command}_command")(rest))


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point: `dispatch`, with user errors as one line on standard error.

    Exit status: 0, 2 for a user error, 128 + n for signal n, or the command's own.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        status = dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except UserError as error:
        return _say(error, 2)
    except SystemExit as leaving:  # argparse, once it has printed help
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output is gone; keep the interpreter from flushing once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{(error.strerror or str(error)).lower()}", 2)
    except Exception as error:
        from perla.runs.interrupt import Interrupted

        if isinstance(error, Interrupted):
            return _say(error, error.exit_code)
        raise


def _say(message: object, status: int) -> int:
    print("perla:", visible(" ".join(str(message).split())), file=sys.stderr)
    return status
