"""Imports point one way, so that every room can be read knowing only the rooms below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import perla

ROOT = Path(perla.__file__).parent

ANYWHERE = {"errors", "config", "files", "types"}
"""The root's words: they import nothing but each other, and everybody may use them."""

MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "files": {"errors"},
    "types": set(),
    "machine": set(),
    "flops": set(),
    "returns": set(),
    "methods": set(),
    "distributions": set(),
    "envs": set(),
    "nets": {"distributions", "envs.protocol"},
    "marginal": {"distributions", "methods"},
    "algos": {
        "methods",
        "distributions",
        "envs.protocol",
        "flops",
        "marginal",
        "nets",
        "returns",
    },
    "loops": {"methods", "distributions", "envs", "flops", "nets", "algos"},
    "analysis": set(),
    "runs": {"methods", "envs", "flops", "nets", "algos", "loops", "machine", "analysis"},
    "suites": {"methods", "envs", "flops", "loops", "runs", "machine", "analysis"},
    "experiments": {
        "methods",
        "distributions",
        "envs",
        "nets",
        "marginal",
        "algos",
        "loops",
        "machine",
        "analysis",
        "runs",
        "suites",
    },
    "bench": {
        "methods",
        "distributions",
        "envs",
        "flops",
        "marginal",
        "algos",
        "loops",
        "machine",
        "analysis",
    },
    "cli": {
        "methods",
        "envs",
        "loops",
        "machine",
        "analysis",
        "runs",
        "suites",
        "experiments",
        "bench",
    },
}
"""Room → the other rooms that it may import, beside its own."""

FREE_OF_JAX = ("analysis", "config", "errors", "files", "methods")
HEAVY = {"jax", "jaxlib", "equinox", "optax"}


def modules(room: str) -> list[Path]:
    """The files of a room: a folder or a single module."""
    folder = ROOT / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{room}.py"]


def imports(path: Path) -> set[tuple[int, str]]:
    """(line, dotted name) of everything that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(node.lineno, alias.name) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            submodules = node.module == "perla"  # `from perla import returns`
            names = [f"perla.{a.name}" for a in node.names] if submodules else [node.module]
            found |= {(node.lineno, str(name)) for name in names}
    return found


def within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def test_every_room_has_its_place():
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms -= {"__init__", "__main__", "__pycache__", "py"}
    assert rooms - set(MAY_IMPORT) == set(), "say in MAY_IMPORT what these may import"


def test_the_order_has_no_cycle():
    above: dict[str, set[str]] = {
        room: {name.split(".")[0] for name in below} for room, below in MAY_IMPORT.items()
    }
    while above:
        lowest = {room for room, below in above.items() if not below & set(above)}
        assert lowest, f"these import each other: {sorted(above)}"
        above = {room: below for room, below in above.items() if room not in lowest}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    assert all(path.exists() for path in modules(room)), f"{room}: named here, not there"
    shared = ANYWHERE if room not in ANYWHERE else set()
    allowed = {room} | MAY_IMPORT[room] | shared
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(room)
        for line, name in sorted(imports(path))
        if name.startswith("perla.")
        and not within(name.removeprefix("perla."), allowed)
        and name != "perla.__version__"
    ]
    assert not wrong, f"{room} may import {sorted(allowed)} only:\n" + "\n".join(wrong)


@pytest.mark.parametrize("room", FREE_OF_JAX)
def test_what_reads_results_needs_no_jax(room):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(room)
        for line, name in sorted(imports(path))
        if within(name, HEAVY)
    ]
    assert not wrong, "\n".join(wrong)
