"""Cells on a map: a box of latitudes and longitudes, cut into rows and columns. Row 0 is the north, column 0 the west."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from stlab.errors import DataError

EARTH_METRES = 6_371_008.8
"""Mean radius of the earth."""
_DEGREE = math.pi / 180 * EARTH_METRES
MOST_CELLS = 65_536


@dataclass(frozen=True)
class Box:
    """Degrees; the edges belong to it."""

    south: float
    west: float
    north: float
    east: float

    @property
    def metres(self) -> tuple[float, float]:
        """Height, and width at the middle latitude."""
        middle = math.radians((self.south + self.north) / 2)
        return (self.north - self.south) * _DEGREE, (self.east - self.west) * _DEGREE * math.cos(middle)

    def holds(self, lat: str, lon: str) -> str:
        """SQL: a place lies in the box."""
        return f"{lat} BETWEEN {self.south!r} AND {self.north!r} AND {lon} BETWEEN {self.west!r} AND {self.east!r}"


@dataclass(frozen=True)
class Cells:
    """A box cut into rows and columns."""

    box: Box
    rows: int
    columns: int

    def index(self, lat: str, lon: str) -> str:
        """SQL of the cell of a place, counted row by row; NULL outside the box. An inner edge is the southern or eastern cell's."""
        box = self.box
        height, width = (box.north - box.south) / self.rows, (box.east - box.west) / self.columns
        row, column = f"floor(({box.north!r} - {lat}) / {height!r})", f"floor(({lon} - {box.west!r}) / {width!r})"
        # A quotient may be rounded over an edge; the edge itself decides.
        north, west = repr(box.north), repr(box.west)
        row = f"{row} + ({lat} <= {north} - ({row} + 1) * {height!r})::INT - ({lat} > {north} - {row} * {height!r})::INT"
        column = f"{column} + ({lon} >= {west} + ({column} + 1) * {width!r})::INT - ({lon} < {west} + {column} * {width!r})::INT"
        limits = ((row, self.rows - 1), (column, self.columns - 1))
        row, column = (f"CAST(least(greatest({number}, 0), {last}) AS INTEGER)" for number, last in limits)
        return f"CASE WHEN {box.holds(lat, lon)} THEN {row} * {self.columns} + {column} END"


def box_of(values: tuple[float, float, float, float]) -> Box:
    """The box of south, west, north, east.

    Raises:
        DataError: the degrees are none, or not in this order.
    """
    south, west, north, east = values
    if not (-90 <= south < north <= 90 and -180 <= west < east <= 180):
        raise DataError(
            f"--box {south} {west} {north} {east}: give the degrees SOUTH WEST NORTH EAST: --box 40.70 -74.02 40.81 -73.93."
        )
    return Box(south, west, north, east)


def counted_cells(box: Box, text: str) -> Cells:
    """The box cut into rows × columns, such as ``16x8``.

    Raises:
        DataError: the text has another form, or there are too many cells.
    """
    found = re.fullmatch(r"(\d+)\s*[x×*,]\s*(\d+)", text.strip())
    if not found or not int(found[1]) or not int(found[2]):
        raise DataError(f"--cells {text}: give rows and columns, for example --cells 16x8.")
    return _sound(Cells(box, int(found[1]), int(found[2])), f"--cells {text}")


def metric_cells(box: Box, metres: float) -> Cells:
    """Square cells of a side. The box grows around its centre to whole cells.

    Raises:
        DataError: the side is no length, or there are too many cells.
    """
    if not metres > 0 or not math.isfinite(metres):
        raise DataError(f"--cell-metres {metres:g}: give a length above 0, for example 500.")
    height, width = box.metres
    rows, columns = (max(1, math.ceil(side / metres - 1e-9)) for side in (height, width))
    lat, lon = (box.south + box.north) / 2, (box.west + box.east) / 2
    half_lat = rows * metres / _DEGREE / 2
    half_lon = columns * metres / (_DEGREE * math.cos(math.radians(lat))) / 2
    return _sound(
        Cells(Box(lat - half_lat, lon - half_lon, lat + half_lat, lon + half_lon), rows, columns),
        f"--cell-metres {metres:g}",
    )


def _sound(cells: Cells, option: str) -> Cells:
    if cells.rows * cells.columns > MOST_CELLS:
        raise DataError(
            f"{option}: {cells.rows} × {cells.columns} cells are more than {MOST_CELLS}. Give larger cells, or a smaller --box."
        )
    return cells
