"""Timestamps for files without any: the user gives them, or the file is one of the public PEMS files."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from stlab.data.formats.checks import checked_timestamps
from stlab.data.formats.content import Series
from stlab.errors import DataError

if TYPE_CHECKING:
    from stlab.study.spec import DataSpec


@dataclass(frozen=True)
class _Known:
    """A public file: its size, and the time of its first step."""

    nodes: int
    steps: int
    start: str


_PEMS_MINUTES = 5
_PEMS_CHANNELS = ("flow", "occupancy", "speed")
# By the name of the file. The sizes are those of the public files of STSGCN (Song et al., AAAI 2020) and ASTGCN.
_PEMS = {
    "pems03": _Known(358, 26_208, "2018-09-01"),
    "pems04": _Known(307, 16_992, "2018-01-01"),
    "pems07": _Known(883, 28_224, "2017-05-01"),
    "pems08": _Known(170, 17_856, "2016-07-01"),
}


def with_timestamps(series: Series, spec: DataSpec) -> Series:
    """The series with the timestamps of the specification, or with those of a known file, or unchanged.

    A file is known as PEMS03, 04, 07 or 08 if its name and its numbers of nodes and steps agree. Its channels then get their names, too.

    Raises:
        DataError: the file has timestamps of its own, or no valid timestamps follow from a step of this length.
    """
    if spec.start is not None and spec.step_minutes is not None:
        if series.timestamps is not None:
            raise DataError(
                f"{series.source}: the file has timestamps of its own, from {series.timestamps[0]}. Leave data.start "
                "and data.step_minutes out."
            )
        return replace(series, timestamps=_regular(series, spec.start, spec.step_minutes))
    known = _PEMS.get(series.name.lower())
    steps, nodes, channels = series.values.shape if series.values.ndim == 3 else (0, 0, 0)
    if known is None or (known.nodes, known.steps) != (nodes, steps):
        return series
    if series.channel_names is None and channels <= len(_PEMS_CHANNELS):
        series = replace(series, channel_names=_PEMS_CHANNELS[:channels])
    if series.timestamps is not None:
        return series
    return replace(series, timestamps=_regular(series, known.start, _PEMS_MINUTES))


def _regular(series: Series, start: str, minutes: float) -> np.ndarray:
    seconds = round(60 * minutes)
    if seconds < 1 or abs(60 * minutes - seconds) > 1e-6:
        raise DataError(f"{series.source}: data.step_minutes={minutes:g} is not a whole number of seconds.")
    steps = len(series.values)
    times = np.datetime64(datetime.datetime.fromisoformat(start), "s") + np.arange(steps) * np.timedelta64(seconds, "s")
    return checked_timestamps(times, steps, series.source, "data.start, data.step_minutes")
