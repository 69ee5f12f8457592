"""Trips counted in cells or zones and steps: where they begin (outflow) and, if asked for, where they end (inflow)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from stlab.errors import DataError
from stlab.sources.cells import Box
from stlab.sources.outcome import MALFORMED, Cases, Tally, tallied, why
from stlab.sources.records import Loaded, check_named
from stlab.sources.span import Span, covered
from stlab.sources.sql import Progress, executed, literal, quoted

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

CENTRAL = 0.99
"""Share of the coordinates, in latitude and in longitude, that the box holds where none is said."""
_ROUNDED = 10_000  # parts of a degree: 11 m


@dataclass(frozen=True)
class End:
    """The beginning or the end of a trip: roles of the table ``records``."""

    channel: str
    time: str
    place: tuple[str, ...]
    """Latitude and longitude, or a zone."""


def mark_duplicates(connection: duckdb.DuckDBPyConnection, progress: Progress | None = None) -> None:
    """Write the table ``surplus`` of the rows that stand in the records before, equal in every column.

    Rows are compared by a hash of 64 bits: of ten million different rows, two are taken for one with a chance of three in a million.
    """
    executed(
        connection,
        "CREATE TABLE surplus AS SELECT r.rowid AS id FROM records r JOIN (SELECT row_hash, min(rowid) AS first FROM records "
        "GROUP BY row_hash HAVING count(*) > 1) s ON r.row_hash = s.row_hash WHERE r.rowid <> s.first",
        "comparing rows",
        progress,
    )


def central_box(connection: duckdb.DuckDBPyConnection, ends: Sequence[End]) -> Box:
    """The box of the central share of all coordinates.

    Raises:
        DataError: there is no coordinate.
    """
    edges = []
    for axis in (0, 1):
        parts = [f"SELECT {quoted(end.place[axis])} AS x FROM records WHERE {_is_placed(end)}" for end in ends]
        rows = connection.execute(
            f"SELECT CAST(round(x * {_ROUNDED}) AS BIGINT) AS x, count(*) FROM ({' UNION ALL '.join(parts)}) GROUP BY 1 ORDER BY 1"
        ).fetchnumpy()
        values, counts = (np.asarray(column, np.int64) for column in rows.values())
        if not len(values):
            raise DataError("no record has a coordinate. Are the columns right?")
        cumulated = np.cumsum(counts) / counts.sum()
        low, high = (values[np.searchsorted(cumulated, share)] for share in ((1 - CENTRAL) / 2, (1 + CENTRAL) / 2))
        edges.append((low / _ROUNDED, (high if high > low else low + 1) / _ROUNDED))
    (south, north), (west, east) = edges
    if south < -90 or north > 90 or west < -180 or east > 180:
        raise DataError(
            f"the latitudes are {south:g} to {north:g} and the longitudes {west:g} to {east:g}: these are no degrees. Are the columns "
            "right (--lat, --lon)? Metres of a projection have to be converted first."
        )
    return Box(float(south), float(west), float(north), float(east))


def _is_placed(end: End) -> str:
    """SQL: the record says where. Many publishers write 0, 0 where they do not know."""
    places = [quoted(role) for role in end.place]
    said = " AND ".join(f"{place} IS NOT NULL" for place in places)
    return f"({said} AND NOT ({places[0]} = 0 AND {places[1]} = 0))" if len(places) == 2 else f"({said})"


class TripCounter:
    """Counts the ends of trips by place and step, and what became of each record."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        ends: Sequence[End],
        places: Mapping[str, str],
        loaded: Loaded,
        without: Sequence[str] = (),
    ) -> None:
        """
        Args:
            places: channel → SQL of a place's number; NULL where it is none.
            without: zones that are left out.
        """
        self._connection, self._ends, self._places, self._loaded, self._without = (
            connection,
            ends,
            places,
            loaded,
            without,
        )

    def span(self, begin: datetime | None, end: datetime | None, seconds: int) -> tuple[Span, list[str]]:
        """The steps that are counted, and the stretches that are not; see :func:`covered`.

        Raises:
            DataError: no record is left, or no step; or no record names a zone that is to be left out.
        """
        check_named(self._connection, self._without, [end_of_trip.place[0] for end_of_trip in self._ends])
        # Trips that begin on the last evening end on a day that has nothing else.
        first = self._ends[0]
        tallied(self._connection, first.channel, self._cases(first, None), self._loaded)  # says why, if none is left
        kept = f"SELECT {quoted(first.time)} AS t FROM records WHERE {why(self._cases(first, None))} IS NULL"
        return covered(self._connection, kept, begin, end, seconds)

    def count(self, span: Span, progress: Progress | None = None) -> list[Tally]:
        """Write the table ``counts`` (channel, step, place, trips), and tell what became of the records of each channel.

        Raises:
            DataError: nothing was counted.
        """
        tallies = [tallied(self._connection, end.channel, self._cases(end, span), self._loaded) for end in self._ends]
        parts = [
            f"SELECT {channel} AS channel, {span.step(quoted(end.time))} AS step, {self._places[end.channel]} AS place, count(*) AS trips "
            f"FROM records WHERE {why(self._cases(end, span))} IS NULL GROUP BY ALL"
            for channel, end in enumerate(self._ends)
        ]
        executed(self._connection, f"CREATE TABLE counts AS {' UNION ALL '.join(parts)}", "counting", progress)
        return tallies

    def rows_between(self, span: Span, begin: datetime, end: datetime) -> int:
        """How many ends that are kept lie between two local times."""
        inside = [f"SELECT {quoted(e.time)} AS t FROM records WHERE {why(self._cases(e, span))} IS NULL" for e in self._ends]
        row = self._connection.execute(
            f"SELECT count(*) FROM ({' UNION ALL '.join(inside)}) WHERE t >= ? AND t < ?", [begin, end]
        ).fetchone()
        return int(row[0]) if row else 0

    def _cases(self, end: End, span: Span | None) -> Cases:
        time, is_zone = quoted(end.time), len(end.place) == 1
        bad = " OR ".join(quoted(f"bad_{role}") for role in (end.time, *([] if is_zone else end.place)))
        cases = [
            (bad, MALFORMED),
            (f"{time} IS NULL", "no time"),
            (f"NOT {_is_placed(end)}", "no place" if is_zone else "no coordinate"),
        ]
        cases += [("rowid IN (SELECT id FROM surplus)", "duplicate")]
        if self._without:
            cases += [(f"{quoted(end.place[0])} IN ({', '.join(map(literal, self._without))})", "left out")]
        cases += [(f"({self._places[end.channel]}) IS NULL", "outside the box")]
        return cases if span is None else [*cases, (span.outside(time), "outside the times")]


def counted_grid(connection: duckdb.DuckDBPyConnection, span: Span, channels: int, places: int) -> NDArray[np.float32]:
    """The table ``counts`` as (steps, channels, places)."""
    result = np.zeros((span.steps, channels, places), np.float32)
    found = {
        name: np.asarray(column, np.int64)
        for name, column in connection.execute("SELECT * FROM counts").fetchnumpy().items()
    }
    result[found["step"], found["channel"], found["place"]] = found["trips"]
    return result
