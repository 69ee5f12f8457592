"""Means over the present readings: a missing reading has no error.

Sums are computed in fp32, whatever the precision of the forecast.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Criterion = Callable[[Tensor, Tensor | None], Tensor]
"""(errors of any shape, mask) → their mean, as :func:`mean_absolute`."""


def mean_absolute(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of |error| where ``mask`` is True, or of all errors without a mask; 0 if the mask is False everywhere.

    ``error`` has any shape, and the bool ``mask`` has the same. Errors where the mask is False, including NaN, affect neither the mean nor
    its gradient.
    """
    return _mean(_measured(error, mask).abs(), mask)


def mean_squared(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of error²; the mask works as in :func:`mean_absolute`."""
    return _mean(_measured(error, mask).square(), mask)


def mean_huber(error: Tensor, mask: Tensor | None, delta: float) -> Tensor:
    """Mean of Huber's loss: error² / 2 up to ``delta`` and delta (|error| − delta / 2) above; the mask works as in
    :func:`mean_absolute`."""
    size = _measured(error, mask).abs()
    inner = size.clamp_max(delta)
    return _mean(inner * (size - inner / 2), mask)


def _measured(error: Tensor, mask: Tensor | None) -> Tensor:
    # The mask is applied first, since the gradient of a power of NaN is NaN even if it is multiplied by 0.
    return error.float() if mask is None else error.float().masked_fill(~mask, 0.0)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    return values.mean() if mask is None else values.sum() / mask.sum().clamp_min(1)
