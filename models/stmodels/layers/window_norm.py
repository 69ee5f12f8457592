"""Each series of a window in units of its own mean and deviation, and back.

Legend: B batch, P history, M series.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

_EPSILON = 1e-5


def normalised(x_BPM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x − mean) / √(variance + 1e-5) over time, with the mean and that root, (B, 1, M) each.

    The variance is that of the readings themselves, divided by P.
    """
    mean = x_BPM.mean(1, keepdim=True)
    deviation = (x_BPM.var(1, keepdim=True, unbiased=False) + _EPSILON).sqrt()
    return (x_BPM - mean) / deviation, mean, deviation


def in_own_units(forecast: Callable[[Tensor], Tensor], x_BPM: Tensor, is_on: bool = True) -> Tensor:
    """What ``forecast`` makes of the normalised series, (B, P, M) → (B, Q, M), back in the units of the data; of them as they are if not
    ``is_on``."""
    if not is_on:
        return forecast(x_BPM)
    x, mean, deviation = normalised(x_BPM)
    return forecast(x) * deviation + mean
