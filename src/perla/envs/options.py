"""Options of environments: read from text, and held against the arguments that they become.

On the command line every option is text, and `bool("False")` is true. So text is read as a Python
literal where it is one. Before an option becomes an argument of an environment's constructor, it is
compared with the argument's annotation, or else with its default, and refused if it cannot be what
was meant. Worker processes import this module, so it does not import JAX.
"""

from __future__ import annotations

import ast
import collections.abc
import enum
import inspect
import math
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np

from perla.config import members
from perla.envs import makers
from perla.envs.values import describe_value
from perla.errors import UserError

WORDS = {"true": True, "false": False, "none": None, "null": None}
"""Words of other languages for literals, in any case."""
OF_GYMNASIUM = ("limit", "reward", "images")
"""Options of the bridge to Gymnasium; all others are the environment's."""
OF_PETTINGZOO = (*OF_GYMNASIUM, "mortal", "state")
"""Options of the bridges to PettingZoo and to RLlib's interface."""
LARGEST = 2**63 - 1
"""The largest whole number that every reader of JSON keeps."""


def read(text: str) -> Any:
    """The value of an option in text: a Python literal (`False`, `None`, `3`, `1e6`, `(1, 2)`,
    `'text'`), a number, or else the text itself."""
    if text.strip().lower() in WORDS:
        return WORDS[text.strip().lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of odd escapes in text.
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def plain(name: str, value: Any) -> Any:
    """`value` as JSON has it: tuples become lists, NumPy's numbers Python's, members of enums their
    names. Raises `UserError` for any other object, and for numbers that are not finite."""
    if value is None or (isinstance(value, (bool, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(name, value.tolist())
    if isinstance(value, int) and abs(value) <= LARGEST:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [plain(name, entry) for entry in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(name, entry) for key, entry in value.items()}
    raise UserError(
        f"{name} = {_show(value)}: an option is true, false, none, a finite number, text, or a "
        "list or dict of these"
    )


def fit(
    id: str,
    maker: Callable[..., Any],
    options: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`options` as arguments of `maker`, which makes the environment `id`.

    Lists become tuples, and names of members become members, where the argument's annotation or
    default says so. `defaults` are further defaults, of arguments that a registry sets. Raises
    `UserError` for an option that is not of its annotation, and for text where the default is
    anything else. Names are not checked.
    """
    parameters = _parameters(maker)
    fitted: dict[str, Any] = {}
    for name, value in options.items():
        parameter = parameters.get(name)
        annotation = parameter.annotation if parameter else inspect.Parameter.empty
        default = parameter.default if parameter else inspect.Parameter.empty
        if defaults is not None and name in defaults:
            default = defaults[name]
        where = f"{id}: {name} = {_show(value)}"
        if value is None and default is None:
            fitted[name] = None
        elif annotation is not inspect.Parameter.empty:
            fitted[name] = _fit_annotation(where, value, annotation)
        else:
            fitted[name] = _fit_default(where, value, default)
    return fitted


def _parameters(maker: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of `maker`, with annotations evaluated; those that cannot be are left out."""
    try:
        parameters = inspect.signature(maker).parameters
    except (TypeError, ValueError):  # Not every callable says what it takes.
        return {}
    target = makers.unwrap(maker)
    function = target.__init__ if inspect.isclass(target) else target
    scope = getattr(inspect.unwrap(function), "__globals__", {})

    def evaluated(annotation: Any) -> Any:
        if not isinstance(annotation, str):
            return annotation
        try:
            return eval(annotation, dict(scope))
        except Exception:  # Annotations may name imports that exist for type checkers only.
            return inspect.Parameter.empty

    return {
        name: parameter.replace(annotation=evaluated(parameter.annotation))
        for name, parameter in parameters.items()
    }


class _Unfit(Exception):
    """The value is not of the type."""


def _fit_annotation(where: str, value: Any, annotation: Any) -> Any:
    try:
        return _as(value, annotation)
    except _Unfit:
        text = str in members(annotation) and isinstance(value, (int, float))
        hint = "; text is quoted twice: '\"1.0\"'" if text else ""
        raise UserError(f"{where}: expected {_describe(annotation)}{hint}") from None


def _fit_default(where: str, value: Any, default: Any) -> Any:
    """`value`, unless it is text and the `default` another plain value."""
    if isinstance(default, enum.Enum):
        return _fit_annotation(where, value, type(default) | None)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and isinstance(default, (bool, int, float, list, tuple, dict)):
        raise UserError(
            f"{where}: expected {_describe(type(default))}, as its default {_show(default)} is"
        )
    return value


def _as(value: Any, kind: Any) -> Any:
    """`value` as an object of the type `kind`. Raises `_Unfit` if it is none; types that are
    neither plain nor containers of plain ones accept anything."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return _as(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _first(value, arguments)
    if origin is Literal:
        return _require(value, any(value == one and type(value) is type(one) for one in arguments))
    if kind in (None, types.NoneType):
        return _require(value, value is None)
    if not inspect.isclass(origin) or origin is object:
        return value
    if issubclass(origin, enum.Enum):
        return _member(value, origin)
    if origin in _PLAIN:
        kinds, but = _PLAIN[origin]
        value = int(value) if origin is int and _is_whole(value) else value
        return _require(value, isinstance(value, kinds) and not isinstance(value, but))
    if issubclass(origin, (tuple, list, set, frozenset)):
        return _sequence(value, origin, arguments)
    if issubclass(origin, collections.abc.Mapping):
        return _require(value, isinstance(value, Mapping))
    if issubclass(origin, collections.abc.Iterable):  # Text is a sequence, which nobody means.
        several = isinstance(value, (list, tuple, set, origin))
        return _require(value, several and not isinstance(value, str))
    if origin is collections.abc.Callable:
        return _require(value, callable(value))
    return value


_PLAIN: dict[Any, tuple[Any, Any]] = {
    bool: ((bool, np.bool_), ()),
    int: ((int, np.integer), bool),
    float: ((int, float, np.integer, np.floating), bool),
    str: (str, ()),
}
"""Plain types: the types that are accepted for each, and those that are not nevertheless."""


def _first(value: Any, kinds: tuple[Any, ...]) -> Any:
    """`value` as the first of `kinds` that it fits."""
    for kind in kinds:
        try:
            return _as(value, kind)
        except _Unfit:
            continue
    raise _Unfit


def _member(value: Any, kind: type[enum.Enum]) -> enum.Enum:
    """The member of an enum, by itself, by its name or by its value."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    try:
        return kind(value)
    except (ValueError, TypeError):
        raise _Unfit from None


def _sequence(value: Any, kind: type, arguments: tuple[Any, ...]) -> Any:
    """A list or tuple as a `kind` of entries that are of the types `arguments`."""
    _require(value, isinstance(value, (list, tuple, set, frozenset)))
    entries = list(value)
    if len(arguments) == 1 or arguments[1:] == (...,):
        return kind(_as(entry, arguments[0]) for entry in entries)
    if arguments and issubclass(kind, tuple):
        _require(value, len(entries) == len(arguments))
        return tuple(map(_as, entries, arguments))
    return kind(entries) if kind in (tuple, list, set, frozenset) else value


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def _require(value: Any, fits: bool) -> Any:
    if not fits:
        raise _Unfit
    return value


def _describe(kind: Any) -> str:
    """The values of the type `kind` in words."""
    if get_origin(kind) is Annotated:
        return _describe(get_args(kind)[0])
    kinds = members(kind)
    if len(kinds) > 1:
        return " or ".join(map(_describe, kinds))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(kind.__members__)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    words |= {tuple: "a tuple", list: "a list", dict: "a dict", types.NoneType: "none"}
    origin = get_origin(kind) or kind
    return words.get(origin, getattr(origin, "__name__", str(origin)))


def _show(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, (list, tuple, dict)) else describe_value(value)
