"""Slots of the week, and the mean of the train segment by slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from stlab.data.formats.content import DAY_SECONDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday


class Season(NamedTuple):
    """The mean by slot of the week."""

    values: NDArray[np.float64]
    """(T, *S): the mean at each step's slot; within the train segment without the step's own reading."""
    table: NDArray[np.float64]
    """(slots of the week, *S): the mean of all train readings at each slot, which forecasts of later windows are added to."""
    profile: NDArray[np.float64]
    """The same where a slot has two readings or more. A single one would be the target itself, so that of the day stands there."""
    rarest: int
    """The number of train steps at the rarest slot that occurs in a window."""


def slot_of_week(times: NDArray[np.datetime64], step_seconds: int) -> NDArray[np.int64]:
    """Day of the week · slots per day + slot of the day, with Monday 00:00 = 0. Times may lie at any offset within a step."""
    seconds = times.astype("datetime64[s]").astype(np.int64) + _EPOCH_WEEKDAY * DAY_SECONDS
    return seconds % (7 * DAY_SECONDS) // step_seconds


def season_count(slots: NDArray[np.int64], slots_per_day: int, train_end: int, used: NDArray[np.bool_]) -> int:
    """The number of train steps at the rarest slot of the week that occurs at a used step. 0: no mean by slot of the week is possible."""
    week = np.bincount(slots[:train_end], minlength=7 * slots_per_day)
    day = np.bincount(slots[:train_end] % slots_per_day, minlength=slots_per_day)
    lonely = (week[slots[:train_end]] == 1) & (day[slots[:train_end] % slots_per_day] == 1)
    return 0 if lonely.any() else int(week[slots[used]].min())


def season_by_slot(
    values: NDArray[np.float32],
    slots: NDArray[np.int64],
    slots_per_day: int,
    train_end: int,
    used: NDArray[np.bool_],
    seen: NDArray[np.bool_] | None = None,
) -> Season | None:
    """The mean of the train readings at each slot of the week, separately for each place.

    Within the train segment a step's mean is leave-one-out, (sum - x) / (n - 1). Otherwise a reading at a slot that occurs five times
    would be a fifth of its own mean, and residuals would be smaller there than they are later. If no other reading is left (n is 1, or a
    sensor never gave one at that slot), the mean of the place's other train readings at the same slot of the day is used, and if there is
    none of these either, the mean of all other train readings of all places.

    Args:
        values: (T, *S) readings in the data's unit.
        slots: (T,) slot of the week.
        slots_per_day: number of slots per day.
        train_end: the train segment is [0, train_end).
        used: (T,) steps that occur in a window.
        seen: (T, *S) True where there is a reading; None means everywhere. At least two train steps need one.

    Returns:
        None if a slot that occurs in a window does not occur in the train segment.
    """
    count = season_count(slots, slots_per_day, train_end, used)
    if count == 0:
        return None
    train = values[:train_end].reshape(train_end, -1).astype(np.float64)
    known = np.ones((train_end, 1)) if seen is None else seen[:train_end].reshape(train_end, -1).astype(np.float64)
    train = train if seen is None else train * known
    sums, counts = _sums(train, slots[:train_end], 7 * slots_per_day), _sums(known, slots[:train_end], 7 * slots_per_day)
    with np.errstate(invalid="ignore"):
        season = (sums / counts)[slots]
        inside = slots[:train_end]
        season[:train_end] = (sums[inside] - train) / (counts[inside] - known)
        table = sums / counts
    by_day = slots % slots_per_day
    for group, groups in ((by_day, slots_per_day), (np.zeros_like(slots), 1)):
        step, place = np.nonzero(np.isnan(season))
        season[step, place] = _without_itself(train, known, group, groups, step, place)
    shape = (-1, *values.shape[1:])
    whole, several = (_filled(one, train, known, inside % slots_per_day) for one in (table, np.where(counts < 2, np.nan, table)))
    return Season(season.reshape(values.shape), whole.reshape(shape), several.reshape(shape), count)


def _filled(
    profile: NDArray[np.float64], train: NDArray[np.float64], known: NDArray[np.float64], by_day: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The means (slots of the week, places), where one is missing: that of the place at the same slot of the day, or else of all readings
    of all places."""
    slots_per_day = len(profile) // 7
    with np.errstate(invalid="ignore"):
        day = _sums(train, by_day, slots_per_day) / _sums(known, by_day, slots_per_day)
    everywhere = train.sum() / np.broadcast_to(known, train.shape).sum()
    profile = np.where(np.isnan(profile), np.tile(day, (7, 1)), profile)
    return np.where(np.isnan(profile), everywhere, profile)


def _without_itself(
    train: NDArray[np.float64],
    known: NDArray[np.float64],
    group: NDArray[np.int64],
    groups: int,
    step: NDArray[np.int64],
    place: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The mean of the train readings of each step's group at its place, without the step's own reading. A single group covers all places.
    NaN if no reading is left."""
    sums, counts = _sums(train, group[: len(train)], groups), _sums(known, group[: len(train)], groups)
    counts = np.broadcast_to(counts, sums.shape)
    if groups == 1:
        sums, counts = np.full_like(sums, sums.sum()), np.full(sums.shape, counts.sum())
    total, number = sums[group[step], place], counts[group[step], place]
    inside = np.flatnonzero(step < len(train))
    total[inside] -= train[step[inside], place[inside]]
    number[inside] -= np.broadcast_to(known, train.shape)[step[inside], place[inside]]
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = total / number
    return mean


def _sums(values: NDArray[np.float64], group: NDArray[np.int64], groups: int) -> NDArray[np.float64]:
    """Sums of the rows of each group: (n, M) → (groups, M)."""
    sums = torch.zeros(groups, values.shape[1], dtype=torch.float64)
    return sums.index_add_(0, torch.from_numpy(group), torch.from_numpy(values)).numpy()
