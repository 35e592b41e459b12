"""Maps as data: two armies, where they start, and what the enemies are ordered to do.

A map is a TOML file. Those of SMAC come with the package; `docs/skirmish.md` describes the format.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from perla.config import Config, Count
from perla.envs.skirmish.files import names, read_data, read_file
from perla.envs.skirmish.terrain import (
    EDGE,
    Terrain,
    nearest_open,
    parse_terrain,
    standard_terrain,
)
from perla.envs.skirmish.units import RuleSet, Unit, parse, parse_units, standard_units
from perla.errors import UserError, nearest
from perla.types import Float

Side = Literal["ally", "enemy"]
Point = tuple[float, float]

MOST_UNITS = 127
"""Most units of one side."""

GAP = 0.05
"""Distance between the edges of units that start in one group."""


class Order(Config, frozen=True):
    """The order that the enemies follow until the end of the episode."""

    command: Literal["attack-move", "hunt", "hold", "passive"]
    """`attack-move`: walk to a point, and attack whoever comes near. `hunt`: attack the nearest
    agent, however far away. `hold`: attack whoever comes near. `passive`: do nothing."""
    to: Point | None = None
    """The point of an attack-move."""
    or_to: Point | None = None
    """If given, the point is uniformly random between `to` and this one, in each episode."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.command == "attack-move") != (self.to is not None) or (self.or_to and not self.to):
            raise UserError("to: an attack-move needs the point it leads to; others have none")


class Group(Config, frozen=True):
    """Units that start packed around one point."""

    side: Side
    """The side that the units are on."""
    at: Point
    """The centre of the group, in cells from the south-west corner."""
    units: Annotated[dict[str, Count], Meta(min_length=1)]
    """Type of unit → number; they stand row by row, in this order."""


class MapFile(Config, frozen=True):
    """The content of a map's file, but for the types of units that it defines."""

    limit: Count
    """Steps after which an episode is truncated."""
    terrain: str | tuple[str, ...]
    """The name of a terrain, or its rows, north first: '.' open, '#' wall, '~' cliff."""
    order: Order
    """The order of the enemies."""
    groups: Annotated[tuple[Group, ...], Meta(min_length=2)]
    """The two armies."""
    ally_types: tuple[str, ...] = ()
    """Types of the agents in the order of their indicators; by default alphabetical."""
    enemy_types: tuple[str, ...] = ()
    """Types of the enemies in the order of their indicators; by default alphabetical."""


@dataclass(frozen=True, eq=False)
class Army:
    """One side of a map. Its units are sorted by type; agents then by their x and y."""

    types: tuple[str, ...]
    """Names of its types, in the order of their indicators."""
    names: tuple[str, ...]
    """The type of each unit."""
    units: tuple[Unit, ...]
    """The numbers of each unit."""
    start: Float[np.ndarray, "unit 2"]
    """Start of each unit: x, y."""

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True, eq=False)
class Map:
    """A battle: two armies on a terrain."""

    name: str
    limit: int
    terrain: Terrain
    order: Order
    allies: Army
    enemies: Army

    @property
    def type_bits(self) -> int:
        """Indicators of a unit's type in observations: none if each side has one type."""
        most = max(len(self.allies.types), len(self.enemies.types))
        return most if most > 1 else 0


def load_map(name: str, rules: RuleSet) -> Map:
    """The map `name`, or of a file whose path ends in `.toml`, with the numbers of `rules`.

    Raises `UserError` for an unknown name, or for a file with an error, naming the field.
    """
    if name.endswith(".toml"):
        content, source = read_file(name), name
        name = Path(name).stem
    elif name in names():
        content, source = read_data(f"maps/{name}.toml"), name
    else:
        raise nearest(name, names(), what="map of skirmish")
    return parse_map(content, rules, name=name, source=source)


