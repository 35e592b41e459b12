"""Terrain: the cells of a map that units may enter, and the ways around its walls."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perla.envs.skirmish.files import read_data
from perla.envs.skirmish.units import RuleSet
from perla.errors import UserError, nearest
from perla.types import Bool, Int

MOST = 256
"""Largest width and height of a map."""

MOST_OPEN = 2048
"""Most open cells of a terrain that is no rectangle, for whose paths a table is made."""

EDGE = 1e-3
"""Distance that units keep from the end of the map and of a rectangle of open cells."""

_STRAIGHT = 1.05
"""A terrain whose shortest paths are all about this much longer than straight lines needs no
paths: units slide along its walls."""


@dataclass(frozen=True)
class Terrain:
    """The cells of a map. `rows` are its text, north first: '.' open, '#' wall, '~' cliff."""

    rows: tuple[str, ...]

    @property
    def width(self) -> int:
        """Cells from west to east."""
        return len(self.rows[0])

    @property
    def height(self) -> int:
        """Cells from south to north."""
        return len(self.rows)

    @functools.cached_property
    def ground(self) -> Bool[np.ndarray, "height width"]:
        """Cells that walking units enter; row y holds the points with y ≤ their y < y + 1."""
        return self._cells == "."

    @functools.cached_property
    def climbable(self) -> Bool[np.ndarray, "height width"]:
        """Cells that climbing units enter."""
        return self._cells != "#"

    @functools.cached_property
    def _cells(self) -> np.ndarray:
        return np.array([list(row) for row in reversed(self.rows)])


def box(cells: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int] | None:
    """The rectangle `(west, south, east, north)` that `cells` are; none if they are none."""
    rows, columns = np.flatnonzero(cells.any(1)), np.flatnonzero(cells.any(0))
    south, north = int(rows[0]), int(rows[-1]) + 1
    west, east = int(columns[0]), int(columns[-1]) + 1
    return (west, south, east, north) if cells[south:north, west:east].all() else None


def nearest_open(
    cells: Bool[np.ndarray, "height width"],
    row: Int[np.ndarray, " point"],
    column: Int[np.ndarray, " point"],
) -> Int[np.ndarray, " point"]:
    """The number, row by row, of the open cell that is nearest to each cell (row, column)."""
    rows, columns = np.nonzero(cells)
    found = np.empty(len(row), np.int32)
    for point, (y, x) in enumerate(zip(row, column, strict=True)):
        if cells[y, x]:
            found[point] = y * cells.shape[1] + x
        else:
            nearest = ((rows - y) ** 2 + (columns - x) ** 2).argmin()
            found[point] = rows[nearest] * cells.shape[1] + columns[nearest]
    return found


def parse_terrain(rows: Sequence[str], *, source: str) -> Terrain:
    """A terrain from its rows, north first. Raises `UserError` for rows that are none."""
    rows = tuple(rows)
    widths = {len(row) for row in rows}
    if len(widths) > 1 or not 2 <= min(widths, default=0) <= MOST or not 2 <= len(rows) <= MOST:
        raise UserError(f"{source}: its rows need one length, and both sizes 2 to {MOST} cells")
    for index, row in enumerate(rows):
        if odd := set(row) - set(".#~"):
            raise UserError(f"{source}: row {index} has {min(odd)!r}; cells are '.', '#' or '~'")
    if "." not in "".join(rows):
        raise UserError(f"{source}: it has no open cell, '.'")
    terrain = Terrain(rows)
    if not box(terrain.ground) and terrain.ground.sum() > MOST_OPEN:
        raise UserError(f"{source}: more than {MOST_OPEN} open cells, which are no rectangle")
    return terrain


def standard_terrain(name: str, rules: RuleSet) -> Terrain:
    """A terrain that comes with the package. Raises `UserError` for an unknown name."""
    tables = read_data("terrains.toml")
    if name not in tables:
        raise nearest(name, tables, what="terrain")
    return parse_terrain(tables[name].get(rules, tables[name]["smac"]), source=name)


# --- Paths --------------------------------------------------------------------------------------

_STEPS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


@dataclass(frozen=True, eq=False)
class Paths:
    """The ways around the walls of a terrain."""

    index: Int[np.ndarray, " cell"]
    """Row of `via` for each cell of the map, row by row; walls have that of the nearest cell."""
    via: Int[np.ndarray, "open open"]
    """The cell to walk to, in a straight line, on the way from one open cell to another: the
    farthest cell on a shortest path that is in sight."""


@functools.lru_cache(maxsize=32)
def find_paths(terrain: Terrain) -> Paths | None:
    """The paths of a `terrain`; none if straight lines, sliding along walls, are good enough."""
    cells = terrain.ground
    if box(cells):
        return None
    rows, columns = np.nonzero(cells)
    count = len(rows)
    number = np.full(cells.shape, -1)
    number[rows, columns] = np.arange(count)
    distance = _distances(cells, number)
    gap = np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)
    straight = np.maximum(*gap) + (np.sqrt(2) - 1) * np.minimum(*gap)
    reachable = np.isfinite(distance)
    if not (distance > _STRAIGHT * straight + 1)[reachable].any():
        return None
    step = _first_steps(cells, number, distance)
    sight = _lines_of_sight(cells, rows, columns)
    # Walk back from each goal towards each start until the start sees the cell.
    start = np.broadcast_to(np.arange(count)[:, None], (count, count))
    via = np.broadcast_to(np.arange(count), (count, count)).copy()
    via[~reachable] = start[~reachable]
    hidden = ~sight[start, via]
    while hidden.any():
        via[hidden] = step[start[hidden], via[hidden]]
        hidden &= ~sight[start, via]
    index = number.reshape(-1)[nearest_open(cells, *np.indices(cells.shape).reshape(2, -1))]
    return Paths(index.astype(np.int16), (rows * terrain.width + columns)[via].astype(np.int16))


def _neighbours(cells: np.ndarray, number: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """For each direction its length, and the number of each open cell's neighbour there, −1 where
    a wall blocks it or a corner is cut."""
    padded, open_ = np.pad(number, 1, constant_values=-1), np.pad(cells, 1)
    rows, columns = np.nonzero(cells)
    found = []
    for dy, dx in _STEPS:
        free = open_[rows + 1 + dy, columns + 1] & open_[rows + 1, columns + 1 + dx]
        other = np.where(free, padded[rows + 1 + dy, columns + 1 + dx], -1)
        found.append((float(np.hypot(dy, dx)), other))
    return found


def _distances(cells: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Lengths of the shortest 8-connected paths between all open cells; infinite if there is
    none."""
    count = int(cells.sum())
    distance = np.full((count, count + 1), np.inf, np.float32)  # The last column is the wall.
    distance[np.arange(count), np.arange(count)] = 0
    while True:
        before = distance.copy()
        for length, other in _neighbours(cells, number):
            np.minimum(
                distance[:, :-1], distance[:, other] + np.float32(length), out=distance[:, :-1]
            )
        if np.array_equal(before, distance):
            return distance[:, :-1]


