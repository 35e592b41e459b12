"""Suites as data: grids of environments × methods × settings, each cell of which is a run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from perla.config import Config, Count, from_json
from perla.envs.registry import Trust, check_trust
from perla.errors import UserError
from perla.files import explained
from perla.methods.settings import configure
from perla.runs.spec import Run, Seed, Steps

Scalar = bool | int | float | str | None
Names = str | Annotated[tuple[str, ...], Meta(min_length=1)]
Values = Scalar | Annotated[tuple[Scalar, ...], Meta(min_length=1)]


class Grid(Config, frozen=True, kw_only=True):
    """Every combination of the listed values; a list of one value may be given as the value."""

    env: Names
    """Environments, by name."""
    env_options: dict[str, Any] = msgspec.field(default_factory=dict)
    """Options of all environments."""
    algo: Names
    """Names of the methods."""
    preset: Names = "default"
    """Names of the presets."""
    settings: dict[str, Values] = msgspec.field(default_factory=dict)
    """Settings of the methods by name; those with several values are varied."""
    label: str = ""
    """Added to the methods' names in results, to distinguish grids of a suite."""

    steps: Steps
    """Environment steps of each seed."""
    seeds: Count | Annotated[tuple[Seed, ...], Meta(min_length=1)] = 10
    """Number of seeds (0, 1, …) or a list of seeds. The seeds of a cell share a run."""
    data_parallel: Count = 1
    """Devices over which the environments of a seed are divided."""
    num_evaluations: Count | None = None
    """Evaluations, spread evenly over a run; none: 50, or as many as take a fifth of its steps."""
    eval_episodes: Count | None = None
    """Episodes per evaluation; none: 32, or as many as fit."""
    absolute_episodes: Count | None = None
    """Episodes of the absolute metric; none: 320, or as many as fit."""

    def cells(self) -> Iterable[Cell]:
        """Yield the grid's runs: every method for each environment."""
        varied = [name for name, value in self.settings.items() if len(several(value)) > 1]
        presets = several(self.preset)
        for env, algo, preset, *values in itertools.product(
            several(self.env), several(self.algo), presets, *map(several, self.settings.values())
        ):
            chosen = dict(zip(self.settings, values, strict=True))
            words = [algo, self.label, preset if len(presets) > 1 else ""]
            words += [f"{name}={text(chosen[name])}" for name in varied]
            yield Cell(
                method=" ".join(filter(None, words)),
                varied={name: chosen[name] for name in varied},
                run=Run(
                    env=env,
                    env_options=self.env_options,
                    algo=algo,
                    preset=preset,
                    config=configure(algo, preset, chosen),
                    steps=self.steps,
                    seeds=tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds,
                    data_parallel=self.data_parallel,
                    num_evaluations=self.num_evaluations,
                    eval_episodes=self.eval_episodes,
                    absolute_episodes=self.absolute_episodes,
                ),
            )


class Cell(NamedTuple):
    """A run of a suite, all its seeds together."""

    method: str
    """Its name in results: the algorithm and the varied settings, such as `perla-ippo lr=0.001`."""
    varied: Mapping[str, Any]
    """The cell's values of the settings that the suite varies."""
    run: Run

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.method} on {self.run.env}"

    @property
    def folder(self) -> Path:
        """Its folder, relative to that of the suite.

        The name contains a digest of the run, so that suites with the same folder share exactly the
        equal cells.
        """
        return Path("cells", slug(self.run.env), f"{slug(self.method)}-{self.run.identity[:8]}")


class Suite(Config, frozen=True, kw_only=True):
    """A named set of runs whose results are compared."""

    name: str
    """Its name in results."""
    grids: Annotated[tuple[Grid, ...], Meta(min_length=1)]
    """Grids of runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.search(r"[^.]", self.name) or re.search(r"[/\\]", self.name):
            raise UserError(f"name = {self.name!r}: expected a name that a folder can have")

    def in_family(self, family: str) -> Suite:
        """Return the suite on maps of the same names of another `family` of environments."""
        grids = []
        for grid in self.grids:
            envs = (f"{family}:{env.partition(':')[2]}" for env in several(grid.env))
            grids.append(msgspec.structs.replace(grid, env=tuple(envs)))
        return msgspec.structs.replace(self, grids=tuple(grids))

    def cells(self) -> list[Cell]:
        """Return all cells, in order. Raises `UserError` if two have the same name."""
        cells: dict[str, Cell] = {}
        for cell in itertools.chain.from_iterable(grid.cells() for grid in self.grids):
            if cell.name in cells:
                raise UserError(
                    f"suite {self.name!r}: two cells have the name {cell.name!r}; "
                    "give one of their grids a label"
                )
            cells[cell.name] = cell
        return list(cells.values())


def load(path: Path, trust: Trust = ()) -> Suite:
    """Load the suite in a JSON file.

    Raises `UserError`, with its position, for any mistake, and for an environment that is code and
    not in `trust`.
    """
    with explained(path):
        text = path.read_bytes()
    suite = from_json(text, Suite, source=str(path))
    envs = itertools.chain.from_iterable(several(grid.env) for grid in suite.grids)
    check_trust(tuple(envs), trust, source=path)
    return suite


def several(value: Any) -> tuple[Any, ...]:
    """Return a tuple as it is, and any other value as a tuple of one."""
    return value if isinstance(value, tuple) else (value,)


def text(value: Scalar) -> str:
    """Format the value of a setting for a label."""
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).lower()


def slug(name: str) -> str:
    """Turn `name` into a folder's name, which is never `.` or `..`."""
    return re.sub(r"[^\w.=,+-]+|^\.*$", "-", name)
