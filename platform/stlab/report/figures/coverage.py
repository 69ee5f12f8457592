"""A calendar of the missing readings: which hours of which days lack them, and where the segments begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stlab.report.figures.style import TRUTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

HEIGHT = 1.7
"""Inches."""


@dataclass(frozen=True)
class Coverage:
    """What a series lacks."""

    times: NDArray[np.datetime64]
    """(T,)."""
    missing: NDArray[np.float64]
    """(T,) shares of the places without a reading, 0 to 1."""
    begins: Mapping[str, np.datetime64]
    """Segment → the time of its first step."""


def calendar(axes: Axes, coverage: Coverage) -> None:
    """Draw days across and hours down; each cell is the share of places without a reading, with a line where a segment begins."""
    import matplotlib.dates as dates
    from matplotlib.colors import LinearSegmentedColormap

    days = coverage.times.astype("datetime64[D]")
    first, last = days.min(), days.max()
    count = int((last - first).astype(np.int64)) + 1
    step = (coverage.times[1] - coverage.times[0]).astype("timedelta64[s]").astype(np.int64)
    per_day = int(86_400 // step)
    cells = np.full((per_day, count), np.nan)
    of_day = (coverage.times - days).astype("timedelta64[s]").astype(np.int64) // step
    cells[of_day, (days - first).astype(np.int64)] = 100 * coverage.missing
    left, right = (_number(day) for day in (first, last + np.timedelta64(1, "D")))
    shades = LinearSegmentedColormap.from_list("missing", ["#eef3f7", "#d55e00"])
    most = float(np.nanmax(cells))
    where = (left, right, 24, 0)
    image = axes.imshow(cells, aspect="auto", interpolation="nearest", extent=where, cmap=shades, vmin=0, vmax=max(1.0, most))
    for number, (name, begin) in enumerate(coverage.begins.items()):
        at = _number(begin)
        if number:
            axes.axvline(at, color=TRUTH, linewidth=1.2)
        axes.annotate(name, (at, 24), (4, 4), textcoords="offset points", fontsize=8, color=TRUTH)
    locator = dates.AutoDateLocator(maxticks=9)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_yticks(range(0, 25, 6), [f"{hour:02d}:00" for hour in range(0, 25, 6)])
    axes.grid(False)
    axes.set_title(f"{'missing readings by day and hour' if most else 'no reading is missing'}, and where the segments begin", loc="left")
    if most:
        bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
        bar.set_label("% missing")
        bar.outline.set_visible(False)  # type: ignore[operator]


def _number(time: np.datetime64) -> float:
    """A time as matplotlib's axes count it."""
    import matplotlib.dates as dates

    return float(dates.date2num(time))  # type: ignore[no-untyped-call]
