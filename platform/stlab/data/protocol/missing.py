"""Fill missing (non-finite) readings, as ``data.missing`` asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stlab.data.formats.checks import missing_message
from stlab.data.formats.content import FAMILY_AXES, Series
from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fill_missing(series: Series, method: str, family: str, ends: Sequence[int]) -> tuple[NDArray[np.float32], str]:
    """The readings without gaps, and the method that filled them.

    ``interpolate`` is linear in time, separately for each series, and takes the nearest reading at the edges. A segment is filled from its
    own and earlier readings only, so that nothing of a later segment enters it. Within a segment a gap is filled from both sides. The last
    history step of a window may then depend on its target, and therefore interpolated data counts as leaking.

    Args:
        series: the series as it was read.
        method: ``error``, ``zero`` or ``interpolate``.
        family: names the axes in messages.
        ends: the ends of the segments, increasing; the last is T.

    Returns:
        (T, *S) float32, and ``none`` (nothing was missing), ``zero`` or ``interpolate``.

    Raises:
        DataError: values are missing and the method is ``error``, or a series has no reading to interpolate from.
    """
    message = missing_message(series, family)
    if message is None:
        return series.values, "none"
    if method == "error":
        raise DataError(message)
    if method == "zero":
        return np.where(np.isfinite(series.values), series.values, np.float32(0)), "zero"
    flat = series.values.reshape(len(series.values), -1)
    filled = flat.copy()
    start = 0
    for end in ends:
        if not np.isfinite(flat[start:end]).all():
            _check_has_readings(flat[:end], series, family)
            filled[start:end] = interpolate(flat[:end])[start:]
        start = end
    return filled.reshape(series.values.shape), "interpolate"


def interpolate(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolate each column of (T, M) linearly in time; the edges take the nearest reading. Each column needs at least one reading."""
    steps = len(values)
    known = np.isfinite(values)
    time = np.arange(steps, dtype=np.int32)[:, None]
    last_known = np.maximum.accumulate(np.where(known, time, -1), axis=0)
    next_known = np.minimum.accumulate(np.where(known, time, steps)[::-1], axis=0)[::-1]
    row, column = np.nonzero(~known)
    before, after = last_known[row, column], next_known[row, column]
    before, after = np.where(before < 0, after, before), np.where(after == steps, before, after)
    weight = (row - before) / np.maximum(after - before, 1)
    filled = values.copy()
    filled[row, column] = values[before, column] * (1 - weight) + values[after, column] * weight
    return filled


def _check_has_readings(flat: NDArray[np.float32], series: Series, family: str) -> None:
    empty = ~np.isfinite(flat).any(axis=0)
    if empty.any():
        index = np.unravel_index(int(np.argmax(empty)), series.values.shape[1:])
        place = ", ".join(f"{axis}={int(i)}" for axis, i in zip(FAMILY_AXES[family][1:], index, strict=True))
        raise DataError(
            f"{series.source}: {int(empty.sum())} series of array `data` have no reading in the first {len(flat)} "
            f"steps, the first at [{place}]; there is nothing to interpolate from. Set data.missing: zero, or leave "
            "them out."
        )
