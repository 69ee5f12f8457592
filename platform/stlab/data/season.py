"""Slots of the week, and the train segment's mean by slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from stlab.data.content import DAY_SECONDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday


class Season(NamedTuple):
    """Mean by slot of the week."""

    values: NDArray[np.float64]
    """(T, *S): the mean at each step's slot; NaN at a step of no window whose slot was never seen."""
    rarest: int
    """Train readings at the rarest slot that occurs in a window."""


def slot_of_week(times: NDArray[np.datetime64], step_seconds: int) -> NDArray[np.int64]:
    """Day of the week · slots a day + slot of the day, Monday 00:00 = 0, for times at any offset within the step."""
    seconds = times.astype("datetime64[s]").astype(np.int64) + _EPOCH_WEEKDAY * DAY_SECONDS
    return seconds % (7 * DAY_SECONDS) // step_seconds


def season_count(slots: NDArray[np.int64], slots_per_day: int, train_end: int, used: NDArray[np.bool_]) -> int:
    """Train readings at the rarest slot of the week that occurs at a used step; 0 where there can be no mean by slot
    of the week."""
    week = np.bincount(slots[:train_end], minlength=7 * slots_per_day)
    day = np.bincount(slots[:train_end] % slots_per_day, minlength=slots_per_day)
    lonely = (week[slots[:train_end]] == 1) & (day[slots[:train_end] % slots_per_day] == 1)
    return 0 if lonely.any() else int(week[slots[used]].min())


def season_by_slot(
    values: NDArray[np.float32], slots: NDArray[np.int64], slots_per_day: int, train_end: int, used: NDArray[np.bool_]
) -> Season | None:
    """The mean of the train segment's readings at each step's slot of the week.

    Inside the train segment it is leave-one-out, (sum - x) / (n - 1): a slot seen five times is a fifth of its own
    mean, and a model trained on its own residuals would lean on that. Where n is 1 no other reading of the slot
    exists; there it is the mean of the other train readings at the same slot of the day.

    Args:
        values: (T, *S) readings in the data's unit.
        slots: (T,) slot of the week.
        slots_per_day: Slots a day.
        train_end: The train segment is [0, train_end).
        used: (T,) steps that occur in a window.

    Returns:
        None where a slot that occurs in a window has no train reading to take a mean of.
    """
    count = season_count(slots, slots_per_day, train_end, used)
    if count == 0:
        return None
    train = torch.from_numpy(values[:train_end].reshape(train_end, -1).astype(np.float64))
    sums, counts = _sums(train, slots[:train_end], 7 * slots_per_day)
    with np.errstate(invalid="ignore"):
        season = (sums / counts)[slots]
    inside = slots[:train_end]
    others = counts[inside] - 1
    left_out = (sums[inside] - train.numpy()) / np.maximum(others, 1)
    once = np.flatnonzero(others[:, 0] == 0)
    if len(once):
        day_sums, day_counts = _sums(train, inside % slots_per_day, slots_per_day)
        of_day = inside[once] % slots_per_day
        left_out[once] = (day_sums[of_day] - train.numpy()[once]) / (day_counts[of_day] - 1)
    season[:train_end] = left_out
    return Season(season.reshape(values.shape), count)


def _sums(
    values: torch.Tensor, group: NDArray[np.int64], groups: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of the rows of each group (groups, M), and how many there are (groups, 1)."""
    sums = torch.zeros(groups, values.shape[1], dtype=values.dtype).index_add_(0, torch.from_numpy(group), values)
    return sums.numpy(), np.bincount(group, minlength=groups)[:, None].astype(np.float64)
