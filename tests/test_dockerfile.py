"""The Dockerfile copies what the package is built of. No image is built here."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copied() -> list[str]:
    """The sources of all `COPY` lines."""
    rows = [row.split() for row in (ROOT / "Dockerfile").read_text().splitlines()]
    return [source for row in rows if row[:1] == ["COPY"] for source in row[1:-1]]


def test_what_is_copied_exists():
    assert copied()
    for source in copied():
        assert list(ROOT.glob(source)), source


def test_all_that_the_package_is_built_of_is_copied():
    facts = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {facts["project"]["readme"], *facts["project"]["license-files"], "pyproject.toml"}
    needed |= set(facts["tool"]["setuptools"]["packages"]["find"]["where"])
    for patterns in facts["tool"]["setuptools"]["data-files"].values():
        needed |= set(patterns)
    assert needed <= set(copied())


def test_the_image_has_a_python_that_perla_supports():
    (image,) = [
        row.split()[1]
        for row in (ROOT / "Dockerfile").read_text().splitlines()
        if row.startswith("FROM ")
    ]
    version = image.removeprefix("python:").removesuffix("-slim")
    facts = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"Programming Language :: Python :: {version}" in facts["project"]["classifiers"]
