"""Configurations: frozen, strict, the same in Python, in JSON and on the command line.

A configuration is a `msgspec.Struct`. A choice between variants is a union of structs with
different tags, or an `Open` base, to whose variants other packages may add. Field types carry the
allowed range; the string under a field is its help.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import re
import textwrap
import types
from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import msgspec
from msgspec import Meta

from perla.errors import UserError, nearest, visible

VERSION = 2
"""Version of the settings' names, stored in run folders. Version 1: perla's first names."""

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
"""A whole number from 1 on."""
Positive = Annotated[float, Meta(gt=0)]
"""A number > 0."""
NonNegative = Annotated[float, Meta(ge=0)]
"""A number ≥ 0."""
Fraction = Annotated[float, Meta(ge=0, le=1)]
"""A number from 0 to 1."""
Groups = Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)] | None
"""Group of each agent, numbered from 0 on; agents of a group share parameters. None: all do."""

ConfigType = TypeVar("ConfigType", bound="Config")


class Config(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """Base of every configuration: immutable, hashable, validated on construction.

    Raises `UserError` for a value of the wrong type or out of range.
    """

    decided: ClassVar[tuple[str, ...]] = ()
    """Fields whose variant the method decides: no setting changes it."""

    def __post_init__(self) -> None:
        for field in fields(type(self)):
            check(getattr(self, field.name), field.type, name=field.name)

    def replace(self: ConfigType, **changes: Any) -> ConfigType:
        """A copy with `changes`, validated again."""
        for name in changes:
            if name not in self.__struct_fields__:
                raise nearest(name, self.__struct_fields__, what="setting")
        return msgspec.structs.replace(self, **changes)


class Open(Config, frozen=True):
    """Base of a base of variants. Its direct subclasses return the variants, by their tags."""

    @classmethod
    def variants(cls) -> Mapping[str, type[Any]]:
        """The variants by tag."""
        raise NotImplementedError


@functools.cache
def fields(cls: type[Config]) -> tuple[Any, ...]:
    """The fields of `cls` with name and type, cached: msgspec evaluates them on every call."""
    return msgspec.structs.fields(cls)


def check(value: Any, type: Any, *, name: str) -> None:
    """Raise a `UserError` that names the setting unless `value` is of `type`, finite and without
    control characters."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value}: expected a finite number")
    choices = variants(type)
    if choices:
        if not any(value is c or value.__class__ is c for c in choices.values()):
            raise UserError(f"{name} = {value!r}: expected {describe(type)}")
        return
    plain = msgspec.to_builtins(value)
    try:
        msgspec.convert(plain, type)
    except (msgspec.ValidationError, OverflowError):
        raise UserError(f"{name} = {value!r}: expected {describe(type)}") from None
    check_text(plain, name=name)


def check_text(value: Any, *, name: str) -> None:
    """Raise a `UserError` if a text in the JSON-like `value` has control characters."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += [*item, *item.values()]
        elif isinstance(item, (list, tuple)):
            stack += item
        elif isinstance(item, str) and visible(item) != item:
            raise UserError(f"{name}: {item!r} has control characters")


def convert(value: Any, type: Any, *, name: str) -> Any:
    """Convert `value`, text or not, to `type`.

    Whole numbers may be floats, as `1e6` is. In text they may be written `1e6` or `1_000_000`,
    lists `0,0,1`, and None as `none`. Raises `UserError` with the setting's name and its allowed
    values.
    """
    try:
        if (
            isinstance(value, float)
            and value.is_integer()
            and not any(map(_is_float, members(type)))
        ):
            value = int(value)
        if not isinstance(value, str):
            return msgspec.convert(value, type)
        return msgspec.convert(_literal(value, type), type, strict=False)
    except (ValueError, OverflowError):
        raise UserError(f"{name} {value}: expected {describe(type)}") from None


def to_plain(value: Any) -> Any:
    """`value`, with Python's numbers for scalars of NumPy and JAX, and tuples of numbers for
    arrays, also within dictionaries, lists and tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: to_plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(map(to_plain, value))
    return value


