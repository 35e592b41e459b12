"""Settings of the algorithms as flags, and their help."""

from __future__ import annotations

import shutil
import textwrap
from argparse import SUPPRESS, BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from perla.cli.parser import Parser
from perla.config import Config, describe, field_docs, field_groups, fields, tag, variants
from perla.errors import UserError
from perla.methods.recipes import RECIPES, make
from perla.methods.settings import ALIASES, available, every_setting, unknown

GIVEN = "settings"
"""Prefix of the algorithms' flags among the arguments, so that no name can collide."""


def flag_name(setting: str) -> str:
    """The flag of a setting."""
    return "--" + setting.replace("_", "-")


def parse(
    parser: Parser, argv: Sequence[str], algos: Callable[[Namespace], Sequence[str]]
) -> Namespace:
    """The arguments of `parser`, extended by the flags of all algorithms.

    `algos` returns the chosen ones, for hints about unknown flags. `configure` refuses known flags
    that do not belong to them.
    """
    for setting in every_setting().values():
        options: dict[str, Any] = {
            "dest": f"{GIVEN}.{setting.name}",
            "default": None,
            "help": SUPPRESS,
        }
        if setting.type is bool:
            options["action"] = BooleanOptionalAction
        aliases = [alias for alias, name in ALIASES.items() if name == setting.name]
        parser.add_argument(flag_name(setting.name), *map(flag_name, aliases), **options)

    def error(flag: str, known: Sequence[str], arguments: Namespace) -> UserError:
        return unknown(flag, algos(arguments), known, what="flag", flag_name=flag_name)

    return parser.parse(argv, unknown=error)


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The algorithms' flags among parsed arguments, by setting."""
    prefix = f"{GIVEN}."
    return {
        name.removeprefix(prefix): value
        for name, value in arguments.items()
        if name.startswith(prefix) and value is not None
    }


# --- Help ---------------------------------------------------------------------------------------


def explain(algo: str, preset: str) -> str:
    """The help of `algo`: its recipe, and its flags with their defaults under `preset`."""
    config = make(algo, preset)
    shown = {*config.decided, *available(config)}
    by_name = {field.name: field for field in fields(type(config))}
    parts = [f"{algo}: {RECIPES[algo].about}\n  = {_recipe(RECIPES[algo].settings)}"]
    parts += [f"settings of {algo} (defaults of the preset {preset!r}):"]
    for group in field_groups(type(config)):
        rows: list[str] = []
        for name in filter(shown.__contains__, group):
            rows += _rows(config, by_name[name], 2)
        if rows:
            parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _recipe(settings: Mapping[str, Any]) -> str:
    """Settings in words; those of a variant only if they differ from its defaults."""
    words = []
    for name, value in settings.items():
        text = f"{name} {tag(value) if isinstance(value, Config) else show(value)}"
        if isinstance(value, Config):
            plain = type(value)()
            inner = {f: getattr(value, f) for f in value.__struct_fields__}
            changed = {f: inner[f] for f in inner if inner[f] != getattr(plain, f)}
            text += f" ({_recipe(changed)})" if changed else ""
        words.append(text)
    return ", ".join(words)


def _rows(config: Config, field: Any, indent: int) -> Iterator[str]:
    """Help of a field and of the settings of its variants."""
    value = getattr(config, field.name)
    choices = variants(field.type)
    help = field_docs(type(config))[field.name]
    name = flag_name(field.name)
    if field.name not in config.decided:
        if choices:
            yield row(f"{name} {'|'.join(choices)}", help, tag(value), indent)
        elif field.type is bool:
            yield row(f"--[no-]{name[2:]}", help, "yes" if value else "no", indent)
        else:
            yield row(f"{name} {_metavar(field.type)}", help, show(value), indent)
    for label, struct in choices.items():
        if struct is None or (field.name in config.decided and label != tag(value)):
            continue
        member = value if label == tag(value) and value is not None else struct()
        inner = list(fields(struct))
        deeper = indent
        if inner and field.name not in config.decided:
            deeper = indent + 2
            yield " " * deeper + f"with {name} {label}:"
        for child in inner:
            yield from _rows(member, child, deeper + 2 if deeper > indent else deeper)


def row(left: str, help: str, default: str, indent: int = 2) -> str:
    """A flag, its help and its default, wrapped to the terminal's width."""
    column = 34
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    lines = textwrap.wrap(f"{help} [{default}]", max(24, width - column), break_on_hyphens=False)
    head = " " * indent + left
    if len(head) + 2 > column:
        return "\n".join([head, *(" " * column + line for line in lines)])
    return "\n".join([head.ljust(column) + lines[0], *(" " * column + x for x in lines[1:])])


def _metavar(type: Any) -> str:
    words = []
    for text in describe(type).split(" or "):
        if text.startswith("one of "):
            words += text.removeprefix("one of ").split(", ")
        else:
            word = "N" if "whole" in text else "X"
            word = f"{word},…" if text.startswith("a list") else word
            words.append("none" if text == "none" else word)
    return "|".join(words)


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(show, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
