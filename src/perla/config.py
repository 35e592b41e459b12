"""Configurations: frozen, strict, the same in Python, in JSON and on the command line.

A configuration is a `msgspec.Struct`; a choice between variants is a union of structs, told apart
by their tag. Field types carry the allowed range, the text under a field is its help.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from perla.errors import UserError, nearest

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]

ConfigType = TypeVar("ConfigType", bound="Config")


class Config(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """The base of every configuration: immutable, hashable, checked on construction.

    Raises `UserError` for a value of the wrong type or out of range.
    """

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(type(self)):
            check(getattr(self, field.name), field.type, name=field.name)

    def replace(self: ConfigType, **changes: Any) -> ConfigType:
        """A copy with `changes`, checked again."""
        for name in changes:
            if name not in self.__struct_fields__:
                raise nearest(name, self.__struct_fields__, what="setting")
        return msgspec.structs.replace(self, **changes)


def check(value: Any, type: Any, *, name: str) -> None:
    """Raise a `UserError` that names the setting unless `value` is a finite `type`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value}: expected a finite number")
    try:
        msgspec.convert(msgspec.to_builtins(value), type)
    except msgspec.ValidationError as error:
        raise UserError(f"{name} = {value!r}: {str(error).lower()}") from None


def to_json(config: Config) -> bytes:
    """`config` as indented JSON; `from_json` is its inverse."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"


def from_json(text: bytes, type: type[ConfigType], *, source: str) -> ConfigType:
    """Read a configuration strictly: an unknown key or a wrong value is a `UserError` that names
    `source` and the place in it."""
    try:
        return msgspec.json.decode(text, type=type)
    except (msgspec.DecodeError, UserError) as error:
        raise UserError(f"{source}: {error}") from None
