"""Affine scalers that are fitted on the train segment (protocol: "Scaling")."""

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
    """``scaled = (x - center) / spread``, for tensors and arrays of any shape."""

    kind: str
    """``min-max`` maps the readings it was fitted on to [-1, 1]. ``z-score`` gives them mean 0 and standard deviation 1."""
    center: float
    spread: float

    @property
    def zero(self) -> float:
        """The scaled value of a reading of 0."""
        return -self.center / self.spread

    def transform(self, x: Values) -> Values:
        """From the unit of the data to scaled space."""
        return (x - self.center) / self.spread

    def inverse(self, x: Values) -> Values:
        """From scaled space to the unit of the data."""
        return x * self.spread + self.center


def fit_min_max(low: float, high: float, source: str, where: str = "the train segment") -> Scaler:
    """The scaler that maps [low, high] to [-1, 1], the same for all channels.

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
    """The scaler that gives the readings mean 0 and standard deviation (over n) 1, computed in float64.

    Args:
        readings: the readings of the train segment, of any shape, without missing ones; at least one.
        source: names the data in the message.

    Raises:
        DataError: all readings are equal.
    """
    values = readings.astype(np.float64)
    center, spread = float(values.mean()), float(values.std())
    if readings.min() == readings.max():
        raise DataError(
            f"{source}: every reading in the train segment is {center:g}; there is nothing to learn from it. Give data "
            "that vary, or a longer segment."
        )
    return Scaler("z-score", center=center, spread=spread)
