"""Settings by name: every field of a method's configuration, wherever it stands in it.

A field that is a choice between variants takes the variant's tag, and the variants' own fields are
settings too; those may be set only where the variant is chosen. The configuration types are all
there is to it: nothing is written down a second time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from perla.config import Config, convert, field_docs, fields, tag, variants
from perla.errors import UserError, closest, nearest
from perla.methods.peers import ours
from perla.methods.ppo import CONTINUOUS
from perla.methods.recipes import RECIPES, Method, make
from perla.methods.values import Counterfactual

ALIASES = {"k": "num_samples"}
"""Second names of settings: the paper's letters."""

Naming = Callable[[str], str]
"""How users write a setting's name: `lr`, or `--lr` on the command line."""


@dataclass(frozen=True)
class Setting:
    """A field of a configuration, or of one of its variants."""

    name: str
    type: Any
    help: str
    within: tuple[tuple[str, str], ...]
    """The choices that lead to it: (field, tag), outermost first."""


@functools.cache
def fixed_fields() -> frozenset[str]:
    """Fields whose variant the method's name decides: no setting changes it."""
    recipes = RECIPES.values()
    return frozenset(
        name for recipe in recipes for name, value in recipe.items() if isinstance(value, Config)
    )


def settings(cls: type[Config], within: tuple[tuple[str, str], ...] = ()) -> Iterator[Setting]:
    """Every setting of the configuration `cls` and of all its variants."""
    docs = field_docs(cls)
    for field in fields(cls):
        if field.name not in fixed_fields():
            yield Setting(field.name, field.type, docs[field.name], within)
        for name, member in variants(field.type).items():
            if member is not None:
                yield from settings(member, (*within, (field.name, name)))


def own(config: Method) -> dict[str, Setting]:
    """The settings of the method that `config` is of, by name: what belongs to other methods'
    variants is left out, and of counterfactual values, which have an output for each action, what
    belongs to continuous ones."""
    counterfactual = isinstance(getattr(config, "value", None), Counterfactual)
    return {
        setting.name: setting
        for setting in settings(type(config))
        if all(tag(getattr(config, f)) == t for f, t in setting.within if f in fixed_fields())
        and not (counterfactual and setting.name in CONTINUOUS)
    }


@functools.cache
def every_setting() -> dict[str, Setting]:
    """The settings of all methods, by name."""
    return {setting.name: setting for cls in get_args(Method) for setting in settings(cls)}


def configure(algo: str, preset: str, values: Mapping[str, Any], *, flag_name: Naming = str) -> Any:
    """The configuration of `algo` under `preset` with `values` (by setting, as text or not) on top.

    Raises `UserError` for an unknown setting, for a value out of range and for a setting of a
    variant that is not chosen.
    """
    todo = {ALIASES.get(name, name): value for name, value in values.items()}
    for name in todo:
        if name not in every_setting():
            raise unknown(name, [algo], every_setting(), what="setting")
    config = _apply(make(algo, preset), todo, flag_name)
    for name in todo:
        raise _misplaced(algo, config, every_setting()[name], flag_name)
    return config


def unknown(
    word: str, algos: Iterable[str], known: Iterable[str], *, what: str, flag_name: Naming = str
) -> UserError:
    """The error for a `word` that names no setting: the methods decide it, or else the nearest of
    `known`, unless one of `algos` lacks that: then why it does."""
    names = {flag_name(name): name for name in (*every_setting(), *fixed_fields())}
    translated = ours(word)
    if translated is not None:
        name, _, value = translated.partition(" ")
        hint = f"here it is {flag_name(name)} {value}".rstrip()
        refused = _first_misplaced(every_setting().get(name), algos, flag_name)
        return UserError(
            f"unknown {what} {word!r}; {hint}" + (f", and {refused}" if refused else "")
        )
    if names.get(word) in fixed_fields():
        deciding = [name for name, recipe in RECIPES.items() if names[word] in recipe]
        return UserError(f"{word} is decided by the method: {', '.join(deciding)}")
    setting = every_setting().get(names.get(closest(word, known) or "", ""))
    refused = _first_misplaced(setting, algos, flag_name)
    if refused is not None:
        return UserError(f"unknown {what} {word!r}; {refused}")
    return nearest(word, known, what=what)


def _first_misplaced(
    setting: Setting | None, algos: Iterable[str], flag_name: Naming
) -> UserError | None:
    """Why the first of `algos` that lacks `setting` does; none where all have it."""
    for algo in filter(RECIPES.__contains__, algos):
        config = make(algo)
        if setting is not None and setting.name not in own(config):
            return _misplaced(algo, config, setting, flag_name)
    return None


def _apply(config: Config, todo: dict[str, Any], flag_name: Naming) -> Any:
    changes: dict[str, Any] = {}
    for field in fields(type(config)):
        choices = variants(field.type)
        if choices:
            value = getattr(config, field.name)
            if field.name in todo and field.name not in fixed_fields():
                value = _choose(value, choices, todo.pop(field.name), flag_name(field.name))
            changes[field.name] = value if value is None else _apply(value, todo, flag_name)
        elif field.name in todo:
            value = todo.pop(field.name)
            changes[field.name] = convert(value, field.type, name=flag_name(field.name))
    return config.replace(**changes)


def _choose(
    value: Config | None, choices: Mapping[str, type[Config] | None], chosen: Any, name: str
) -> Config | None:
    """The variant called `chosen`: as the preset has it, else with its own defaults."""
    if chosen not in choices:
        raise UserError(f"{name} {chosen}: {nearest(str(chosen), choices, what='choice')}")
    if chosen == tag(value):
        return value
    struct = choices[chosen]
    return None if struct is None else struct()


def _misplaced(algo: str, config: Any, setting: Setting, flag_name: Naming) -> UserError:
    """Why `setting` has no place in the configuration of `algo`."""
    here, name = config, flag_name(setting.name)
    for field, wanted in setting.within:
        have = getattr(here, field, None)
        if field in fixed_fields() and tag(have) != wanted:
            owners = [name for name in RECIPES if tag(getattr(make(name), field, None)) == wanted]
            return UserError(f"{name} belongs to {', '.join(owners)}, and this run is {algo}")
        if not hasattr(here, field):
            break
        if tag(have) != wanted:
            choice = flag_name(field)
            return UserError(
                f"{name} belongs to {choice} {wanted}; this run has {choice} {tag(have)}"
            )
        here = have
    return UserError(f"{name} is no setting of {algo}")
