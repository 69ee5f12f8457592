"""Scalers: affine, fitted on the train segment (protocol: "Scaling")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from torch import Tensor

from stlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Values = TypeVar("Values", Tensor, "NDArray[np.floating]")


@dataclass(frozen=True)
class Scaler:
    """``scaled = (x - center) / spread``. Works on tensors and arrays of any shape."""

    kind: str
    """``min-max``: to [-1, 1] over the readings it was fitted on. ``z-score``: to their mean 0 and deviation 1."""
    center: float
    spread: float

    @property
    def zero(self) -> float:
        """What a reading of 0 is, scaled."""
        return -self.center / self.spread

    def transform(self, x: Values) -> Values:
        """From the data's unit to scaled space."""
        return (x - self.center) / self.spread

    def inverse(self, x: Values) -> Values:
        """From scaled space to the data's unit."""
        return x * self.spread + self.center


def fit_min_max(low: float, high: float, source: str, where: str = "the train segment") -> Scaler:
    """The scaler that takes [low, high] to [-1, 1], over all channels at once.

    Raises:
        DataError: low equals high, so there is nothing to scale by.
    """
    if low == high:
        raise DataError(
            f"{source}: every value in {where} is {low:g}; there is nothing to learn from it. Give data that vary, "
            "or a longer segment."
        )
    return Scaler("min-max", center=(low + high) / 2, spread=(high - low) / 2)


def fit_z_score(readings: NDArray[np.floating], source: str) -> Scaler:
    """The scaler that takes the readings' mean to 0 and their standard deviation (over n) to 1, in float64.

    Args:
        readings: Of the train segment, of any shape, missing ones left out; at least one.
        source: For the message.

    Raises:
        DataError: all are the same.
    """
    values = readings.astype(np.float64)
    center, spread = float(values.mean()), float(values.std())
    if readings.min() == readings.max():
        raise DataError(
            f"{source}: every reading in the train segment is {center:g}; there is nothing to learn from it. Give data "
            "that vary, or a longer segment."
        )
    return Scaler("z-score", center=center, spread=spread)
