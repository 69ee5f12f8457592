"""Steps of a day, time zones, and the hours that a change of the clocks skips or repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import pandas as pd

from stlab.errors import DataError

DAY_SECONDS = 86_400  # that of stlab.data would import torch
_EXAMPLES = "5min, 30min, 1h"


def step_seconds(text: str) -> int:
    """Seconds of a step such as ``30min``.

    Raises:
        DataError: it is no duration, or does not divide a day.
    """
    try:
        seconds = pd.Timedelta(text).total_seconds()
    except ValueError:
        raise DataError(f"--step {text}: no duration. Give, for example, {_EXAMPLES}.") from None
    if not seconds.is_integer() or seconds <= 0 or DAY_SECONDS % int(seconds):
        raise DataError(
            f"--step {text}: does not divide a day, so there is no slot of the week. Give, for example, {_EXAMPLES}."
        )
    return int(seconds)


def checked_zone(name: str, option: str) -> str:
    """The name of a time zone.

    Raises:
        DataError: there is none of that name.
    """
    import difflib

    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        near = difflib.get_close_matches(name, sorted(available_timezones()), n=2, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise DataError(
            f"{option} {name}: no time zone. {hint}Names are those of the IANA list, such as America/New_York or UTC."
        ) from None
    return name


@dataclass(frozen=True)
class ClockChange:
    """A change of the clocks, in local time."""

    kind: str
    """``skipped``: these local times do not exist; ``repeated``: they exist twice."""
    begin: datetime
    end: datetime

    def words(self, rows: int) -> str:
        """A sentence on the change and the records in it."""
        span = f"{self.begin:%Y-%m-%d %H:%M} to {self.end:%H:%M}"
        if self.kind == "repeated":
            return f"{span} exists twice: {rows} records of both stand in one place"
        return f"{span} does not exist: " + (
            "no record" if not rows else f"{rows} records, kept as they stand. Are the times UTC or standard time?"
        )

    def words_of_source(self, zone: str) -> str:
        """A sentence on times that are converted from this zone."""
        span = f"{self.begin:%Y-%m-%d %H:%M} to {self.end:%H:%M} in {zone}"
        if self.kind == "repeated":
            return f"{span} exists twice: records of both are taken for the later, in standard time"
        return f"{span} does not exist: records in it are taken for the hour after"


def clock_changes(zone: str, begin: datetime, end: datetime) -> list[ClockChange]:
    """The changes of a zone's clocks that touch a span of local time, in order."""
    info = ZoneInfo(zone)
    day = begin.replace(tzinfo=UTC) - timedelta(days=2)
    last = end.replace(tzinfo=UTC) + timedelta(days=2)
    found = []
    while day < last:
        after = day + timedelta(days=1)
        if day.astimezone(info).utcoffset() != after.astimezone(info).utcoffset():
            found.append(_change(info, day, after))
        day = after
    return [change for change in found if change.begin < end and change.end > begin]


def _change(info: ZoneInfo, low: datetime, high: datetime) -> ClockChange:
    """The change between two moments, of which there is one."""
    before = low.astimezone(info).utcoffset() or timedelta()
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        low, high = (middle, high) if middle.astimezone(info).utcoffset() == before else (low, middle)
    moment = high.replace(microsecond=0)
    after = moment.astimezone(info).utcoffset() or timedelta()
    ends = sorted(((moment + before).replace(tzinfo=None), (moment + after).replace(tzinfo=None)))
    return ClockChange("skipped" if after > before else "repeated", *ends)


def covered_steps(changes: Sequence[ClockChange], start: datetime, seconds: int) -> dict[str, list[str]]:
    """Kind → the first times of the steps that such changes touch."""
    result: dict[str, list[str]] = {}
    for change in changes:
        step = int((change.begin - start).total_seconds() // seconds)
        while start + timedelta(seconds=step * seconds) < change.end:
            result.setdefault(change.kind, []).append((start + timedelta(seconds=step * seconds)).isoformat())
            step += 1
    return result
