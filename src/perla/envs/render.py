"""Images of environments, drawn with Pillow alone: without a display and without extra fonts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from perla.types import Float

# Agents and food differ in shape as well as in hue, and in hues (of Okabe and Ito, 2008) that
# colour-blind readers tell apart.
_PAPER, _CELL, _LINE = "#FFFFFF", "#F4F2EC", "#D9D4C8"
_AGENT, _AGENT_EDGE = "#0072B2", "#004A75"
_FOOD, _FOOD_EDGE, _LEAF, _STALK = "#E69F00", "#9C6B00", "#009E73", "#5B4636"
_INK, _CHALK = "#2B2100", "#FFFFFF"
_WALL, _SHIELD = "#B8B1A2", "#56B4E9"

_FINE = 4
"""Images are drawn this many times larger and then shrunk, for smooth edges."""


class Grid(NamedTuple):
    """A square grid with agents and foods, the arguments of `draw_grid`."""

    size: int
    """Rows, and columns."""
    agents: list[tuple[int, int, int]]
    """Row, column and level of each agent."""
    foods: list[tuple[int, int, int]]
    """Row, column and level of each food that is left."""


class Table(NamedTuple):
    """A table of numbers with some cells marked, the arguments of `draw_table`."""

    values: Float[np.ndarray, "row column"]
    """NaN: an empty cell."""
    marked: list[tuple[int, ...]]
    """Row and column of each marked cell."""


class Fighter(NamedTuple):
    """A unit on a battlefield. Lengths are cells of its terrain, and y points upwards."""

    x: float
    y: float
    radius: float
    enemy: bool
    """Its side: enemies are orange, the others blue."""
    label: str
    life: float
    """Share of its life."""
    shield: float | None = None
    """Share of its shield; None if it has none."""
    shot: tuple[float, float] | None = None
    """The point at which it has just shot."""
    heals: bool = False
    """Its shots heal, and are green."""


class Field(NamedTuple):
    """A battlefield, the arguments of `draw_field`."""

    terrain: tuple[str, ...]
    """Rows of cells, the uppermost first: '.' is open, '#' a wall and '~' a cliff."""
    fighters: list[Fighter]
    """The living units."""


Scene: TypeAlias = Grid | Table | Field
"""The content of an image, from which it can be drawn at any size and in any program."""


@runtime_checkable
class HasScene(Protocol):
    """An environment whose states are scenes."""

    def scene(self, state: Any) -> Scene:
        """The content of the image of `state`."""
        ...

    @property
    def action_names(self) -> tuple[str, ...]:
        """The name of each action."""
        ...


def draw_grid(
    size: int,
    *,
    agents: Sequence[tuple[int, int, int]],
    foods: Sequence[tuple[int, int, int]],
    width: int = 400,
) -> np.ndarray:
    """A square grid with agents (blue discs) and foods (orange apples): uint8 `[px, px, 3]`.

    `agents` and `foods` are `(row, column, level)`; the level is written on each. Agents that
    share a cell are drawn smaller, side by side. The image is `width` pixels wide, rounded down to
    whole cells, plus a margin.
    """
    cell = max(width // size, 16) * _FINE
    margin = 6 * _FINE
    side = cell * size + 2 * margin
    image = Image.new("RGB", (side, side), _PAPER)
    draw = ImageDraw.Draw(image)
    line = max(_FINE, cell // 40)

    def centre(row: int, col: int | float) -> tuple[float, float]:
        return margin + (col + 0.5) * cell, margin + (row + 0.5) * cell

    draw.rectangle((margin, margin, side - margin, side - margin), fill=_CELL)
    for i in range(size + 1):
        at = margin + i * cell
        draw.line((at, margin, at, side - margin), fill=_LINE, width=line)
        draw.line((margin, at, side - margin, at), fill=_LINE, width=line)
    for row, col, level in foods:
        _apple(draw, *centre(row, col), 0.31 * cell, level)
    crowd = Counter((row, col) for row, col, _ in agents)
    drawn: Counter[tuple[int, int]] = Counter()
    for row, col, level in agents:
        total, index = crowd[row, col], drawn[row, col]
        drawn[row, col] += 1
        # Agents that share a cell stand in a row across it.
        offset = (index - (total - 1) / 2) * 0.9 / total
        _disc(draw, *centre(row, col + offset), 0.36 * cell / max(1, 0.85 * total), level)
    return _shrink(image)


def draw_table(
    values: Float[np.ndarray, "row column"],
    *,
    marked: Collection[tuple[int, int]],
    width: int = 400,
) -> np.ndarray:
    """A table of numbers, blue above and orange below zero: uint8 `[height, width, 3]`.

    Cells whose value is NaN are empty; those in `marked`, `(row, column)`, are framed. The longer
    side is about `width` pixels; only the first `width` rows and columns are shown.
    """
    values = values[:width, :width]
    rows, columns = values.shape
    cell, margin = width // max(rows, columns) * _FINE, 6 * _FINE
    image = Image.new("RGB", (cell * columns + 2 * margin, cell * rows + 2 * margin), _PAPER)
    draw = ImageDraw.Draw(image)
    line = max(1, cell // 40)
    largest = np.nanmax(np.abs(values), initial=1e-30)
    for (row, column), value in np.ndenumerate(values):
        x, y = margin + column * cell, margin + row * cell
        strength = 0.0 if np.isnan(value) else float(abs(value) / largest)
        fill = _blend(_CELL, _AGENT if value > 0 else _FOOD, strength)
        draw.rectangle((x, y, x + cell, y + cell), fill=fill, outline=_LINE, width=line)
        if cell >= 20 * _FINE and not np.isnan(value):
            text = f"{value:.4g}"
            height = cell * min(0.4, 1.4 / len(text))
            ink = _CHALK if value > 0 and strength > 0.5 else _INK
            _number(draw, x + cell / 2, y + cell / 2, height, text, ink)
    for row, column in marked:
        x, y = margin + column * cell, margin + row * cell
        draw.rectangle((x, y, x + cell, y + cell), outline=_INK, width=max(2 * _FINE, cell // 25))
    return _shrink(image)


class Disc(NamedTuple):
    """A disc on a plane. Lengths are fractions of the plane's side, and y points upwards."""

    x: float
    y: float
    radius: float
    colour: tuple[int, ...]
    """Red, green and blue, 0 to 255."""
    label: str = ""


