"""`perla completion`: scripts that complete commands, flags and names in a shell."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from perla.cli.parser import Parser, collect
from perla.errors import nearest

SHELLS = {
    "bash": "perla completion bash > ~/.local/share/bash-completion/completions/perla",
    "zsh": "perla completion zsh > ~/.zfunc/_perla   (a folder of $fpath)",
    "fish": "perla completion fish > ~/.config/fish/completions/perla.fish",
}
"""Shell → the command that installs its script."""
FOLDERS = ("dir", "out", "what")
"""Arguments that take folders."""


def completion_command(argv: Sequence[str]) -> int:
    """Print the script of a shell."""
    rows = "\n".join(f"  {command}" for command in SHELLS.values())
    parser = Parser(
        "completion",
        "Print a script that completes perla's commands, flags, methods and environments:\n\n"
        f"{rows}\n\nIt knows the names of this version; print it again after an update.",
    )
    parser.add_argument("shell", metavar="|".join(SHELLS), help="the shell")
    shell = parser.parse(argv).shell
    if shell not in SHELLS:
        raise nearest(shell, SHELLS, what="shell")

    import shtab

    print(shtab.complete(whole_parser(), shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """A parser of all commands, with the names that their arguments may have. It is for completion
    only: the parsers of the commands accept more."""
    from perla.cli import COMMANDS, home

    root = argparse.ArgumentParser(prog="perla", add_help=True)
    root.add_argument("--version", action="store_true", help="print the version")
    commands = root.add_subparsers()
    for command, about in COMMANDS.items():
        module = importlib.import_module(home(command))
        parser = collect(getattr(module, f"{command}_command"))
        named = commands.add_parser(
            command, help=about, parents=[parser], add_help=False, conflict_handler="resolve"
        )
        _add_names(command, named)
    return root


def _add_names(command: str, parser: argparse.ArgumentParser) -> None:
    """Give the arguments of a command the names that they may have, and hidden flags their help."""
    import shtab

    from perla.cli.flags import GIVEN
    from perla.cli.listing import LISTS
    from perla.cli.suites import EXECUTORS
    from perla.envs.registry import FAMILIES
    from perla.experiments.catalogue import EXPERIMENTS
    from perla.methods.presets import PRESETS
    from perla.methods.recipes import RECIPES
    from perla.methods.settings import every_setting

    envs = [f"{prefix}:{name}" for prefix, family in FAMILIES.items() for name in family.EXAMPLES]
    names = {
        "algo": RECIPES,
        "env": envs,
        "preset": PRESETS,
        "executor": EXECUTORS,
        "experiment": EXPERIMENTS,
        "shell": SHELLS,
    }
    if command == "list":
        names["what"] = LISTS
    elif command == "compare":
        names["what"] = RECIPES
    settings = every_setting()
    for action in parser._actions:
        setting = settings.get(action.dest.removeprefix(f"{GIVEN}."))
        if action.help == argparse.SUPPRESS and setting is not None:
            action.help = setting.help
        if action.dest in names:
            action.choices = list(names[action.dest])
        # shtab reads an attribute that argparse's actions do not declare.
        elif action.dest in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.dest == "file":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
