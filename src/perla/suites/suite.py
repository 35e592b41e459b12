"""A suite is data: grids of environments × methods × settings, each cell of which is a run."""

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


class Grid(Config, frozen=True, kw_only=True):
    """Every combination of what is listed; wherever a list may stand, so may its only entry."""

    env: str | tuple[str, ...]
    """Worlds, by the names that their users know."""
    env_options: dict[str, bool | int | float | str] = msgspec.field(default_factory=dict)
    """Options of all these worlds."""
    algo: str | tuple[str, ...]
    """Methods."""
    preset: str | tuple[str, ...] = "default"
    """Presets."""
    settings: dict[str, Scalar | tuple[Scalar, ...]] = msgspec.field(default_factory=dict)
    """The methods' settings by name; those with several values are varied."""
    label: str = ""
    """What results call the methods, beside what is varied: tells grids of one suite apart."""

    steps: Steps
    """Environment steps of each seed."""
    seeds: Count | Annotated[tuple[Seed, ...], Meta(min_length=1)] = 10
    """How many (0, 1, …) or which. The seeds of a cell share a run."""
    num_evaluations: Count = 50
    """Evaluations spread evenly over a run."""
    eval_episodes: Count = 32
    """Episodes of an evaluation."""
    absolute_episodes: Count = 320
    """Episodes of the absolute metric."""

    def cells(self) -> Iterable[Cell]:
        """The grid's runs: for each world every method."""
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
                    num_evaluations=self.num_evaluations,
                    eval_episodes=self.eval_episodes,
                    absolute_episodes=self.absolute_episodes,
                ),
            )


class Cell(NamedTuple):
    """A run of a suite, all its seeds together."""

    method: str
    """What results call it: the algorithm and what is varied, such as `perla-ippo k=5`."""
    varied: Mapping[str, Any]
    """The settings that the suite varies, with their values here."""
    run: Run

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.method} on {self.run.env}"

    @property
    def folder(self) -> Path:
        """Where it lies below the suite's folder. The name holds a digest of the run, so that two
        suites that share a folder share exactly the cells that are the same."""
        return Path("cells", slug(self.run.env), f"{slug(self.method)}-{self.run.identity[:8]}")


class Suite(Config, frozen=True, kw_only=True):
    """Runs whose results belong together."""

    name: str
    """What results call it."""
    grids: Annotated[tuple[Grid, ...], Meta(min_length=1)]
    """Its runs are those of all its grids."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.search(r"[^.]", self.name) or re.search(r"[/\\]", self.name):
            raise UserError(f"name = {self.name!r}: expected a name, of which a folder can be made")

    def cells(self) -> list[Cell]:
        """All cells, in order. Raises `UserError` where two could not be told apart."""
        cells: dict[str, Cell] = {}
        for cell in itertools.chain.from_iterable(grid.cells() for grid in self.grids):
            if cell.name in cells:
                raise UserError(
                    f"suite {self.name!r}: two cells are called {cell.name!r}; "
                    "give one of their grids a label"
                )
            cells[cell.name] = cell
        return list(cells.values())


def load(path: Path, trust: Trust = ()) -> Suite:
    """The suite in a JSON file, read strictly; `UserError` with the place of a mistake, and for
    environments that are code and not among those to `trust`."""
    with explained(path):
        text = path.read_bytes()
    suite = from_json(text, Suite, source=str(path))
    named = itertools.chain.from_iterable(several(grid.env) for grid in suite.grids)
    check_trust(tuple(named), trust, source=path)
    return suite


def several(value: Any) -> tuple[Any, ...]:
    """A list as it is, and anything else as a list of one."""
    return value if isinstance(value, tuple) else (value,)


def text(value: Scalar) -> str:
    """A setting's value in a label."""
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).lower()


def slug(name: str) -> str:
    """`name` as a folder's name, never one of the folder's own or of the one above."""
    return re.sub(r"[^\w.=,+-]+|^\.*$", "-", name)