def _first_steps(cells: np.ndarray, number: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """`[start, cell]`: the neighbour of `cell` that is nearest to `start`."""
    padded = np.pad(distance, ((0, 0), (0, 1)), constant_values=np.inf)
    best, step = np.full(distance.shape, np.inf, np.float32), np.zeros(distance.shape, int)
    for length, other in _neighbours(cells, number):
        through = padded[:, other] + np.float32(length)
        better = through < best
        best = np.where(better, through, best)
        step = np.where(better, other[None, :], step)
    return step


def _lines_of_sight(cells: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """True for pairs of cells between whose centres a straight corridor is open."""
    sight = np.ones((len(rows), len(rows)), bool)
    dy, dx = rows - rows[:, None], columns - columns[:, None]
    length, padded = np.maximum(np.hypot(dy, dx), 1e-9), np.pad(cells, 1)
    for share in np.linspace(0, 1, 2 * max(cells.shape)):
        for side in (-0.4, 0.4):
            y = np.floor(rows[:, None] + 1.5 + share * dy + side * dx / length).astype(np.int16)
            x = np.floor(columns[:, None] + 1.5 + share * dx - side * dy / length).astype(np.int16)
            sight &= padded[y, x]
    # A cell beside a wall always sees itself and the cells next to it.
    return sight | (np.maximum(np.abs(dy), np.abs(dx)) <= 1)
