"""Errors of one trial by test window, and differences between two trials by window block.

Neighbouring windows share most of their steps, so their errors are not independent pairs. Means over long, contiguous blocks of windows
are nearly independent. This is the method of batch means, whose interval is valid with about ten batches and gains little from more
(Schmeiser 1982). How long they have to be depends on the data: errors of traffic stay alike for hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlab.report.predictions import read_predictions
from stlab.storage import Store

if TYPE_CHECKING:
    import numpy as np

MAX_BLOCKS = 10
"""The largest number of window blocks; fewer and longer blocks are less correlated."""

_TIMES_AS_LONG = 3
"""The length of a block in correlation times. With 3, false alarms stay below 8 % for AR(1) errors with a coefficient up to 0.98 and 195
windows or more."""


@dataclass(frozen=True)
class WindowErrors:
    """Sums over the horizons and cells of each of n test windows, in the data's unit; missing readings are left out."""

    window: np.ndarray  # (n,) int64: index in the series of the window's first step, ascending
    absolute: np.ndarray  # (n,) float64
    squared: np.ndarray  # (n,)
    count: np.ndarray  # (n,) readings
    day: np.ndarray | None = None  # (n,) datetime64[D] of the first step ahead; None without timestamps

    @property
    def rmse(self) -> float:
        return float((self.squared.sum() / self.count.sum()) ** 0.5)


def read_window_errors(store: Store, trial_id: str) -> WindowErrors | None:
    """The errors of a trial's kept forecasts; None if it has not been tested. A large test segment keeps only some windows."""
    import numpy as np

    kept = read_predictions(store, trial_id)
    if kept is None:
        return None
    error = (kept.forecast - kept.truth).reshape(len(kept.window), -1)
    sums = np.nansum(np.abs(error), axis=1), np.nansum(np.square(error), axis=1)
    day = None if kept.time is None else kept.time[:, 0].astype("datetime64[D]")
    return WindowErrors(kept.window, *sums, (~np.isnan(error)).sum(axis=1), day)


def block_differences(ours: WindowErrors, theirs: WindowErrors, least: int) -> dict[str, list[float]]:
    """Differences ours − theirs of ``rmse`` and ``mae`` by window block; empty if both have different windows.

    A block is at least three times as long as the differences stay correlated. Where that leaves fewer than two blocks, there are none.

    A block's sum is divided by the mean number of readings in a block, so that the mean over blocks is exactly the difference over all
    windows. For the RMSE, the difference of the squared errors is divided by the sum of both RMSE, since
    RMSE_a − RMSE_b = (MSE_a − MSE_b) / (RMSE_a + RMSE_b).

    Args:
        least: the least number of steps in a block. It is history plus horizon, so that only windows of neighbouring blocks share steps.
    """
    import numpy as np

    same = np.array_equal(ours.window, theirs.window) and np.array_equal(ours.count, theirs.count)
    if not same or not ours.count.sum():
        return {"rmse": [], "mae": []}
    start = ours.window - ours.window[0]
    span = int(start[-1]) + 1
    squares, absolutes = ours.squared - theirs.squared, ours.absolute - theirs.absolute
    longest = _TIMES_AS_LONG * max(_correlation_time(squares), _correlation_time(absolutes))
    blocks = min(MAX_BLOCKS, span // least, int(len(start) / longest))
    if blocks < 2:
        return {"rmse": [], "mae": []}
    number = start * blocks // span

    def by_block(differences: np.ndarray) -> np.ndarray:
        return np.bincount(number, differences, minlength=blocks) * blocks / ours.count.sum()

    both = ours.rmse + theirs.rmse
    rmse = by_block(squares) / both if both else by_block(squares)
    return {"rmse": rmse.tolist(), "mae": by_block(absolutes).tolist()}


def _correlation_time(values: np.ndarray) -> float:
    """(1 + φ) / (1 − φ) windows, of an AR(1) series with the values' own φ, whose estimate is freed of its bias (Kendall 1954)."""
    import numpy as np

    centred = values - values.mean()
    power = float((centred**2).sum())
    found = float((centred[1:] * centred[:-1]).sum()) / power if power else 0.0
    phi = float(np.clip(found + (1 + 3 * found) / len(values), 0.0, 0.999))
    return (1 + phi) / (1 - phi)
