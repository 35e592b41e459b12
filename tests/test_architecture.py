"""Architecture: imports point one way, files and functions are small, settings have one reader."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import perla

ROOT = Path(perla.__file__).parent

ANYWHERE = {"errors", "config", "files", "plugins", "types"}
"""Modules that all packages may import; they import only each other."""

MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "files": {"errors"},
    "plugins": {"errors", "config"},
    "types": set(),
    "machine": set(),
    "keys": set(),
    "parallel": {"keys", "types"},
    "footprint": set(),
    "flops": set(),
    "returns": set(),
    "methods": set(),
    "distributions": set(),
    "envs": set(),
    "nets": {"distributions", "envs.protocol", "keys"},
    "marginal": {"distributions", "methods"},
    "algos": {
        "methods",
        "distributions",
        "envs.protocol",
        "flops",
        "keys",
        "parallel",
        "marginal",
        "nets",
        "returns",
    },
    "loops": {
        "methods",
        "distributions",
        "envs",
        "flops",
        "footprint",
        "keys",
        "parallel",
        "nets",
        "algos",
        "machine",
    },
    "analysis": set(),
    "policies": {"distributions", "envs", "nets"},
    "runs": {
        "methods",
        "envs",
        "flops",
        "footprint",
        "keys",
        "parallel",
        "nets",
        "algos",
        "loops",
        "machine",
        "analysis",
        "policies",
    },
    "suites": {"methods", "envs", "flops", "loops", "runs", "machine", "analysis"},
    "tuning": {"methods", "envs", "runs", "suites", "analysis"},
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
    "report": {"envs", "analysis", "runs", "suites"},
    "variance": {
        "methods",
        "envs",
        "nets",
        "algos",
        "loops",
        "machine",
        "analysis",
        "runs",
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
    "api": {
        "methods",
        "envs",
        "loops",
        "machine",
        "analysis",
        "policies",
        "runs",
        "suites",
        "experiments",
        "tuning",
        "variance",
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
        "report",
        "bench",
        "tuning",
        "variance",
    },
}
"""Package or module → the others that it may import."""

FREE_OF_JAX = ("analysis", "config", "errors", "files", "methods")
HEAVY = {"jax", "jaxlib", "equinox", "optax"}


def modules(room: str) -> list[Path]:
    """Return the files of a package or module."""
    folder = ROOT / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{room}.py"]


def imports(path: Path) -> set[tuple[int, str]]:
    """Return (line, dotted name) of every import of a module, also within functions."""
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


def test_every_package_is_listed():
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms -= {"__init__", "__main__", "__pycache__", "py"}
    assert rooms - set(MAY_IMPORT) == set(), "list in MAY_IMPORT what these may import"


def test_the_order_has_no_cycle():
    above: dict[str, set[str]] = {
        room: {name.split(".")[0] for name in below} for room, below in MAY_IMPORT.items()
    }
    while above:
        lowest = {room for room, below in above.items() if not below & set(above)}
        assert lowest, f"circular imports: {sorted(above)}"
        above = {room: below for room, below in above.items() if room not in lowest}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    assert all(path.exists() for path in modules(room)), f"{room}: listed here and does not exist"
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
def test_packages_that_read_results_import_no_jax(room):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(room)
        for line, name in sorted(imports(path))
        if within(name, HEAVY)
    ]
    assert not wrong, "\n".join(wrong)


# --- Sizes --------------------------------------------------------------------------------------

MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 60
LONG_FILES: dict[str, str] = {}
"""Path below src/perla → the reason why the file may be longer than `MAX_FILE_LINES`."""
LONG_FUNCTIONS: dict[str, str] = {
    "api/train.py:train": "its arguments and their help, which notebooks show, are most of it"
}
"""path:function → the reason why the function may be longer than `MAX_FUNCTION_LINES`."""

SOURCES = sorted(ROOT.rglob("*.py"))


def function_lengths(source: str) -> dict[str, int]:
    """Return the number of lines of every function, by its qualified name."""
    lengths: dict[str, int] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    assert child.end_lineno is not None
                    length = child.end_lineno - child.lineno + 1
                    lengths[name] = max(length, lengths.get(name, 0))
                visit(child, f"{name}.")
            else:
                visit(child, prefix)

    visit(ast.parse(source), "")
    return lengths


def test_no_file_is_long():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in SOURCES
    }
    long = {name: length for name, length in lengths.items() if length > MAX_FILE_LINES}
    assert {k: v for k, v in long.items() if k not in LONG_FILES} == {}
    assert set(LONG_FILES) <= set(long), "exceptions that are no longer needed"


def test_no_function_is_long():
    long = {
        f"{path.relative_to(ROOT).as_posix()}:{name}": length
        for path in SOURCES
        for name, length in function_lengths(path.read_text()).items()
        if length > MAX_FUNCTION_LINES
    }
    assert {k: v for k, v in long.items() if k not in LONG_FUNCTIONS} == {}
    assert set(LONG_FUNCTIONS) <= set(long), "exceptions that are no longer needed"


def test_lengths_count_every_line_of_nested_functions_and_methods():
    source = (
        "class A:\n    def f(self):\n        def g():\n            return 1\n        return g\n"
    )
    assert function_lengths(source) == {"A.f": 4, "A.f.g": 2}


# --- Settings -----------------------------------------------------------------------------------

SETTINGS_MODULES = ("perla.methods.estimators", "perla.methods.values")
INTERPRETERS = ("marginal/", "methods/", "algos/create.py", "algos/values.py")
"""Files and folders where settings of estimators and values become objects. Only these distinguish
the kinds of settings: a further kind is then a change of these alone."""


def settings_names(tree: ast.Module) -> dict[str, str]:
    """Return local name → module or `module.class` of the settings that a module imports."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in SETTINGS_MODULES:
                    names[alias.asname or alias.name] = alias.name
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                for module in SETTINGS_MODULES:
                    full = f"{node.module}.{alias.name}"
                    if full == module or (node.module == module and alias.name[0].isupper()):
                        names[alias.asname or alias.name] = full
    return names


