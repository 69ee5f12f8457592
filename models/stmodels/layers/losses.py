"""Means over the present readings: a missing reading has no error.

Sums are computed in fp32, whatever the precision of the forecast.
"""

from __future__ import annotations

from torch import Tensor


def mean_absolute(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of |error| where ``mask`` is True, or of all errors without a mask; 0 if the mask is False everywhere.

    ``error`` has any shape, and the bool ``mask`` has the same. Errors where the mask is False, including NaN, affect neither the mean nor
    its gradient.
    """
    return _mean(_measured(error, mask).abs(), mask)


def mean_squared(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of error²; the mask works as in :func:`mean_absolute`."""
    return _mean(_measured(error, mask).square(), mask)


def _measured(error: Tensor, mask: Tensor | None) -> Tensor:
    # The mask is applied first, since the gradient of a power of NaN is NaN even if it is multiplied by 0.
    return error.float() if mask is None else error.float().masked_fill(~mask, 0.0)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    return values.mean() if mask is None else values.sum() / mask.sum().clamp_min(1)
