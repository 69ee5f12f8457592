"""How much an error depends on the days that happen to be in the test segment, which intervals over seeds do not show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlab.report.statistics.summary import Summary
from stlab.report.statistics.window_blocks import WindowErrors, read_window_errors
from stlab.storage import Store

if TYPE_CHECKING:
    import numpy as np

_RESAMPLES = 2000


@dataclass(frozen=True)
class OverDays:
    """The 2.5th and the 97.5th percentile of the test RMSE over resampled days (block bootstrap), in the unit of the table."""

    low: float
    high: float
    days: int


def spread_over_days(store: Store, lines: Iterable[Summary], scale: float) -> dict[str, OverDays]:
    """Label → spread of the mean over seeds, for each line whose kept forecasts have dates of at least two days.

    A day is drawn whole, with all windows whose first step ahead is in it. Days are drawn as if they were independent.

    Args:
        scale: reported errors are multiplied by this factor.
    """
    found = {}
    for line in lines:
        errors = [read_window_errors(store, trial_id) for trial_id in line.trial_ids]
        kept = [one for one in errors if one is not None and one.day is not None]
        if kept and len(kept) == len(errors) and (spread := _spread(kept, scale)) is not None:
            found[line.label] = spread
    return found


def _spread(trials: list[WindowErrors], scale: float) -> OverDays | None:
    import numpy as np

    days = np.unique(np.concatenate([one.day for one in trials if one.day is not None]))
    if len(days) < 2:
        return None
    drawn = np.random.default_rng(0).integers(len(days), size=(_RESAMPLES, len(days)))
    rmse = np.mean([_resampled(one, days, drawn) for one in trials], axis=0)
    low, high = scale * np.nanpercentile(rmse, [2.5, 97.5])
    return OverDays(float(low), float(high), len(days))


def _resampled(errors: WindowErrors, days: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The RMSE of each resample, (resamples,)."""
    import numpy as np

    assert errors.day is not None
    number = np.searchsorted(days, errors.day)
    squared, count = (np.bincount(number, values, minlength=len(days)) for values in (errors.squared, errors.count))
    with np.errstate(invalid="ignore"):
        result: np.ndarray = np.sqrt(squared[drawn].sum(1) / count[drawn].sum(1))
    return result
