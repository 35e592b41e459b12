"""Settings by name: every field of a method's configuration, at any depth.

A field that is a choice between variants takes the variant's tag. The fields of the variants are
settings too, which may be set only where their variant is chosen. All of it is derived from the
configuration types.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from perla import plugins
from perla.config import Config, convert, field_docs, fields, tag, variants
from perla.errors import UserError, closest, nearest
from perla.methods.method import Method
from perla.methods.peers import EQUIVALENTS, translate
from perla.methods.ppo import CONTINUOUS
from perla.methods.recipes import RECIPES, deciding, learners, make
from perla.methods.values import Counterfactual

ALIASES = {"k": "num_samples"}
"""Second names of settings: the paper's letters."""

Naming = Callable[[str], str]
"""The spelling of a setting's name for the user: `lr`, or `--lr` on the command line."""


@dataclass(frozen=True)
class Setting:
    """A field of a configuration, or of one of its variants."""

    name: str
    type: Any
    help: str
    within: tuple[tuple[str, str], ...]
    """The choices that it depends on: (field, tag), outermost first."""


def fixed_fields() -> frozenset[str]:
    """Fields whose variant the method decides, of all learners."""
    return frozenset(name for learner in learners().values() for name in learner.decided)


def settings(cls: type[Config], within: tuple[tuple[str, str], ...] = ()) -> Iterator[Setting]:
    """Every setting of the configuration `cls` and of all its variants."""
    docs = field_docs(cls)
    for field in fields(cls):
        if field.name not in cls.decided:
            yield Setting(field.name, field.type, docs[field.name], within)
        for name, member in variants(field.type).items():
            if member is not None:
                yield from settings(member, (*within, (field.name, name)))


def available(config: Method) -> dict[str, Setting]:
    """The settings of the method that `config` belongs to, by name.

    Settings of other methods' variants are left out, and with a counterfactual critic, which has an
    output per action, those of continuous actions.
    """
    counterfactual = isinstance(getattr(config, "value", None), Counterfactual)
    decided = config.decided
    return {
        setting.name: setting
        for setting in settings(type(config))
        if all(tag(getattr(config, f)) == t for f, t in setting.within if f in decided)
        and not (counterfactual and setting.name in CONTINUOUS)
    }


def every_setting() -> dict[str, Setting]:
    """The settings of all methods, by name."""
    return _every_setting(plugins.revision())


@functools.cache
def _every_setting(revision: int) -> dict[str, Setting]:
    return {setting.name: setting for cls in learners().values() for setting in settings(cls)}


def configure(algo: str, preset: str, values: Mapping[str, Any], *, flag_name: Naming = str) -> Any:
    """The configuration of `algo` under `preset` with `values` (by setting, as text or not) on top.

    A value may also be a configuration (`value=Embedded(critic_input="global")`), of a field that
    the method decides as well. Raises `UserError` for an unknown setting, for a value out of range
    and for a setting of a variant that is not chosen.
    """
    whole = {name: value for name, value in values.items() if isinstance(value, Config)}
    parts = {name: value for name, value in values.items() if name not in whole}
    return override(algo, make(algo, preset, **whole), parts, flag_name=flag_name)


def override(
    algo: str, config: Method, values: Mapping[str, Any], *, flag_name: Naming = str
) -> Any:
    """The configuration `config` of `algo` with `values` (by setting, as text or not) on top.
    Raises `UserError` as `configure`."""
    todo = {ALIASES.get(name, name): value for name, value in values.items()}
    for name in todo:
        if name not in every_setting():
            raise unknown(name, [algo], every_setting(), what="setting")
    config = _apply(config, todo, flag_name)
    for name in todo:
        raise _misplaced(algo, config, every_setting()[name], flag_name)
    return config


# --- Errors -------------------------------------------------------------------------------------


def unknown(
    word: str, algos: Iterable[str], known: Iterable[str], *, what: str, flag_name: Naming = str
) -> UserError:
    """The error for a `word` that names no setting.

    It translates another library's name, names the methods that decide a fixed field, or suggests
    the nearest of `known`. Where one of `algos` lacks the suggested setting, the error says so.
    """
    algos, known = list(algos), list(known)
    fields_by_name = {flag_name(name): name for name in (*every_setting(), *fixed_fields())}
    own = {
        flag_name(name)
        for algo in filter(RECIPES.__contains__, algos)
        for name in available(make(algo))
    }
    translated = translate(word)
    if translated is not None:
        name, value = translated
        if flag_name(name) not in own and flag_name(EQUIVALENTS.get(name, "")) in own:
            translated = EQUIVALENTS[name], value
        return UserError(f"unknown {what} {word!r}; {_hint(*translated, algos, known, flag_name)}")
    if fields_by_name.get(word) in fixed_fields():
        methods = deciding(fields_by_name[word])
        return UserError(f"{word} is decided by the method: {', '.join(methods)}")
    close = closest(word, known, preferred=own) or ""
    setting = every_setting().get(fields_by_name.get(close, ""))
    refusal = _first_misplaced(setting, algos, flag_name)
    if refusal is not None:
        return UserError(f"unknown {what} {word!r}; {refusal}")
    return nearest(word, known, what=what, preferred=own)


def _hint(
    name: str, value: str, algos: Iterable[str], known: Iterable[str], flag_name: Naming
) -> str:
    """A clause with our `name` for a setting, and why it cannot be set here, if so."""
    if name in fixed_fields():
        return f"here the method decides it: {', '.join(deciding(name))}"
    hint = f"here it is {flag_name(name)} {value}".rstrip()
    setting = every_setting().get(name)
    refusal = _first_misplaced(setting, algos, flag_name)
    if refusal is not None:
        return f"{hint}, and {refusal}"
    if setting is None and flag_name(name) not in known:
        return f"{hint}, which cannot be set here"
    return hint


def _first_misplaced(
    setting: Setting | None, algos: Iterable[str], flag_name: Naming
) -> UserError | None:
    """The error for the first of `algos` that lacks `setting`; none where all have it."""
    for algo in filter(RECIPES.__contains__, algos):
        config = make(algo)
        if setting is not None and setting.name not in available(config):
            return _misplaced(algo, config, setting, flag_name)
    return None


def _misplaced(algo: str, config: Any, setting: Setting, flag_name: Naming) -> UserError:
    """The error for a `setting` that the configuration of `algo` has no place for."""
    current, name = config, flag_name(setting.name)
    for field, wanted in setting.within:
        present = getattr(current, field, None)
        owners = deciding(field, wanted)
        if owners and tag(present) != wanted:
            return UserError(f"{name} belongs to {', '.join(owners)}, and this run is {algo}")
        if not hasattr(current, field):
            break
        if tag(present) != wanted:
            choice = flag_name(field)
            return UserError(
                f"{name} belongs to {choice} {wanted}; this run has {choice} {tag(present)}"
            )
        current = present
    return UserError(f"{name} is no setting of {algo}")


# --- Setting them -------------------------------------------------------------------------------


def _apply(config: Config, todo: dict[str, Any], flag_name: Naming) -> Any:
    changes: dict[str, Any] = {}
    for field in fields(type(config)):
        choices = variants(field.type)
        if choices:
            value = getattr(config, field.name)
            if field.name in todo and field.name not in config.decided:
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
    chosen = "none" if chosen is None else chosen
    if not isinstance(chosen, str) or chosen not in choices:
        raise UserError(f"{name} {chosen}: {nearest(str(chosen), choices, what='choice')}")
    if chosen == tag(value):
        return value
    struct = choices[chosen]
    return None if struct is None else struct()
