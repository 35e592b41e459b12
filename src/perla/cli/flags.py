"""An algorithm's configuration as flags: every setting by its own name, wherever it stands.

A field is a flag. A field that is a choice between variants is a flag that takes the variant's
tag, and the variants' own fields are flags too; those may be set only where the variant is chosen.
The configuration types are all there is to it: nothing is written down a second time.
"""

from __future__ import annotations

import shutil
import textwrap
from argparse import BooleanOptionalAction
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from perla.algos.recipes import RECIPES, make
from perla.cli.parser import Parser, convert
from perla.config import Config, describe, field_docs, field_groups, tag, variants
from perla.errors import UserError, nearest

GIVEN = "settings"
"""What algorithm flags are collected under, so that no name can collide with the parser's own."""


@dataclass(frozen=True)
class Flag:
    """A setting on the command line."""

    field: str
    type: Any
    help: str
    within: tuple[tuple[str, str], ...]
    """The choices that lead to it: (field, tag), outermost first."""

    @property
    def name(self) -> str:
        """As it is typed."""
        return "--" + self.field.replace("_", "-")


def fixed() -> set[str]:
    """Fields whose variant the method's name decides: no flag changes it."""
    recipes = RECIPES.values()
    return {name for recipe in recipes for name, v in recipe.items() if isinstance(v, Config)}


def flags(cls: type[Config], within: tuple[tuple[str, str], ...] = ()) -> Iterator[Flag]:
    """Every flag of the configuration `cls` and of all its variants."""
    docs = field_docs(cls)
    for field in msgspec.structs.fields(cls):
        flag = Flag(field.name, field.type, docs[field.name], within)
        if field.name not in fixed():
            yield flag
        for name, member in variants(field.type).items():
            if member is not None:
                yield from flags(member, (*within, (field.name, name)))


def every_flag() -> dict[str, Flag]:
    """The flags of all algorithms, by name."""
    classes = {type(make(algo)) for algo in RECIPES}
    return {flag.name: flag for cls in classes for flag in flags(cls)}


def add_flags(parser: Parser) -> None:
    """Make `parser` understand the flags of all algorithms. Whether a flag belongs to the one
    that is chosen is for `configure` to say."""
    for flag in every_flag().values():
        options: dict[str, Any] = {"dest": f"{GIVEN}.{flag.field}", "default": None}
        if flag.type is bool:
            options["action"] = BooleanOptionalAction
        parser.add_argument(flag.name, **options)


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The algorithm flags among parsed arguments, by field."""
    prefix = f"{GIVEN}."
    return {
        name.removeprefix(prefix): value
        for name, value in arguments.items()
        if name.startswith(prefix) and value is not None
    }


def configure(algo: str, preset: str, settings: Mapping[str, Any]) -> Any:
    """The configuration of `algo` under `preset` with `settings` (field → text) on top.

    Raises `UserError` for a value out of range and for a setting of a variant that is not chosen.
    """
    config = make(algo, preset)
    todo = dict(settings)
    config = _apply(config, todo)
    for field in todo:
        raise _misplaced(algo, config, every_flag()["--" + field.replace("_", "-")])
    return config


def _apply(config: Config, todo: dict[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    for field in msgspec.structs.fields(type(config)):
        flag = "--" + field.name.replace("_", "-")
        choices = variants(field.type)
        if choices:
            value = getattr(config, field.name)
            if field.name in todo:
                value = _choose(value, choices, todo.pop(field.name), flag)
            changes[field.name] = value if value is None else _apply(value, todo)
        elif field.name in todo:
            value = todo.pop(field.name)
            changes[field.name] = (
                convert(value, field.type, flag=flag) if isinstance(value, str) else value
            )
    return config.replace(**changes)


def _choose(
    value: Config | None, choices: Mapping[str, type[Config] | None], chosen: str, flag: str
) -> Config | None:
    """The variant called `chosen`: as the preset has it, else with its own defaults."""
    if chosen not in choices:
        raise UserError(f"{flag} {chosen}: {_hint(chosen, choices)}")
    if chosen == tag(value):
        return value
    struct = choices[chosen]
    return None if struct is None else struct()


def _hint(word: str, choices: Mapping[str, Any]) -> str:
    return str(nearest(word, choices, what="choice"))


def _misplaced(algo: str, config: Any, flag: Flag) -> UserError:
    """Why `flag` has no place in the configuration of `algo`."""
    here: Any = config
    for field, wanted in flag.within:
        have = getattr(here, field, None)
        if field in fixed() and tag(have) != wanted:
            owners = [name for name in RECIPES if tag(getattr(make(name), field, None)) == wanted]
            return UserError(f"{flag.name} belongs to {', '.join(owners)}, and this run is {algo}")
        name = "--" + field.replace("_", "-")
        if tag(have) != wanted:
            return UserError(
                f"{flag.name} belongs to {name} {wanted}; this run has {name} {tag(have)}"
            )
        here = have
    return UserError(f"{flag.name} is no setting of {algo}")


# --- Help ---------------------------------------------------------------------------------------


def explain(algo: str, preset: str) -> str:
    """The flags of `algo` with their meaning and their defaults under `preset`."""
    config = make(algo, preset)
    fields = {field.name: field for field in msgspec.structs.fields(type(config))}
    parts = [f"settings of {algo} (defaults of the preset {preset!r}):"]
    for group in field_groups(type(config)):
        rows: list[str] = []
        for name in group:
            rows += _rows(config, fields[name], 2)
        if rows:
            parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _rows(config: Config, field: Any, indent: int) -> Iterator[str]:
    value = getattr(config, field.name)
    choices = variants(field.type)
    help = field_docs(type(config))[field.name]
    name = "--" + field.name.replace("_", "-")
    if field.name not in fixed():
        if choices:
            yield _row(f"{name} {'|'.join(choices)}", help, tag(value), indent)
        elif field.type is bool:
            yield _row(f"--[no-]{name[2:]}", help, "yes" if value else "no", indent)
        else:
            yield _row(f"{name} {_metavar(field.type)}", help, _show(value), indent)
    for label, struct in choices.items():
        if struct is None or (field.name in fixed() and label != tag(value)):
            continue
        member = value if label == tag(value) and value is not None else struct()
        inner = list(msgspec.structs.fields(struct))
        deeper = indent
        if inner and field.name not in fixed():
            deeper = indent + 2
            yield " " * deeper + f"with {name} {label}:"
        for child in inner:
            yield from _rows(member, child, deeper + 2 if deeper > indent else deeper)


def _row(left: str, help: str, default: str, indent: int) -> str:
    column = 34
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    lines = textwrap.wrap(f"{help} [{default}]", max(24, width - column))
    head = " " * indent + left
    if len(head) + 2 > column:
        return "\n".join([head, *(" " * column + line for line in lines)])
    return "\n".join([head.ljust(column) + lines[0], *(" " * column + x for x in lines[1:])])


def _metavar(type: Any) -> str:
    text = describe(type)
    if text.startswith("one of "):
        return text.removeprefix("one of ").replace(", ", "|")
    word = "N" if "whole" in text else "X"
    return word + ("|none" if text.endswith("none") else "")


def _show(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
