"""Parts by name: perla's own, and those of other packages.

A registry is a mapping from names to parts. Another package adds a part by `register` in Python, or
by an entry point of the registry's group, which is loaded on first use: then every process has it.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires
from typing import Any, Generic, TypeVar

from perla.config import Config, tag
from perla.errors import UserError

Part = TypeVar("Part")

_changes: Counter[str] = Counter()
"""Changes of each group's registry in this process."""


class Registry(Mapping[str, Part], Generic[Part]):
    """Parts of one kind by name.

    kind:   the kind of part in words: "mixer"
    group:  the group of its entry points: "perla.mixers"
    own:    perla's parts; a string `module:attribute` is imported on first use
    check:  raises `UserError` if a part of another package is not of this kind
    """

    def __init__(
        self,
        kind: str,
        group: str,
        own: Mapping[str, Part | str],
        *,
        check: Callable[[str, Any], None],
    ) -> None:
        self.kind, self.group, self._check = kind, group, check
        self._parts: dict[str, Any] = dict(own)
        self._added: set[str] = set()
        self._searched = False

    def register(self, name: str, part: Part) -> None:
        """Add a part, in place of an earlier one that was added so under this name.

        Raises `UserError` if the name is taken by perla or an installed package, or if the part is
        not of this kind.
        """
        if name in self._all() and name not in self._added:
            raise UserError(f"{self.kind} {name!r}: the name is taken")
        self._check(name, part)
        self._parts[name] = part
        self._added.add(name)
        _changes[self.group] += 1

    @contextmanager
    def added(self, name: str, part: Part) -> Iterator[None]:
        """Add a part for the time of a block."""
        self.register(name, part)
        try:
            yield
        finally:
            del self._parts[name]
            self._added.remove(name)
            _changes[self.group] += 1

    def __getitem__(self, name: str) -> Part:
        part = self._all()[name]
        if isinstance(part, str):
            part = self._parts[name] = load(part)
        elif isinstance(part, EntryPoint):
            part = self._parts[name] = self._load(part)
        return part

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def _all(self) -> dict[str, Any]:
        """All parts; those of other packages as entry points until they are used."""
        if not self._searched:
            self._searched = True
            for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
                if point.name in self._parts:
                    raise UserError(f"{_source(point)}: the name is taken")
                self._parts[point.name] = point
        return self._parts

    def _load(self, point: EntryPoint) -> Part:
        try:
            part = point.load()
        except Exception as error:  # Any code of another package may run here.
            raise UserError(f"{_source(point)}: {type(error).__name__}: {error}") from error
        try:
            self._check(point.name, part)
        except UserError as error:
            raise UserError(f"{_source(point)}: {error}") from None
        return part


def revision() -> int:
    """A number that changes with every registry, for caches of what depends on them."""
    return _changes.total()


def variant_check(base: type[Config]) -> Callable[[str, Any], None]:
    """The check of a registry whose parts are settings of the kind `base`, named by their tags."""

    def check(name: str, part: Any) -> None:
        if not (isinstance(part, type) and issubclass(part, base)):
            raise UserError(f"{name}: {part!r} is no subclass of {base.__name__}")
        if tag(part) != name:
            raise UserError(f"{name}: the tag of {part.__name__} is {tag(part)!r}")
        if "create" not in vars(part):
            raise UserError(f"{name}: {part.__name__} has no method `create`")

    return check


def install_command(extra: str) -> str:
    """The command that installs the packages of one of perla's extras. It names these packages, so
    that it works wherever perla itself was installed from."""
    try:
        lines = requires("perla") or []
    except PackageNotFoundError:
        lines = []
    marked = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    found = [line.partition(";")[0].strip() for line in lines if marked.search(line)]
    return f"pip install {shlex.join(found or [f'perla[{extra}]'])}"


def load(path: str) -> Any:
    """The object at `module:attribute`, or the module at `module`."""
    module, _, attribute = path.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def _source(point: EntryPoint) -> str:
    package = point.dist.name if point.dist is not None else "unknown"
    return f"package {package}, entry point {point.group}: {point.name} = {point.value}"