def parse_map(content: dict[str, Any], rules: RuleSet, *, name: str, source: str) -> Map:
    """A map from the content of its file. Raises `UserError` that names the field."""
    tables = dict(content)
    own = tables.pop("units", {})
    if not isinstance(own, dict):
        raise UserError(f"{source}: units = {own!r}: expected a table for each type")
    types = standard_units(rules) | parse_units(own, source=f"{source}: units")
    file = parse(tables, MapFile, source=source)
    if isinstance(file.terrain, str):
        terrain = standard_terrain(file.terrain, rules)
    else:
        terrain = parse_terrain(file.terrain, source=f"{source}: terrain")
    for point in [group.at for group in file.groups] + [file.order.to, file.order.or_to]:
        if point and not (0 <= point[0] < terrain.width and 0 <= point[1] < terrain.height):
            raise UserError(f"{source}: the point {list(point)} is off the map")
    armies = [
        _out_of_walls(_army(file, side, order, types, source=source), terrain)
        for side, order in (("ally", file.ally_types), ("enemy", file.enemy_types))
    ]
    return Map(name, file.limit, terrain, file.order, *armies)


def _army(
    file: MapFile, side: str, order: tuple[str, ...], types: dict[str, Unit], *, source: str
) -> Army:
    members: list[str] = []
    places: list[np.ndarray] = []
    for group in file.groups:
        if group.side != side:
            continue
        for name in group.units:
            if name not in types:
                raise UserError(f"{source}: groups: {nearest(name, types, what='type of unit')}")
        names_ = [name for name, count in group.units.items() for _ in range(count)]
        members += names_
        if len(members) > MOST_UNITS:
            raise UserError(f"{source}: groups: more than {MOST_UNITS} units on one side")
        radii = np.array([types[name].radius for name in names_])
        places.append(np.array(group.at) + _pack(radii) * (1 if side == "ally" else -1))
    if not members:
        raise UserError(f"{source}: groups: the side {side!r} has no unit")
    order = order or tuple(sorted(set(members)))
    if sorted(order) != sorted(set(members)):
        raise UserError(
            f"{source}: {side}_types = {list(order)}: expected {', '.join(sorted(set(members)))}"
        )
    start = np.concatenate(places)
    keys = [np.array([sorted(order).index(name) for name in members])]
    if side == "ally":
        keys = [start[:, 1], start[:, 0], *keys]
    sequence = np.lexsort(keys)
    sorted_names = tuple(members[i] for i in sequence)
    return Army(order, sorted_names, tuple(types[name] for name in sorted_names), start[sequence])


def _out_of_walls(army: Army, terrain: Terrain) -> Army:
    """The army with those that walk on open cells: one that is packed into a wall starts at the
    edge of the nearest open cell."""
    x, y = army.start.T
    column = np.clip(x, 0, terrain.width - 1).astype(int)
    row = np.clip(y, 0, terrain.height - 1).astype(int)
    start = army.start.copy()
    for cells, climbs in ((terrain.ground, False), (terrain.climbable, True)):
        walks = [unit.plane == "ground" and unit.climbs == climbs for unit in army.units]
        cell = nearest_open(cells, row, column)
        corner = np.stack([cell % terrain.width, cell // terrain.width], 1)
        inside = np.clip(army.start, corner + EDGE, corner + 1 - EDGE)
        moves = np.array(walks) & ~cells[row, column]
        start = np.where(moves[:, None], inside, start)
    return replace(army, start=start)


def _pack(radii: Float[np.ndarray, " unit"]) -> Float[np.ndarray, "unit 2"]:
    """Places of units around the origin, row by row in a square, as SMAClite packs them."""
    side = int(np.ceil(np.sqrt(len(radii))))
    rows = [radii[i : i + side] for i in range(0, len(radii), side)]
    heights = np.array([2 * row.max() for row in rows] + [0.0] * (side - len(rows)))
    bottom = -(heights.sum() + (side - 1) * GAP) / 2
    left = -max(2 * row.sum() for row in rows) / 2
    places = []
    for row, height in zip(rows, heights, strict=False):
        right = np.cumsum(2 * row + GAP) - GAP
        places += [(left + x - r, bottom + height / 2) for x, r in zip(right, row, strict=True)]
        bottom += height + GAP
    return np.array(places)
