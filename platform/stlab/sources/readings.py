"""Readings of sensors or counters, one a line, brought onto even steps: a table of time, node and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from stlab.errors import DataError
from stlab.sources.clock import DAY_SECONDS
from stlab.sources.outcome import MALFORMED, Cases, Tally, tallied, why
from stlab.sources.records import Loaded, check_named
from stlab.sources.span import Span, covered
from stlab.sources.sql import Progress, executed, id_of, literal, number, quoted

if TYPE_CHECKING:
    import duckdb

_ENOUGH_TIMES = 10  # to see how far apart readings are
READINGS = " readings "
"""The column of the table ``steps`` with the number of readings; no file has a column of this name."""
How = Literal["mean", "sum", "max", "min", "last"]
_AGGREGATES = {"mean": "avg", "sum": "sum", "max": "max", "min": "min"}


class ReadingTable:
    """Readings of the table ``records``, by step and node."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        values: Mapping[str, str],
        how: How,
        loaded: Loaded,
        without: Sequence[str] = (),
    ) -> None:
        """
        Args:
            values: role → the name of the channel.
            how: how several readings of a step become one.
            without: nodes that are left out.
        """
        self._connection, self._values, self._how, self._loaded, self._without = (
            connection,
            values,
            how,
            loaded,
            without,
        )

    def span(self, begin: datetime | None, end: datetime | None, seconds: int) -> tuple[Span, list[str]]:
        """The steps that are made, and the stretches that are not; see :func:`covered`.

        Raises:
            DataError: no reading is left, or no step; or no record names a node that is to be left out.
        """
        check_named(self._connection, self._without, ["node"])
        tallied(self._connection, "readings", self._cases(None), self._loaded)
        kept = f"SELECT time AS t FROM records WHERE {why(self._cases(None))} IS NULL"
        span, lost = covered(self._connection, kept, begin, end, seconds)
        # A log may begin and end in the middle of a day.
        row = self._connection.execute(f"SELECT min(t), max(t) FROM ({kept}) WHERE NOT ({span.outside('t')})").fetchone()
        if row is None or row[0] is None:
            return span, lost
        first, last = (int((time - span.start).total_seconds() // seconds) for time in row)
        first, last = 0 if begin else first, span.steps - 1 if end else last
        return Span(span.start + timedelta(seconds=first * seconds), last - first + 1, seconds), lost

    def write(self, span: Span, progress: Progress | None = None) -> list[Tally]:
        """Write the table ``steps`` (timestamp, node, a column a channel, ``readings``), and tell what became of the records.

        Raises:
            DataError: nothing is left.
        """
        tally = tallied(self._connection, "readings", self._cases(span), self._loaded)
        values = ", ".join(f"{self._aggregate(role)} AS {quoted(name)}" for role, name in self._values.items())
        node = id_of(self._connection, "records", "node")
        executed(
            self._connection,
            f"CREATE TABLE steps AS SELECT {span.first_time(span.step('time'))} AS timestamp, {node} AS node, {values}, "
            f"count(*) AS {quoted(READINGS)} FROM records WHERE {why(self._cases(span))} IS NULL GROUP BY 1, 2",
            "aggregating",
            progress,
        )
        self._check_step(span)
        return [tally]

    def _check_step(self, span: Span) -> None:
        """Refuse steps that are shorter than the time between two readings: most would be empty."""
        row = self._connection.execute(
            "SELECT mode(gap), count(*) FROM (SELECT epoch(timestamp - lag(timestamp) OVER (ORDER BY timestamp)) AS gap "
            "FROM (SELECT DISTINCT timestamp FROM steps))"
        ).fetchone()
        if row and row[1] >= _ENOUGH_TIMES and span.seconds < row[0] <= DAY_SECONDS:
            gap, step = (f"{seconds / 60:g} min" for seconds in (row[0], span.seconds))
            raise DataError(f"the readings are {gap} apart, and steps of {step} would mostly be empty. Give --step {gap.replace(' ', '')}.")

    def _aggregate(self, role: str) -> str:
        value = quoted(role)
        return f"arg_max({value}, time)" if self._how == "last" else f"{_AGGREGATES[self._how]}({value})"

    def facts(self, span: Span) -> dict[str, object]:
        """What to know of the table: its nodes, the share of steps with a reading, and steps that have fewer readings than most."""
        row = self._connection.execute(f"SELECT count(DISTINCT node), count(*), mode({quoted(READINGS)}) FROM steps").fetchone()
        assert row is not None
        nodes, cells, usual = int(row[0]), int(row[1]), int(row[2])
        fewer = number(self._connection, f"SELECT count(*) FROM steps WHERE {quoted(READINGS)} < {usual}")
        kept = f"SELECT 1 FROM records WHERE {why(self._cases(span))} IS NULL"
        several = number(self._connection, f"SELECT count(*) FROM ({kept} GROUP BY time, node HAVING count(*) > 1)")
        return {
            "nodes": nodes, "missing": span.steps * nodes - cells, "readings_a_step": usual, "steps_with_fewer": fewer,
            "several_readings_of_one_time": several,
        }  # fmt: skip

    def rows_between(self, span: Span, begin: datetime, end: datetime) -> int:
        """How many readings that are kept lie between two local times."""
        kept = f"SELECT count(*) FROM records WHERE {why(self._cases(span))} IS NULL AND time >= ? AND time < ?"
        row = self._connection.execute(kept, [begin, end]).fetchone()
        return int(row[0]) if row else 0

    def _cases(self, span: Span | None) -> Cases:
        bad = " OR ".join(quoted(f"bad_{role}") for role in ("time", *self._values))
        empty = " AND ".join(f"{quoted(role)} IS NULL" for role in self._values)
        cases = [
            (bad, MALFORMED),
            ("time IS NULL", "no time"),
            ("coalesce(node, '') = ''", "no place"),
            (empty, "no reading"),
        ]
        cases += [("rowid IN (SELECT id FROM surplus)", "duplicate")]
        if self._without:
            cases += [(f"node IN ({', '.join(map(literal, self._without))})", "left out")]
        return cases if span is None else [*cases, (span.outside("time"), "outside the times")]
