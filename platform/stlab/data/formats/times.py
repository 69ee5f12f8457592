"""Timestamps for files that hold none: said by the user, or known of the public PEMS files."""

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
# By the file's name. Protocol, "Data"; sizes as in the public files of STSGCN (Song et al., AAAI 2020) and ASTGCN.
_PEMS = {
    "pems03": _Known(358, 26_208, "2018-09-01"),
    "pems04": _Known(307, 16_992, "2018-01-01"),
    "pems07": _Known(883, 28_224, "2017-05-01"),
    "pems08": _Known(170, 17_856, "2016-07-01"),
}


def with_timestamps(series: Series, spec: DataSpec) -> Series:
    """The series with the timestamps that the specification gives, else with those known of its file, else as it is.

    A file is known as PEMS03, 04, 07 or 08 when its name, its number of nodes and of steps agree; its channels get
    their names then, too.

    Raises:
        DataError: the file has timestamps of its own, or steps of this length are no timestamps.
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
        raise DataError(f"{series.source}: data.step_minutes={minutes:g} is no whole number of seconds.")
    steps = len(series.values)
    times = np.datetime64(datetime.datetime.fromisoformat(start), "s") + np.arange(steps) * np.timedelta64(seconds, "s")
    return checked_timestamps(times, steps, series.source, "data.start, data.step_minutes")