def _literal(text: str, type: Any) -> Any:
    if text.lower() == "none":
        return None
    for element in filter(None, map(_element, members(type))):
        return [_literal(part, element) for part in text.split(",")]
    if re.fullmatch(r"[+-]?[\d_]+", text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        raise ValueError
    if number.is_integer() and not any(_is_float(member) for member in members(type)):
        return int(number)
    return number


def _element(type: Any) -> Any:
    """The type of a list's entries; none if `type` is no list."""
    while get_origin(type) is Annotated:
        type = type.__origin__
    return get_args(type)[0] if get_origin(type) is tuple else None


def _is_float(type: Any) -> bool:
    return type is float or getattr(type, "__origin__", None) is float


def check_version(found: object, *, source: str) -> None:
    """Raise `UserError` unless `found` is the current version of the settings' names."""
    if found != VERSION:
        raise UserError(
            f"{source}: has settings of version {1 if found is None else found}, and this perla "
            f"reads {VERSION}; train again, or use the perla that wrote it"
        )


def to_json(config: Config) -> bytes:
    """`config` as indented JSON; `from_json` is its inverse."""
    return encode(config)


def encode(value: Any) -> bytes:
    """`value` as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def from_json(text: bytes, type: type[ConfigType], *, source: str) -> ConfigType:
    """Read a configuration strictly. Raises `UserError`, with `source` and the position in it, for
    an unknown key or a wrong value."""
    try:
        return decode(msgspec.json.decode(text), type)
    except RecursionError:
        raise UserError(f"{source}: nested too deep") from None
    except (msgspec.DecodeError, UserError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: {error}") from None


def decode(plain: Any, type: Any, *, path: str = "$") -> Any:
    """The value of `type` with the JSON value `plain`: strictly, with the variants of open bases.

    Raises `UserError` with the position, such as `$.config.lr`, of an unknown key or wrong value.
    """
    choices = variants(type)
    if not choices:
        try:
            return msgspec.convert(plain, type)
        except msgspec.ValidationError as error:
            message, _, inner = str(error).partition(" - at `$")
            raise UserError(f"{message} - at `{path}{inner.rstrip('`')}`") from None
    if plain is None and "none" in choices:
        return None
    if not isinstance(plain, dict):
        raise UserError(f"Expected `object`, got {plain!r} - at `{path}`")
    struct = _struct(plain, choices, path)
    known = {field.name: field for field in fields(struct)}
    values = {}
    for name, value in plain.items():
        if name in known:
            values[name] = decode(value, known[name].type, path=f"{path}.{name}")
        elif name != struct.__struct_config__.tag_field:
            raise UserError(f"{nearest(name, known, what='field')} - at `{path}`")
    for field in fields(struct):
        if field.required and field.name not in values:
            raise UserError(f"Object missing required field `{field.name}` - at `{path}`")
    try:
        return struct(**values)
    except UserError as error:
        raise UserError(f"{error} - at `{path}`") from None


def _struct(plain: dict[str, Any], choices: Mapping[str, Any], path: str) -> Any:
    """The struct of a JSON object: the variant with its tag, which may be left out if there is only
    one."""
    structs = [struct for struct in choices.values() if struct is not None]
    name = plain.get("kind")
    if name is None and len(structs) == 1:
        return structs[0]
    if name is None:
        raise UserError(f"Object missing required field `kind` - at `{path}`")
    if not isinstance(name, str) or choices.get(name) is None:
        raise UserError(f"{nearest(str(name), choices, what='kind')} - at `{path}`")
    return choices[name]


# --- Types of fields -----------------------------------------------------------------------------


def members(type: Any) -> tuple[Any, ...]:
    """The alternatives of a union, in order; for any other type, itself."""
    if get_origin(type) in (Union, types.UnionType):
        return get_args(type)
    return (type,)


def variants(type: Any) -> dict[str, type[Config] | None]:
    """Tag → struct of a union of configurations or of an open base (`none` → None); empty for any
    other type."""
    alternatives = members(type)
    named: dict[str, type[Config] | None] = {}
    for member in alternatives:
        if inspect.isclass(member) and issubclass(member, Config):
            named |= member.variants() if _is_open(member) else {tag(member): member}
    return named | ({"none": None} if named and types.NoneType in alternatives else {})


def _is_open(cls: type[Config]) -> TypeGuard[type[Open]]:
    """True for a direct subclass of `Open`, which stands for all its variants."""
    return Open in cls.__bases__


def tag(config: Config | type[Config] | None) -> str:
    """The tag of a variant, by which it is chosen."""
    return "none" if config is None else str(config.__struct_config__.tag)


def describe(type: Any) -> str:
    """The allowed values of `type` in words: `a number > 0 or none`."""
    if variants(type):
        return "one of " + ", ".join(variants(type))
    alternatives = members(type)
    words = [_describe_one(m) for m in alternatives if m is not types.NoneType]
    return " or ".join(words + (["none"] if types.NoneType in alternatives else []))


def _describe_one(type: Any) -> str:
    metas: tuple[Any, ...] = ()
    if get_origin(type) is Annotated:
        type, *rest = get_args(type)
        metas = tuple(m for m in rest if isinstance(m, Meta))
    if get_origin(type) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(type))
    if get_origin(type) is tuple:
        return "a list, each " + _describe_one(get_args(type)[0])
    word = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    text = word.get(type, getattr(type, "__name__", str(type)))
    for meta in metas:
        low = next((f"{o} {b}" for o, b in ((">=", meta.ge), (">", meta.gt)) if b is not None), "")
        high = next((f"{o} {b}" for o, b in (("<=", meta.le), ("<", meta.lt)) if b is not None), "")
        text += " " + " and ".join(bound for bound in (low, high) if bound)
    return text


# --- Docstrings of fields ------------------------------------------------------------------------


@functools.cache
def _fields_in_source(cls: type[Config]) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Paragraphs of (field, help) of `cls`: its own in source order, then those of its bases. A
    field that a class declares again stands in that class's paragraphs only."""
    paragraphs: list[tuple[tuple[str, str], ...]] = []
    seen: set[str] = set()
    for owner in cls.__mro__[: cls.__mro__.index(Config)]:
        for paragraph in _paragraphs(owner):
            names = set(cls.__struct_fields__) - seen
            kept = tuple((name, text) for name, text in paragraph if name in names)
            seen |= {name for name, _ in kept}
            paragraphs += [kept] if kept else []
    return tuple(paragraphs)


def _paragraphs(cls: type) -> list[list[tuple[str, str]]]:
    """Paragraphs of (annotated name, help) in the source of one class, without its bases; none for
    a class without source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return []
    lines = source.splitlines()
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    paragraphs: list[list[tuple[str, str]]] = []
    for node, follower in zip(body, [*body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        text = ""
        if isinstance(follower, ast.Expr) and isinstance(follower.value, ast.Constant):
            text = inspect.cleandoc(str(follower.value.value))
        if not paragraphs or not lines[node.lineno - 2].strip():
            paragraphs.append([])
        paragraphs[-1].append((node.target.id, " ".join(text.split())))
    return paragraphs


def field_docs(cls: type[Config]) -> dict[str, str]:
    """The help of each field of `cls`: the string literal under it."""
    written = {name: text for paragraph in _fields_in_source(cls) for name, text in paragraph}
    return {name: written.get(name, "") for name in cls.__struct_fields__}


def field_groups(cls: type[Config]) -> list[list[str]]:
    """The fields of `cls` in the paragraphs of its source, then those of its bases."""
    return [[name for name, _ in paragraph] for paragraph in _fields_in_source(cls)]
