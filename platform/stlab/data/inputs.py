"""Further channels of the sensors, which a model is given beside the one that it forecasts (``data.inputs``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stlab.data.formats.content import Series, channel_names, channels_of, content_hash
from stlab.data.protocol.missing import fill_missing
from stlab.data.protocol.scaler import Scaler, fit_z_score

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from stlab.study.spec import DataSpec


@dataclass(frozen=True)
class InputScalers:
    """The z-score of each of the K further channels, fitted on the train segment."""

    names: tuple[str, ...]
    scalers: tuple[Scaler, ...]

    def transform(self, values: ArrayLike) -> NDArray[np.float32]:
        """(…, K) from the channels' units to scaled space, computed in float64."""
        return ((np.asarray(values, np.float64) - self._of("center")) / self._of("spread")).astype(np.float32)

    def inverse(self, scaled: ArrayLike) -> NDArray[np.float32]:
        """(…, K) from scaled space to the channels' units."""
        return (np.asarray(scaled, np.float64) * self._of("spread") + self._of("center")).astype(np.float32)

    def _of(self, field: str) -> NDArray[np.float64]:
        return np.array([getattr(scaler, field) for scaler in self.scalers])


@dataclass(frozen=True)
class Inputs:
    """The further channels of a data set."""

    values: Tensor
    """(T, N, K) scaled, on the CPU."""
    scaling: InputScalers
    sha256: str
    """Hash of the channels, their gaps filled."""
    leaks: bool
    """Whether gaps were interpolated, and so tell of later readings."""


def further_channels(spec: DataSpec) -> list[int]:
    """The channels that ``data.inputs`` names beside the one that is forecast."""
    return [channel for channel in spec.inputs if channel != spec.channel]


def make_inputs(series: Series, spec: DataSpec, train_end: int, ends: Sequence[int]) -> Inputs | None:
    """The channels that ``data.inputs`` names, beside the one that is forecast; None where it names no other.

    Every number is a reading here: ``data.null`` is about the channel that is forecast. Values that are not finite are treated as
    ``data.missing`` asks.

    Args:
        series: a network with all its channels.
        ends: the ends of the segments, increasing; the last is T.

    Raises:
        DataError: there is no such channel, values are missing, or one does not change within the train segment.
    """
    chosen = further_channels(spec)
    if not chosen:
        return None
    further = channels_of(series, chosen, "data.inputs")
    values, filled = fill_missing(further, spec.missing, spec.family, ends)
    names = channel_names(further, spec.family)
    scaling = InputScalers(
        names, tuple(fit_z_score(values[:train_end, :, k], f"{series.source}: {name} of data.inputs") for k, name in enumerate(names))
    )
    return Inputs(torch.from_numpy(scaling.transform(values)), scaling, content_hash(values), filled == "interpolate")
