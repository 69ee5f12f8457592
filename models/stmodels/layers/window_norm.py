"""Each series of a window in units of its own mean and deviation, and back.

Legend: B batch, P history, N nodes.
"""

from __future__ import annotations

from torch import Tensor

_EPSILON = 1e-5


def normalised(x_BPN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x − mean) / √(variance + 1e-5) over time, with the mean and that root, (B, 1, N) each.

    The variance is that of the readings themselves, divided by P.
    """
    mean = x_BPN.mean(1, keepdim=True)
    deviation = (x_BPN.var(1, keepdim=True, unbiased=False) + _EPSILON).sqrt()
    return (x_BPN - mean) / deviation, mean, deviation