def draw_plane(discs: Sequence[Disc], *, width: int = 400) -> np.ndarray:
    """A square of `width` pixels with `discs`, later ones on top: uint8 `[px, px, 3]`."""
    side = width * _FINE
    image = Image.new("RGB", (side, side), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, side - 1, side - 1), fill=_CELL, outline=_LINE, width=2 * _FINE)
    for disc in discs:
        x, y, r = disc.x * side, (1 - disc.y) * side, max(disc.radius * side, 3 * _FINE)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=disc.colour, outline=_INK, width=_FINE)
        if disc.label:
            _number(draw, x, y, 1.2 * r, disc.label, _CHALK)
    return _shrink(image)


def draw_field(
    terrain: Sequence[str], fighters: Sequence[Fighter], *, width: int = 480
) -> np.ndarray:
    """A terrain with units, about `width` pixels wide: uint8 `[height, width, 3]`.

    `terrain` is rows of cells, the uppermost first: '.' is open, '#' a wall and '~' a cliff. Units
    are discs with a bar for life, and above it one for the shield; their shots are lines.
    """
    cell = max(width // len(terrain[0]), 4) * _FINE
    image = Image.new("RGB", (cell * len(terrain[0]), cell * len(terrain)), _CELL)
    draw = ImageDraw.Draw(image)
    for row, cells in enumerate(terrain):
        for column, kind in enumerate(cells):
            if kind != ".":
                left, top = column * cell, row * cell
                fill = _WALL if kind == "#" else _LINE
                draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=fill)

    def place(x: float, y: float) -> tuple[float, float]:
        return x * cell, image.height - y * cell

    for each in fighters:
        if each.shot:
            colour = _LEAF if each.heals else _FOOD if each.enemy else _AGENT
            ends = (*place(each.x, each.y), *place(*each.shot))
            draw.line(ends, fill=colour, width=max(_FINE, cell // 8))
    for each in fighters:
        _fighter(draw, *place(each.x, each.y), each.radius * cell, each)
    return _shrink(image)


def draw_text(text: str, *, width: int = 640) -> np.ndarray:
    """Lines of `text` in the largest font that fits, on an image in the format 4:3, `width` pixels
    wide: uint8 `[height, width, 3]`."""
    size = (width, width * 3 // 4)
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    for height in range(20, 3, -1):
        font = ImageFont.load_default(size=height)
        box = draw.multiline_textbbox((10, 10), text, font=font)
        if box[2] <= size[0] and box[3] <= size[1]:
            break
    draw.multiline_text((10, 10), text, fill=_INK, font=font)
    return np.asarray(image, dtype=np.uint8).copy()


def _shrink(image: Image.Image) -> np.ndarray:
    return np.asarray(image.reduce(_FINE), dtype=np.uint8).copy()


def _blend(colour: str, other: str, share: float) -> tuple[int, ...]:
    pairs = zip(ImageColor.getrgb(colour), ImageColor.getrgb(other), strict=True)
    return tuple(round(a + (b - a) * share) for a, b in pairs)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, level: int) -> None:
    edge = max(2, round(r / 9))
    draw.ellipse((x - r, y - r, x + r, y + r), fill=_AGENT, outline=_AGENT_EDGE, width=edge)
    _number(draw, x, y, 1.2 * r, level, _CHALK)


def _fighter(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, each: Fighter) -> None:
    fill, outline = (_FOOD, _FOOD_EDGE) if each.enemy else (_AGENT, _AGENT_EDGE)
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=outline, width=_FINE)
    _number(draw, x, y, 1.2 * r, each.label, _INK if each.enemy else _CHALK)
    bar = 3 * _FINE
    for line, (share, colour) in enumerate(((each.life, _LEAF), (each.shield, _SHIELD))):
        if share is not None:
            top = y - r - (line + 1.5) * bar
            draw.rectangle((x - r, top, x + r, top + bar - _FINE), fill=_STALK)
            if share > 0:
                right = x - r + 2 * r * min(share, 1.0)
                draw.rectangle((x - r, top, right, top + bar - _FINE), fill=colour)


def _apple(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, level: int) -> None:
    edge = max(2, round(r / 9))
    y += 0.14 * r
    # Two lobes make the body; an outline is the same shape, a little larger, underneath.
    for grow, colour in ((edge, _FOOD_EDGE), (0, _FOOD)):
        for lobe in (-0.34, 0.34):
            left, right = x + lobe * r - 0.78 * r, x + lobe * r + 0.78 * r
            box = (left - grow, y - 0.92 * r - grow, right + grow, y + r + grow)
            draw.ellipse(box, fill=colour)
    draw.line((x, y - 0.8 * r, x + 0.1 * r, y - 1.35 * r), fill=_STALK, width=2 * edge)
    leaf = (x + 0.12 * r, y - 1.4 * r, x + 0.82 * r, y - 0.98 * r)
    draw.ellipse(leaf, fill=_LEAF)
    _number(draw, x, y + 0.04 * r, 1.25 * r, level, _INK)


def _number(
    draw: ImageDraw.ImageDraw, x: float, y: float, height: float, number: int | str, colour: str
) -> None:
    font = ImageFont.load_default(size=max(8.0, height))
    draw.text(
        (x, y),
        str(number),
        fill=colour,
        font=font,
        anchor="mm",
        stroke_width=max(0, round(height / 26)),
        stroke_fill=colour,
    )
