"""Units as data: the numbers of a type of unit, and the two rule sets.

Lengths are cells of the map, times are seconds of 16 ticks. `data/units-*.toml` has the types that
are built in, a table each, with their sources; a map's file may define more.
"""

from __future__ import annotations

import functools
import reprlib
from typing import Any, Literal, TypeVar

import msgspec

from perla.config import Config, Count, NonNegative, Positive, fields
from perla.envs.skirmish.files import read_data
from perla.errors import UserError, nearest

TICKS_PER_SECOND = 16
"""Ticks, called game loops in StarCraft II, of a second in which the units' numbers are given."""

RuleSet = Literal["smac", "smaclite"]
"""Rule sets. `smac`: the numbers that SMAC's maps use in StarCraft II. `smaclite`: SMAClite's, to
be compared with it."""

Plane = Literal["ground", "air"]
"""The plane that a unit is on, and which weapons can reach it."""


class Splash(Config, frozen=True):
    """The area that an attack hits besides its target; it spares the attacker's own side."""

    shape: Literal["circle", "beam"]
    """A circle around the attacker, or a rectangle across the shot, centred on the target."""
    radius: NonNegative = 0.0
    """Radius of the circle; it reaches a unit whose disc it touches."""
    length: NonNegative = 0.0
    """Extent of the beam across the shot."""
    width: NonNegative = 0.0
    """Extent of the beam along the shot."""


class Heal(Config, frozen=True):
    """The healing of a unit that heals instead of attacking."""

    hp_per_s: Positive
    """Life restored each second."""
    energy_per_hp: Positive
    """Energy spent for each point of life."""
    energy_start: NonNegative
    """Energy at the start of an episode."""
    energy_max: Positive
    """Largest energy."""
    energy_regen: NonNegative
    """Energy regained each second."""
    energy_min: NonNegative = 5.0
    """Energy needed to begin healing another unit."""


class Unit(Config, frozen=True):
    """The numbers of one type of unit."""

    hp: Positive
    """Life."""
    radius: Positive
    """Radius of the disc that the unit occupies."""
    range: NonNegative
    """Reach of its weapon or healing, between the edges of the two discs."""
    shield: NonNegative = 0.0
    """Shield, which absorbs damage before life and without armour."""
    armor: NonNegative = 0.0
    """Damage subtracted from each hit that reaches life."""
    speed: NonNegative = 0.0
    """Cells moved each second."""
    scan_range: NonNegative = 5.0
    """Distance at which an attack-moving unit notices others."""
    hp_regen: NonNegative = 0.0
    """Life regained each second."""
    attributes: tuple[str, ...] = ()
    """Attributes that others' bonuses refer to."""
    plane: Plane = "ground"
    """The plane that the unit is on."""
    targets: tuple[Plane, ...] = ("ground",)
    """The planes of the units that it can hit."""
    damage: NonNegative = 0.0
    """Damage of each hit."""
    attacks: Count = 1
    """Hits of each attack."""
    bonuses: dict[str, NonNegative] = {}
    """Attribute → damage added to each hit on units with it."""
    cooldown: NonNegative = 0.0
    """Seconds between attacks."""
    cooldown_scale: Positive = 15.0
    """Ticks by which the state divides the remaining cooldown."""
    splash: Splash | None = None
    """The area of an attack; none: its target alone."""
    dies_on_attack: bool = False
    """The unit dies by its own attack."""
    explodes_when_killed: bool = False
    """The unit also attacks when it is killed."""
    heal: Heal | None = None
    """Healing, of a unit without a weapon."""
    collides: bool = True
    """Units of its plane push it."""
    climbs: bool = False
    """The unit crosses cliffs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weapon = self.damage > 0
        problems = (
            (weapon and self.heal, "heal: a unit has damage or heal, not both"),
            (weapon and not self.cooldown, "cooldown: a unit with damage needs one above 0"),
            (self.splash and not weapon, "splash: it needs damage"),
            (self.heal and "ground" not in self.targets, "targets: healers heal on the ground"),
            (
                self.explodes_when_killed and not (self.splash and self.splash.shape == "circle"),
                "explodes_when_killed: it needs a splash of shape circle",
            ),
            (
                self.splash and self.splash.shape == "circle" and not self.dies_on_attack,
                "splash: only units that die on attack have a circle",
            ),
        )
        for problem, message in problems:
            if problem:
                raise UserError(message)

    @property
    def period(self) -> float:
        """Ticks between attacks."""
        return self.cooldown * TICKS_PER_SECOND

    def hit(self, target: Unit) -> float:
        """Damage of one hit on a `target`, before shield and armour; 0 if it cannot be hit."""
        if target.plane not in self.targets or not self.damage:
            return 0.0
        return self.damage + sum(self.bonuses.get(each, 0.0) for each in target.attributes)


class Rules(Config, frozen=True):
    """The rules in which the two rule sets differ, besides the units' numbers."""

    cooldown_noise: tuple[float, float] = (0.0, 0.0)
    """Ticks added to each cooldown, uniform between the two."""
    scan_own_radius: bool = True
    """Scan ranges begin at the unit's edge, not its centre."""
    healers_first: bool = False
    """Attack-moving units prefer healers, and choose anew at every tick while a foe's healer is
    alive."""
    orders_outlive_targets: bool = False
    """Agents go on attacking a target that has died until their next action."""
    finds_paths: bool = True
    """Units walk around walls. Otherwise they walk straight, and slide along walls."""
    avoids: bool = False
    """Units avoid others before they touch, by SMAClite's ORCA. Otherwise they are pushed apart."""
    healers_fight: bool = False
    """A side of which only healers are left fights on; a mutual kill is a win."""


