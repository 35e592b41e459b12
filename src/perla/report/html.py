"""HTML of elements, with all text escaped.

The text of a page may come from files of other people. `element` escapes every child and attribute
that it has not made itself, so that text can never become markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from perla.errors import visible


class Markup(str):
    """HTML made by `element`, which is not escaped again."""


Child: TypeAlias = str | Iterable[str | None] | None
"""Text, elements or lists of them; None is left out."""
VOID = ("meta", "input", "img", "br", "wbr")
"""Elements without a closing tag."""


def element(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Markup:
    """`<name attributes>children</name>`.

    Attributes that are None or False are left out; a trailing underscore of a name is dropped
    (`class_`), and other underscores become hyphens.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    if name in VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """All `children` one after another, escaped."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        parts += [escape(child)] if isinstance(child, str) else [join(child)]
    return Markup("".join(parts))


def breakable(name: str) -> Markup:
    """The dotted `name` of a setting, which may break after its dots and underscores."""
    parts = re.split(r"(?<=[._])", name)
    return join([parts[0], *((element("wbr"), part) for part in parts[1:])])


def escape(text: str) -> str:
    """`text` as HTML, without control characters; `Markup` as it is."""
    return text if isinstance(text, Markup) else html.escape(visible(text))


def data(value: object) -> Markup:
    """`value` as JSON that is safe within a `<script type="application/json">`."""
    text = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
