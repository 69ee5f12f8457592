"""What is odd about data, and how to mend it: gaps, stuck sensors, outliers, negative readings, a level that shifts, many zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stlab.data.formats.content import CHANNEL_AXIS, Series, channel_names
from stlab.data.protocol.season import slot_of_week

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_NAMED = 5
_LEVEL = 0.1  # change of all places together, from the train segment to the test segment, that counts as a shift
_PLACE_LEVEL = 0.2  # the same of one place
_LARGE = 0.1  # of the mean place: below, a place is nearly empty
_FEW_NEGATIVE = 0.01  # share below which negative readings are taken for errors
_OUTLIER_RANGES = 10  # times the range of a node's central 98 %
_MANY_ZEROS = 0.5


def findings(series: Series, family: str, segments: Mapping[str, tuple[int, int]]) -> list[str]:
    """A sentence for each thing that is odd about the readings, each with what to do; empty if nothing is.

    Args:
        series: (T, *S), all of whose channels are looked at.
        segments: name → first step, and the step after the last.
    """
    places = _places(series, family)
    found: list[str] = (
        [f"{series.left_out} Set data.missing: interpolate, or look why they are gone."] if series.left_out else []
    )
    for name, values in zip(channel_names(series, family), _by_channel(series, family), strict=True):
        readings = values.astype(np.float64)
        readings[~np.isfinite(readings)] = np.nan
        if series.null is not None:
            readings[readings == series.null] = np.nan
        about = f"{name}: "
        found += [about + sentence for sentence in _of_channel(readings, series, places, segments)]
    return found


def _by_channel(series: Series, family: str) -> NDArray[np.float32]:
    """(C, T, places)."""
    moved = np.moveaxis(series.values, 1 + CHANNEL_AXIS[family], 0)
    return moved.reshape(*moved.shape[:2], -1)


def _places(series: Series, family: str) -> tuple[str, ...]:
    if family == "sensors":
        return series.node_names or tuple(str(node) for node in range(series.values.shape[1]))
    height, width = series.values.shape[2:]
    return tuple(f"row {row}, column {column}" for row in range(height) for column in range(width))


def _of_channel(
    readings: NDArray[np.float64], series: Series, places: Sequence[str], segments: Mapping[str, tuple[int, int]]
) -> Iterator[str]:
    per_day = None if series.timestamps is None or len(series.timestamps) < 2 else series.slots_per_day
    yield from _gaps(readings, per_day)
    if per_day is not None and per_day > 1:
        yield from _stuck(readings, places, per_day)
    yield from _outliers(readings, series, places)
    yield from _negative(readings)
    yield from _shift(readings, series, places, segments, per_day)
    known = readings[~np.isnan(readings)]
    if known.size and (share := float((known == 0).mean())) > _MANY_ZEROS:
        yield (
            f"{100 * share:.0f} % of the readings are 0. MAE then rewards a forecast of 0, and MAPE leaves these out: give larger cells "
            "or longer steps, or compare by RMSE."
        )


def _gaps(readings: NDArray[np.float64], per_day: int | None) -> Iterator[str]:
    missing = np.isnan(readings).all(axis=1)
    if not missing.any() or missing.all():
        return
    edges = np.flatnonzero(np.diff(np.concatenate([[0], missing.astype(np.int8), [0]])))
    lengths = edges[1::2] - edges[::2]
    longest = int(lengths.max())
    days = f" ({longest / per_day:.1f} days)" if per_day and longest >= per_day else ""
    yield (
        f"{int(missing.sum())} steps have no reading anywhere, in {len(lengths)} gaps, the longest of {longest} steps{days}. "
        "Set data.missing: zero masks them (sensors), interpolate draws a line through them, which is wrong over more than some hours."
    )


def _stuck(readings: NDArray[np.float64], places: Sequence[str], per_day: int) -> Iterator[str]:
    """Places that say the same for a day or longer, other than 0."""
    if len(readings) <= per_day:
        return
    same = (np.diff(readings, axis=0) == 0) & (readings[1:] != 0)
    cumulated = np.cumsum(np.concatenate([np.zeros((1, readings.shape[1])), same]), axis=0)
    whole_day = cumulated[per_day - 1 :] - cumulated[: len(cumulated) - per_day + 1] == per_day - 1
    steps = whole_day.sum(axis=0)
    stuck = np.flatnonzero(steps)
    if len(stuck):
        yield (
            f"{_named(stuck[np.argsort(-steps[stuck], kind='stable')], places)} said the same for a day or longer. A sensor that is stuck "
            "has no reading: write NaN there, or leave the node out."
        )


def _outliers(readings: NDArray[np.float64], series: Series, places: Sequence[str]) -> Iterator[str]:
    alive = np.flatnonzero(~np.isnan(readings).all(axis=0))
    if not len(alive):
        return
    low, middle, high = np.nanquantile(readings[:, alive], (0.01, 0.5, 0.99), axis=0)
    span = high - low
    far = np.abs(readings[:, alive] - middle) > _OUTLIER_RANGES * np.where(span > 0, span, np.inf)
    if not far.any():
        return
    step, node = np.argwhere(far)[0]
    when = f"step {step}" if series.timestamps is None else str(series.timestamps[step])
    yield (
        f"{int(far.sum())} readings are more than ten times as far from their place's median as 98 % of its readings, the first at {when}, "
        f"{places[alive[node]]}: {readings[step, alive[node]]:g}. Look at the raw records; write NaN where it is an error."
    )


def _negative(readings: NDArray[np.float64]) -> Iterator[str]:
    count, known = int((readings < 0).sum()), int((~np.isnan(readings)).sum())
    if 0 < count < _FEW_NEGATIVE * known:
        yield f"{count} readings are negative, where all others are not. If these are counts or speeds, write NaN there."


def _shift(
    readings: NDArray[np.float64], series: Series, places: Sequence[str], segments: Mapping[str, tuple[int, int]], per_day: int | None
) -> Iterator[str]:
    """The level of the test segment against that of the train segment, over the slots of the week that both have in full days."""
    if series.timestamps is None or per_day is None:
        return
    slots = slot_of_week(series.timestamps, series.step_seconds)
    train, test = (_by_slot(readings[start:end], slots[start:end], 7 * per_day) for start, end in (segments["train"], segments["test"]))
    both = ~np.isnan(train) & ~np.isnan(test)
    if (both.any(axis=1)).sum() < per_day:
        return
    before, after = (np.where(both, level, 0.0).sum(axis=0) for level in (train, test))
    if not before.sum() > 0 or (readings < 0).any():
        return
    change = after.sum() / before.sum() - 1
    remedy = (
        "Models that know a level only from training miss that: compare with ridge and same_slot_last_week, and try "
        "model.seasonal_level."
    )
    if abs(change) >= _LEVEL:
        yield f"at the same hours of the week, the test segment has {_percent(change)} than the train segment. {remedy}"
        return
    large = before >= _LARGE * before.mean()
    changes = np.divide(after, before, out=np.ones_like(before), where=large) - 1
    moved = np.flatnonzero(np.abs(changes) >= _PLACE_LEVEL)
    if len(moved):
        order = moved[np.argsort(-np.abs(changes[moved]), kind="stable")]
        first = f"{places[order[0]]}: {_percent(changes[order[0]])}"
        yield (
            f"{len(moved)} of {int(large.sum())} places that are not nearly empty shift by {100 * _PLACE_LEVEL:.0f} % or more from the "
            f"train to the test segment, at the same hours of the week (most: {first}). {remedy}"
        )


def _by_slot(readings: NDArray[np.float64], slots: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(slots of the week, places) means; NaN where there is no reading."""
    known = ~np.isnan(readings)
    sums, counts = np.zeros((count, readings.shape[1])), np.zeros((count, readings.shape[1]))
    np.add.at(sums, slots, np.where(known, readings, 0.0))
    np.add.at(counts, slots, known)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _percent(change: float) -> str:
    return f"{100 * abs(change):.0f} % {'more' if change > 0 else 'less'}"


def _named(indices: NDArray[np.int64], places: Sequence[str]) -> str:
    named = ", ".join(places[i] for i in indices[:_MOST_NAMED])
    more = f" and {len(indices) - _MOST_NAMED} more" if len(indices) > _MOST_NAMED else ""
    return f"{len(indices)} {'place' if len(indices) == 1 else 'places'} ({named}{more})"
