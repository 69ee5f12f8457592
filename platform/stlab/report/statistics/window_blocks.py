"""Errors of one trial by test window, and differences between two trials by block of windows.

Neighbouring windows share most of their steps, so their errors are no independent pairs. Means over long, contiguous blocks nearly are:
the method of batch means, whose interval holds with ten or so batches and gains little from more (Schmeiser 1982).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlab.report.predictions import read_predictions
from stlab.storage import Store

if TYPE_CHECKING:
    import numpy as np

MAX_BLOCKS = 10
"""Blocks at the most: longer ones are less correlated. With 10 a false alarm stays near 5 % for AR(1) errors up to 0.9."""


@dataclass(frozen=True)
class WindowErrors:
    """Sums over the horizons and cells of each of n test windows, readings only, in the data's unit."""

    window: np.ndarray  # (n,) int64: index in the series of the window's first step, ascending
    absolute: np.ndarray  # (n,) float64
    squared: np.ndarray  # (n,)
    count: np.ndarray  # (n,) readings

    @property
    def rmse(self) -> float:
        return float((self.squared.sum() / self.count.sum()) ** 0.5)


def read_window_errors(store: Store, trial_id: str) -> WindowErrors | None:
    """From the trial's kept forecasts; None where it has not been tested. Of a large test segment not all windows are kept."""
    import numpy as np

    kept = read_predictions(store, trial_id)
    if kept is None:
        return None
    error = (kept.forecast - kept.truth).reshape(len(kept.window), -1)
    sums = np.nansum(np.abs(error), axis=1), np.nansum(np.square(error), axis=1)
    return WindowErrors(kept.window, *sums, (~np.isnan(error)).sum(axis=1))


def block_differences(ours: WindowErrors, theirs: WindowErrors, least: int) -> dict[str, list[float]]:
    """Differences ours − theirs of ``rmse`` and ``mae`` by block of test windows; empty where the windows are not the same.

    A block's sum is divided by the mean count of readings of a block, so that the mean over blocks is the difference over all windows
    exactly. For the RMSE it is that of the squared errors over the sum of both RMSE: RMSE_a − RMSE_b = (MSE_a − MSE_b) / (RMSE_a + RMSE_b).

    Args:
        least: steps of a block at the least: history and horizon together, so that windows of blocks that are no neighbours share nothing.
    """
    import numpy as np

    same = np.array_equal(ours.window, theirs.window) and np.array_equal(ours.count, theirs.count)
    if not same or not ours.count.sum():
        return {"rmse": [], "mae": []}
    start = ours.window - ours.window[0]
    span = int(start[-1]) + 1
    blocks = min(MAX_BLOCKS, span // least)
    if blocks < 2:
        return {"rmse": [], "mae": []}
    number = start * blocks // span

    def by_block(differences: np.ndarray) -> np.ndarray:
        return np.bincount(number, differences, minlength=blocks) * blocks / ours.count.sum()

    squares, both = by_block(ours.squared - theirs.squared), ours.rmse + theirs.rmse
    rmse = squares / both if both else squares
    return {"rmse": rmse.tolist(), "mae": by_block(ours.absolute - theirs.absolute).tolist()}
