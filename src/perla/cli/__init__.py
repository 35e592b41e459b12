"""The command line. Every command is a module of its own, imported when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

from perla.errors import UserError, nearest, visible

COMMANDS = {
    "train": "train agents and leave everything about it in a folder",
    "resume": "go on with an interrupted run, to the same end",
    "evaluate": "measure the policies of a run",
    "render": "draw an episode of a run's policy",
    "compare": "train methods with equal budgets, or take finished runs, and compare them",
    "suite": "carry out many runs that a file describes, and compare their methods",
    "reproduce": "repeat an experiment of the paper and judge its claim",
    "list": "what there is: algos, envs, presets, experiments",
    "doctor": "check this machine and say what to do about what is missing",
    "bench": "measure speed: env, marginal, train",
}
"""What every command does."""

HOME = {"resume": "train", "evaluate": "look", "render": "look", "list": "listing"}
"""The module in which a command lives, where it is not called like it."""


def usage() -> str:
    """The help of `perla` itself."""
    rows = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return (
        "usage: perla COMMAND [...]\n\n"
        "Cooperative multi-agent reinforcement learning with policy-embedded training.\n\n"
        f"commands:\n{rows}\n\n"
        "`perla train` alone trains PERLA-IPPO on a small map; "
        "`perla COMMAND --help` says more of each."
    )


def dispatch(argv: Sequence[str]) -> int:
    """Carry out a command; the exit status. Raises what the command raises."""
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
    module = importlib.import_module(f"perla.cli.{HOME.get(command, command)}")
    return int(getattr(module, f"{command}_command")(rest))


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point: like `dispatch`, but mistakes end in one line on standard error.

    Exit status: 0, or 2 for a mistake that the caller can mend, 128 + n for a signal.
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
        # Whoever read our output has left; keep the interpreter from trying once more.
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
