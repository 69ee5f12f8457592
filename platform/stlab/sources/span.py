"""The times that a data set covers, where nobody says them: clocks that stood in 2001 must not make twenty empty years of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from stlab.errors import DataError
from stlab.sources.sql import literal

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

_GAP_DAYS = 7
_THIN = 0.01  # of the median day's records


def said_time(text: str, option: str) -> datetime:
    """A time that a user gives.

    Raises:
        DataError: it is no ISO time, or has an offset.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"{option} {text}: no ISO time. Give, for example, 2024-01-01 or 2024-01-01T06:00.") from None
    if time.tzinfo is not None:
        raise DataError(f"{option} {text}: leave the offset out; the time is in the zone of --tz.")
    return time


def dense_days(days: Sequence[tuple[datetime, int]]) -> tuple[datetime, datetime, list[str]]:
    """The first day, and the day after the last, of the stretch that holds the most records; and the other stretches, in words.

    A stretch ends where a week has none. At its ends, days with less than a hundredth of the median day's records are left out.

    Args:
        days: midnight and number of records of each day that has any, in order.
    """
    dates = np.array([day for day, _ in days], "datetime64[D]")
    counts = np.array([count for _, count in days], np.int64)
    breaks = np.flatnonzero(np.diff(dates).astype(np.int64) > _GAP_DAYS) + 1
    stretches = np.split(np.arange(len(days)), breaks)
    best = max(stretches, key=lambda stretch: int(counts[stretch].sum()))
    enough = best[counts[best] >= _THIN * np.median(counts[best])]
    first, last = days[int(enough[0])][0], days[int(enough[-1])][0]
    lost = [f"{dates[one[0]]} to {dates[one[-1]]} ({int(counts[one].sum()):,} records)" for one in stretches if one is not best]
    return first, last + timedelta(days=1), lost


@dataclass(frozen=True)
class Span:
    """The steps of an output."""

    start: datetime
    steps: int
    seconds: int

    @property
    def end(self) -> datetime:
        return self.start + timedelta(seconds=self.steps * self.seconds)

    def timestamps(self) -> NDArray[np.datetime64]:
        """(steps,) datetime64[s]."""
        return np.datetime64(self.start, "s") + np.arange(self.steps) * np.timedelta64(self.seconds, "s")

    def step(self, time: str) -> str:
        """SQL of the number of a time's step."""
        return f"CAST(floor((epoch({time}) - epoch({self._begin()})) / {self.seconds}) AS BIGINT)"

    def first_time(self, step: str) -> str:
        """SQL of the time at which a step begins."""
        return f"{self._begin()} + to_seconds({step} * {self.seconds})"

    def outside(self, time: str) -> str:
        """SQL: a time is in none of the steps."""
        return f"{time} < {self._begin()} OR {time} >= TIMESTAMP {literal(str(self.end))}"

    def _begin(self) -> str:
        return f"TIMESTAMP {literal(str(self.start))}"


def covered(
    connection: duckdb.DuckDBPyConnection, times: str, begin: datetime | None, end: datetime | None, seconds: int
) -> tuple[Span, list[str]]:
    """The steps from ``begin`` to ``end``; where one is not said, that of the days with records (:func:`dense_days`).

    With them come the stretches of days that are left out for that, in words.

    Args:
        times: a query whose column ``t`` holds the times of the records that are kept; there is at least one.

    Raises:
        DataError: no step lies between them.
    """
    days = connection.execute(
        f"SELECT CAST(date_trunc('day', t) AS TIMESTAMP), count(*) FROM ({times}) GROUP BY 1 ORDER BY 1"
    ).fetchall()
    first, last, lost = dense_days(days)
    lost = [] if begin or end else lost
    begin, end = begin or first, end or last
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    start = midnight + timedelta(seconds=(begin - midnight).total_seconds() // seconds * seconds)
    steps = -(-int((end - start).total_seconds()) // seconds)
    if steps <= 0:
        raise DataError(
            f"--from {begin} --to {end}: no step lies between them. The records are of {days[0][0]:%Y-%m-%d} to {days[-1][0]:%Y-%m-%d}."
        )
    return Span(start, steps, seconds), lost