RULES: dict[str, Rules] = {
    "smac": Rules(cooldown_noise=(-1.0, 2.0)),
    "smaclite": Rules(
        scan_own_radius=False,
        healers_first=True,
        orders_outlive_targets=True,
        finds_paths=False,
        avoids=True,
        healers_fight=True,
    ),
}
"""Rules of each rule set. Cooldowns of StarCraft II vary by −0.0625 to +0.125 s (core mod:
CWeaponLegacy)."""


@functools.cache
def standard_units(rules: RuleSet) -> dict[str, Unit]:
    """The built-in types of units by name."""
    name = f"units-{rules}.toml"
    return parse_units(read_data(name), source=name)


def parse_units(tables: Any, *, source: str) -> dict[str, Unit]:
    """Types of units by name. Raises `UserError` that names the unit and the field."""
    return {name: parse(table, Unit, source=f"{source}: {name}") for name, table in tables.items()}


ConfigType = TypeVar("ConfigType", bound=Config)


def parse(table: Any, type: type[ConfigType], *, source: str) -> ConfigType:
    """A `Config` from a table of a TOML file.

    Raises `UserError` with `source` and the field for an unknown, missing or wrong one.
    """
    if not isinstance(table, dict):
        raise UserError(f"{source} = {reprlib.repr(table)}: expected a table")
    known = {field.encode_name: field for field in fields(type)}
    for key in table:
        if key not in known:
            raise UserError(f"{source}: {nearest(key, known, what='field')}")
    for name, field in known.items():
        if field.required and name not in table:
            raise UserError(f"{source}: the field {name!r} is missing")
        if name in table:
            _check(table[name], field.type, source=f"{source}.{name}")
    try:
        return msgspec.convert(table, type)
    except (msgspec.ValidationError, UserError) as error:
        raise UserError(f"{source}: {error}") from None


def _check(value: Any, type: Any, *, source: str) -> None:
    try:
        msgspec.convert(value, type)
    except (msgspec.ValidationError, UserError) as error:
        raise UserError(f"{source} = {reprlib.repr(value)}: {error}") from None
