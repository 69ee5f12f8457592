"""Checks of the content of a file. Every message names the file, the array, the index and the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stlab.data.formats.content import CHANNEL_AXIS, DAY_SECONDS, FAMILY_AXES, Series
from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HINTS = {
    ("grid", 2): "Time × cells has to be given its channel and grid axes; time × sensors is data.family: sensors.",
    ("grid", 3): "(T, H, W) lacks its channel axis: save data[:, None]. (T, N, C) is sensors: data.family: sensors.",
    ("sensors", 1): "A single sensor has shape (T, 1).",
    ("sensors", 5): "Windows are cut here: save the series they were cut from.",
    ("grid", 5): "Windows are cut here: save the series they were cut from.",
}


def checked_values(array: NDArray[np.generic], family: str, source: str, name: str = "data") -> NDArray[np.float32]:
    """The array as float32 (T, *S), C-contiguous.

    Raises:
        DataError: the rank is wrong, an axis is empty, the values are not numbers, or float32 cannot hold a finite value.
    """
    axes = FAMILY_AXES[family]
    if array.ndim != len(axes):
        raise DataError(
            f"{source}: array `{name}` has {array.ndim} axes, shape {array.shape}; a {family} has {len(axes)}: "
            f"({', '.join(axes)}). {_HINTS.get((family, array.ndim), 'Reshape it.')}"
        )
    for axis, size in zip(axes, array.shape, strict=True):
        if size == 0:
            raise DataError(
                f"{source}: array `{name}` is empty: axis {axis} of shape {array.shape} has length 0. Save it again "
                "with data in it."
            )
    if array.dtype.kind not in "fiub":
        raise DataError(f"{source}: array `{name}` holds {array.dtype}, not real numbers. Save it as float32.")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        overflow = np.isinf(values) & np.isfinite(array)
        if overflow.any():
            first = _first(overflow)
            raise DataError(
                f"{source}: {int(overflow.sum())} values of array `{name}` are beyond float32's range, the first at "
                f"{_place(first, axes)}: {array[first]:g}. As float32 they would be infinite; save the data in a "
                "larger unit, or mark them as NaN."
            )
    return values


def checked_timestamps(
    array: NDArray[np.generic], steps: int, source: str, name: str = "timestamps"
) -> NDArray[np.datetime64]:
    """The timestamps as datetime64[s], (T,), which increase in even steps that divide a day.

    Raises:
        DataError: type, length or rank is wrong, a time is missing or has fractions of a second, the times do not increase in even
            steps, or the step does not divide a day.
    """
    where = f"{source}: array `{name}`"
    if array.dtype.kind != "M":
        raise DataError(
            f"{where} holds {array.dtype}, not datetime64. Save it as numpy datetime64[s], or leave it out."
        )
    if array.shape != (steps,):
        raise DataError(
            f"{where} has shape {array.shape}, but `data` has {steps} steps: one time a step, shape ({steps},), is "
            "needed."
        )
    if np.isnat(array).any():
        first = int(np.argmax(np.isnat(array)))
        raise DataError(
            f"{where}: index {first} is not a time (NaT). Every step needs its time; put NaN into `data` where a "
            "reading is missing."
        )
    times = array.astype("datetime64[s]")
    if (times.astype(array.dtype) != array).any():
        first = int(np.argmax(times.astype(array.dtype) != array))
        raise DataError(f"{where}: index {first} ({array[first]}) is no whole second. Round the times to seconds.")
    if steps > 1:
        _check_even(times, where)
    return times


def _check_even(times: NDArray[np.datetime64], where: str) -> None:
    gaps = np.diff(times).astype(np.int64)
    if (gaps <= 0).any():
        at = int(np.argmax(gaps <= 0))
        raise DataError(
            f"{where} does not increase: index {at + 1} ({times[at + 1]}) follows index {at} ({times[at]}). Sort by "
            "time and drop doubles; in local time a clock change does this: use standard time or UTC."
        )
    kinds, counts = np.unique(gaps, return_counts=True)
    step = int(kinds[np.argmax(counts)])
    if (gaps != step).any():
        at = int(np.argmax(gaps != step))
        raise DataError(
            f"{where} is irregular: from index {at} ({times[at]}) to index {at + 1} ({times[at + 1]}) are "
            f"{gaps[at]} s, where the step is {step} s; {int((gaps != step).sum())} such places. Put the series on "
            "an even step, with NaN where there is no reading, and set data.missing."
        )
    if DAY_SECONDS % step:
        raise DataError(
            f"{where}: the step of {step} s ({times[0]} to {times[1]}) does not divide a day, so there is no slot "
            "of the week. Resample to a step that does (5 min, 30 min, 1 h, …), or leave the timestamps out."
        )


def on_even_grid(
    times: NDArray[np.datetime64], values: NDArray[np.float64], where: str
) -> tuple[NDArray[np.datetime64], NDArray[np.float64], str]:
    """Insert NaN for the steps that a table leaves out: times, values (T, …), and a sentence on the steps that were inserted.

    PEMS-BAY lacks the hour that the clocks skip. If a gap is not a whole number of steps, or more steps are missing than present, the
    table is returned unchanged, and :func:`checked_timestamps` reports the error.
    """
    if len(times) < 2 or np.isnat(times).any():
        return times, values, ""
    gaps = np.diff(times.astype("datetime64[s]")).astype(np.int64)
    kinds, counts = np.unique(gaps, return_counts=True)
    step = int(kinds[np.argmax(counts)])
    if gaps.min() <= 0 or (gaps % step).any() or (gaps == step).all():
        return times, values, ""
    at = np.concatenate([[0], np.cumsum(gaps // step)])
    left_out = int(at[-1]) + 1 - len(times)
    if left_out > len(times):
        return times, values, ""
    filled = np.full((int(at[-1]) + 1, *values.shape[1:]), np.nan, values.dtype)
    filled[at] = values
    first = int(np.argmax(gaps != step))
    sentence = (
        f"{where} is irregular: from index {first} ({times[first]}) to index {first + 1} ({times[first + 1]}) are "
        f"{gaps[first]} s, where the step is {step} s; {left_out} steps are left out, and count as missing."
    )
    return times[0].astype("datetime64[s]") + np.arange(int(at[-1]) + 1) * np.timedelta64(step, "s"), filled, sentence


def missing_message(series: Series, family: str) -> str | None:
    """The message on non-finite values: their number, and place and time of the first. None if there are none."""
    values = series.values
    missing = ~np.isfinite(values)
    count = int(missing.sum())
    if not count:
        return None
    first = _first(missing)
    when = [] if series.timestamps is None else [str(series.timestamps[first[0]])]
    who = [f"node {series.node_names[first[1]]}"] if series.node_names and family == "sensors" else []
    details = f" ({', '.join(when + who)})" if when or who else ""
    zero = "zero (they then are missing readings, masked out)" if series.null == 0 else "zero"
    return (
        f"{series.source}: {count} of {values.size} values of array `{series.array}` are not finite "
        f"({100 * count / values.size:.2g} %), the first at {place_in_file(series, first, family)}{details}: "
        f"{values[first]}. {series.left_out + ' ' if series.left_out else ''}"
        f"Set data.missing to {zero} or interpolate, or mend the file."
    )


def place_in_file(series: Series, index: tuple[int, ...], family: str) -> str:
    """An index into the values as text, with the axes and the channel of the file."""
    channel = 1 + CHANNEL_AXIS[family]
    in_file = tuple(series.channels[i] if axis == channel and series.channels else i for axis, i in enumerate(index))
    return _place(in_file, FAMILY_AXES[family])


def _first(where: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), where.shape))


def _place(index: tuple[int, ...], axes: tuple[str, ...]) -> str:
    return f"[{', '.join(f'{axis}={i}' for axis, i in zip(axes, index, strict=True))}]"