def distinctions(source: str) -> list[tuple[int, str]]:
    """Return (line, class) of every `isinstance` and `case` of estimator and value settings."""
    tree = ast.parse(source)
    names = settings_names(tree)
    found = set()

    def classes(node: ast.AST) -> list[str]:
        texts = [
            ast.unparse(each)
            for each in ast.walk(node)
            if isinstance(each, ast.Name | ast.Attribute)
        ]
        return [
            text
            for text in texts
            if names.get(text, SETTINGS_MODULES[0]) not in SETTINGS_MODULES
            or names.get(text.rpartition(".")[0]) in SETTINGS_MODULES
        ]

    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "isinstance"
        ):
            found |= {(node.lineno, name) for name in classes(node.args[1])}
        if isinstance(node, ast.MatchClass):
            found |= {(node.lineno, name) for name in classes(node.cls)}
    return sorted(found)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from perla.methods.values import Embedded\nisinstance(x, Embedded)", [(2, "Embedded")]),
        ("from perla.methods.values import Network as N\nisinstance(x, int | N)", [(2, "N")]),
        ("from perla.methods import estimators\nisinstance(x, (estimators.Exact, int))",
         [(2, "estimators.Exact")]),
        ("from perla.methods.estimators import Auto\nmatch x:\n    case Auto(budget=b):\n        b",
         [(3, "Auto")]),
        ("from perla.nets.critics import Multilinear\nisinstance(x, Multilinear)", []),
        ("from perla.methods.values import Embedded\nEmbedded()", []),
    ],
)  # fmt: skip
def test_distinctions_of_settings_are_found(source, expected):
    assert distinctions(source) == expected


def test_only_interpreters_distinguish_settings():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} distinguishes {name}"
        for path in SOURCES
        if not path.relative_to(ROOT).as_posix().startswith(INTERPRETERS)
        for line, name in distinctions(path.read_text())
    ]
    assert not wrong, "only settings' interpreters may do this:\n" + "\n".join(wrong)


AXES = {"batch", "joint", "rest", "rest_or_one", "sample", "shape", "state", "time"}
"""Words of shape annotations, which ruff reads as names where an axis may be of any size."""


def test_every_name_is_defined():
    """Ruff's F821 is off, as it takes shape annotations for code: here all else is held to it."""
    command = [sys.executable, "-m", "ruff", "check", "src", "tests", "benchmarks", "examples"]
    options = ["--select", "F821", "--config", "lint.ignore=[]", "--output-format", "json"]
    found = subprocess.run(
        [*command, *options], cwd=ROOT.parent.parent, capture_output=True, text=True
    )
    wrong = {
        f"{Path(each['filename']).name}:{each['location']['row']} {each['message']}"
        for each in json.loads(found.stdout)
        if each["message"].split("`")[1] not in AXES
    }
    assert not wrong
