"""Means over the readings there are: what is not measured is no error.

Sums are made in fp32, whatever the forecast was computed in.
"""

from __future__ import annotations

from torch import Tensor


def mean_absolute(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of |error| where ``mask`` is True, everywhere where there is no mask; 0 where nothing is measured.

    ``error`` has any shape and ``mask`` the same, bool. What the error is where the mask is False, NaN too, reaches neither
    the mean nor its gradient.
    """
    return _mean(_measured(error, mask).abs(), mask)


def mean_squared(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of error², as :func:`mean_absolute`."""
    return _mean(_measured(error, mask).square(), mask)


def _measured(error: Tensor, mask: Tensor | None) -> Tensor:
    # Before the power is taken, since the gradient of a power of NaN is NaN even where it is multiplied by 0.
    return error.float() if mask is None else error.float().masked_fill(~mask, 0.0)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    return values.mean() if mask is None else values.sum() / mask.sum().clamp_min(1)
